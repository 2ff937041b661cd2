"""A side of a comparison in a process of its own: `python -m onnxport.compare.protocol.worker` answers JSON lines.

One request a line on standard input, `{"op": ..., ...}`; one answer a line on standard output, `{"result": ...}` or
`{"error": {"class", "message", "exit_code", "traceback"}}`. Operations:

    load      spec                      -> {"import_ms", "load_ms", "about"}
    generate, encode, classify, answer, likelihoods, score, run
              inputs, options           -> {"seconds", "outputs"}
    time      method, inputs, options, calls -> {"seconds": [per call], "units": [per call]}
              (units: new tokens of generate, 1 of run, else inputs)
    parity    -                         -> the side's differences from the golden answers, or null
    stats     -                         -> {"peak_rss_bytes", "rss_bytes", "cpu_share" (processor time over wall time of all timed calls)}
    close     -                         -> null, and the process ends

Standard output is kept for the protocol: whatever a side prints goes to standard error. When standard input ends, so does the process,
in the middle of a call too: a parent that was killed leaves no orphan.

A side is any class with the methods of `Side` that it can offer; `{"kind": "class", "class": "module:Class", "options": {...}}` names
one from outside, so that a peer is measured by the same code.
"""

import importlib
import json
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from onnxport.compare.protocol.messages import METHODS, Side, describe_error, pack, unpack
from onnxport.errors import UsageError

BUILT_IN = {"bundle": "onnxport.compare.protocol.bundle_side:BundleSide", "pytorch": "onnxport.export.reference.side:PyTorchSide"}


def make_side(spec: dict[str, Any]) -> Side:
    """The side of a spec, not yet loaded. Raises UsageError for a kind or class that cannot be found."""
    options = {name: value for name, value in spec.items() if name != "kind"}
    kind = spec.get("kind")
    if kind == "class":
        place, options = options.get("class", ""), options.get("options", {})
    elif kind in BUILT_IN:
        place = BUILT_IN[kind]
    else:
        raise UsageError(f"unknown kind of side {kind!r}; expected {', '.join([*BUILT_IN, 'class'])}")
    module, _, name = place.partition(":")
    try:
        side: Side = getattr(importlib.import_module(module), name)(**options)
        return side
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"cannot import the side {place!r} ({error}); expected module:Class") from error


class Worker:
    """Answers requests with one side."""

    def __init__(self) -> None:
        self.side: Any = None
        self.timed = 0.0  # seconds of all timed calls
        self.worked = 0.0  # seconds in which the calling thread had a processor during them

    def handle(self, request: dict[str, Any]) -> Any:
        """The result of one request (see the module). Raises what the side raises, and UsageError for a wrong request."""
        op = request.get("op")
        if op == "load":
            return self.load(request["spec"])
        if op == "stats":
            share = self.worked / self.timed if self.timed else None
            return {"peak_rss_bytes": peak_rss_bytes(), "rss_bytes": rss_bytes(), "cpu_share": share}
        if self.side is None:
            raise UsageError(f"operation {op!r} before load; load a side first")
        if op == "parity":
            parity = getattr(self.side, "parity", None)
            return None if parity is None else parity()
        if op == "time":
            return self.time(request)
        if op in METHODS:
            started = time.perf_counter()
            outputs = self.call(op, request)
            return {"seconds": time.perf_counter() - started, "outputs": outputs}
        raise UsageError(f"unknown operation {op!r}; expected load, {', '.join(METHODS)}, time, parity, stats or close")

    def load(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Imports and loads a side in place of the one before: import_ms, load_ms (milliseconds) and about, the side's own facts."""
        started = time.perf_counter()
        side = make_side(spec)
        for module in getattr(side, "imports", ()):
            importlib.import_module(module)
        imported = time.perf_counter()
        side.load()
        loaded = time.perf_counter()
        self.side = side
        about = side.about() if hasattr(side, "about") else {}
        return {"import_ms": (imported - started) * 1e3, "load_ms": (loaded - imported) * 1e3, "about": about}

    def call(self, method: str, request: dict[str, Any]) -> Any:
        """Outputs of one of the side's methods. Raises UsageError when it lacks the method."""
        function = getattr(self.side, method, None)
        if function is None:
            raise UsageError(f"{type(self.side).__name__} has no {method}()")
        return function(unpack(request["inputs"]), **request.get("options", {}))

    def time(self, request: dict[str, Any]) -> dict[str, list[float] | list[int]]:
        """Seconds and units of each of the request's calls; unpacking the inputs is not counted."""
        request = {**request, "inputs": unpack(request["inputs"])}
        seconds: list[float] = []
        units: list[int] = []
        for _ in range(request.get("calls", 1)):
            began, started = time.thread_time(), time.perf_counter()
            outputs = self.call(request["method"], request)
            seconds.append(time.perf_counter() - started)
            self.timed += seconds[-1]
            self.worked += time.thread_time() - began
            units.append(_units(request["method"], request["inputs"], outputs))
        return {"seconds": seconds, "units": units}


def _units(method: str, inputs: Any, outputs: Any) -> int:
    """Units of work in a call: new tokens or answered inputs; one for `run`, whose arrays have no axis that is surely the batch."""
    if method == "generate":
        return sum(len(output["tokens"]) for output in outputs)
    return 1 if method == "run" else len(inputs)


def peak_rss_bytes() -> int:
    """The most physical memory this process has held, in bytes.

    On Linux VmHWM, which begins anew at exec; getrusage would pass on the peak of the parent that forked.
    """
    peak = _status("VmHWM")
    if peak is not None:
        return max(peak, rss_bytes() or 0)  # the kernel counts in batches: the peak may lag behind what is held
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def rss_bytes() -> int | None:
    """The physical memory that this process holds now, in bytes; None where the system does not say."""
    return _status("VmRSS")


def _status(field: str) -> int | None:
    """A field of Linux's /proc/self/status, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), None)


def main() -> None:
    """Answers standard input until it ends or asks to close; never returns."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers itself
    protocol = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            requests.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    worker = Worker()
    while True:
        try:
            request = json.loads(requests.get())
            if request.get("op") == "close":
                answer: dict[str, Any] = {"result": None}
            else:
                answer = {"result": pack(worker.handle(request))}
            line = json.dumps(answer)
        except Exception as error:
            request = {}
            line = json.dumps({"error": describe_error(error)})
        protocol.write(line + "\n")
        protocol.flush()
        if request.get("op") == "close":
            os._exit(0)  # sessions and thread pools need no orderly end


if __name__ == "__main__":
    main()
