"""The client of a side's process: it starts the process, sends requests, and ends it whatever happens."""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from onnxport import errors
from onnxport.compare.protocol.messages import pack, unpack
from onnxport.errors import GenerationTimeout, OnnxportError

_KEPT_LINES = 20


class Client:
    """One side in its own process; a context manager that ends the process.

    name: what messages call the side.  spec: see `worker`.  timeout: seconds one request may take.  started: by `time.perf_counter`.
    paths: folders put before the worker's module search path, for sides that live outside installed packages.
    python: the interpreter of an environment of the side's own, where onnxport is installed too; None is this one.
    """

    def __init__(
        self, name: str, spec: dict[str, Any], *, timeout: float = 600.0, paths: Iterable[str] = (), python: str | None = None
    ) -> None:
        self.name, self.spec, self.timeout = name, spec, timeout
        self.started = time.perf_counter()
        self._stderr: deque[str] = deque(maxlen=_KEPT_LINES)
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        environment = dict(os.environ, PYTHONIOENCODING="utf-8")
        added = [*paths, *filter(None, [environment.get("PYTHONPATH")])]
        if added:
            environment["PYTHONPATH"] = os.pathsep.join(added)
        self._process = subprocess.Popen(
            [python or sys.executable, "-P", "-m", "onnxport.compare.protocol.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._read_answers, self._read_stderr)]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        """Of the side's process."""
        return self._process.pid

    def load(self) -> dict[str, Any]:
        """Loads the side: {"import_ms", "load_ms", "about"}."""
        result: dict[str, Any] = self.request("load", spec=self.spec)
        return result

    def call(self, method: str, inputs: Any, **options: Any) -> tuple[Any, float]:
        """Outputs of the side's method and the seconds it took."""
        result = self.request(method, inputs=pack(inputs), options=options)
        return unpack(result["outputs"]), result["seconds"]

    def time(self, method: str, inputs: Any, calls: int = 1, **options: Any) -> list[tuple[float, int]]:
        """(seconds, units) of each call; units are new tokens for generate, 1 for run, inputs otherwise."""
        result = self.request("time", method=method, inputs=pack(inputs), calls=calls, options=options)
        return list(zip(result["seconds"], result["units"], strict=True))

    def request(self, op: str, **fields: Any) -> Any:
        """One request and its answer. The worker's error is raised here as the class it had there."""
        try:
            line = json.dumps({"op": op, **fields})
            try:
                self._pipe.write(line + "\n")
                self._pipe.flush()
            except (OSError, ValueError):  # a broken or an already closed pipe
                raise self._died(op) from None
            try:
                answer = self._answers.get(timeout=self.timeout)
            except queue.Empty:
                self.kill()
                raise GenerationTimeout(f"{self.name}: no answer to {op!r} in {self.timeout:g} s; the process was ended") from None
            if answer is None:
                raise self._died(op)
        except BaseException:
            # An interrupted request leaves an answer under way: this process can no longer be asked.
            self.kill()
            raise
        message = json.loads(answer)
        if "error" in message:
            raise _error(self.name, message["error"])
        return message["result"]

    def close(self) -> None:
        """Ends the process; within two seconds politely, then by force."""
        if self._process.poll() is None:
            try:
                self._pipe.write('{"op": "close"}\n')
                self._pipe.close()
                self._process.wait(timeout=2)
            except (OSError, ValueError, subprocess.TimeoutExpired):
                pass
        self.kill()

    def kill(self) -> None:
        """Ends the process by force and frees its pipes; may be called again."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for thread in self._threads:
            thread.join(timeout=2)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            try:
                if stream is not None:
                    stream.close()
            except OSError:
                pass

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, error_class: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill() if error_class else self.close()

    @property
    def _pipe(self) -> Any:
        return self._process.stdin

    def _read_answers(self) -> None:
        try:
            for line in self._process.stdout or ():
                self._answers.put(line)
        except ValueError:
            pass
        self._answers.put(None)

    def _read_stderr(self) -> None:
        try:
            for line in self._process.stderr or ():
                self._stderr.append(line.rstrip())
        except ValueError:
            pass

    def _died(self, op: str) -> OnnxportError:
        try:
            code: int | str = self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            code = "unknown"
        self._threads[1].join(timeout=2)
        last = [line for line in self._stderr if line.strip()][-5:]
        lines = " | ".join(last) or "nothing"
        how = f"was ended by signal {-code}" if isinstance(code, int) and code < 0 else f"ended with status {code}"
        memory = "; signal 9 often means that memory ran out" if code == -9 else ""
        return OnnxportError(f"{self.name}: the process {how} during {op!r}{memory}; its last lines: {lines}")


def _error(side: str, described: dict[str, Any]) -> OnnxportError:
    """The exception of an error that `describe_error` made JSON of, with the worker's traceback as a note."""
    error_class = getattr(errors, described["class"], None)
    message = f"{side}: {described['message']}"
    if isinstance(error_class, type) and issubclass(error_class, OnnxportError):
        error = error_class(message)
    else:
        error = OnnxportError(f"{side}: {described['class']}: {described['message']}")
    if described.get("traceback"):
        error.add_note(described["traceback"])
    return error
