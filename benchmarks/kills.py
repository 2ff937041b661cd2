"""Kills commands at random moments and looks what is left: python benchmarks/kills.py [--kills 200] [--seed 0] [--out FILE]

`export`, `quantize`, `compare` and `run`, each with --force over an earlier output, of a tiny module. Half of the kills come at a random
moment of the whole command, half within 30 ms after the output that is in the making has its last file, around the exchange. After each the
earlier output or the new one must be there, whole: a bundle with all its hashes right, a report of one comparison, an .npz that is read to
its end. In the end every command runs once more, and nothing but the outputs may be left.
Every command runs in a child of this process, which has the large packages imported, so that a kill meets work and not imports. What was
imported stays, and processes that a command starts import anew: leave the code alone meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

SOURCE = """
import torch
from onnxport.export import Module

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = torch.nn.Linear(8, 300), torch.nn.Linear(300, 4)

    def forward(self, x):
        return self.two(torch.relu(self.one(x)))

def build():
    torch.manual_seed(0)
    return Module(Net(), inputs={"x": torch.rand(3, 8)}, dynamic={"x": {0: "batch"}}, outputs=["y"])
"""
COMMANDS = {
    "export": ["export", "killed_module:build", "--out", "bundle", "--precision", "fp32,int8-weight", "--force", "-q"],
    "quantize": ["quantize", "bundle", "--precision", "int8-weight", "--force", "-q"],
    "compare": ["compare", "bundle", "--batch", "1", "--out", "report", "--force", "-q"],
    "run": ["run", "bundle", "--npz", "in.npz", "--out", "out.npz", "--force", "-q"],
}
LAST = {
    "export": ".bundle.*.part/*/bundle.json",
    "quantize": ".bundle.*.part/*/bundle.json",
    "compare": ".report.*.part/*/report.html",
    "run": ".out.npz.*.part/*",
}
GATES = itertools.count(100_000_001)
OUTPUTS = {"killed_module.py", "in.npz", "bundle", "report", "out.npz"}


def child(name: str) -> int:
    """The command in a child process; its id. Every comparison has a gate of its own, which all files of its report name."""
    gate = ["--gate", f"fp32.load_ms<={next(GATES)}"] if name == "compare" else []
    if number := os.fork():
        return number
    code = 1
    try:
        os.setsid()  # its own children are killed with it
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(os.open("said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        from onnxport.cli import commands

        sys.argv = ["onnxport", *COMMANDS[name], *gate]
        commands.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        os._exit(code)


def ended(number: int, until: float) -> int | None:
    """The status of a child; None when it is still there at `until` (time.monotonic)."""
    while True:
        found, status = os.waitpid(number, os.WNOHANG)
        if found:
            return status
        if time.monotonic() >= until:
            return None
        time.sleep(0.001)


def last_files(name: str) -> set[Path]:
    """The last files of outputs in the making; a folder may go while they are looked for."""
    with contextlib.suppress(FileNotFoundError):
        return set(Path().glob(LAST[name]))
    return set()


def said(name: str, status: int) -> str:
    """How a command ended that was not killed."""
    return f"{name} ended by itself with exit code {os.waitstatus_to_exitcode(status)}: {Path('said').read_text()[-2000:].strip()}"


def kill(name: str, draw: random.Random, seconds: float) -> str | None:
    """Starts a command and kills it. None where it was still there to be killed, else "", or what it said where it failed."""
    number, began = child(name), time.monotonic()
    status = None
    if draw.random() < 0.5:
        status = ended(number, began + draw.random() * seconds)
    else:
        before = last_files(name)  # of commands killed earlier
        while status is None and not last_files(name) - before and time.monotonic() < began + 20 * seconds:
            status = ended(number, time.monotonic() + 0.001)
        status = status if status is not None else ended(number, time.monotonic() + draw.random() * 0.03)
    if status is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(number, signal.SIGKILL)
        os.kill(number, signal.SIGKILL)
        os.waitpid(number, 0)
        return None
    return said(name, status) if status else ""


def wrong(name: str) -> str | None:
    """What is not whole of a command's output; None when all is."""
    import numpy as np

    from onnxport.runtime.bundle.reader import Bundle

    try:
        if name in ("export", "quantize"):
            Bundle.open("bundle", verify=True)
        elif name == "compare":
            files = {ending: Path(f"report/report.{ending}").read_text() for ending in ("json", "md", "html", "xml")}
            gate = json.loads(files["json"])["gates"][0]["expr"]
            number = gate.rpartition("=")[2]
            if not all(number in text for text in files.values()):
                return f"the files of the report are of different comparisons, report.json of {gate}"
        else:
            with np.load("out.npz") as arrays:
                assert {key: arrays[key].shape for key in arrays.files} == {"y": (2, 4)}
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def run_all() -> dict[str, float]:
    """Every command once, to its end: seconds by name."""
    taken = {}
    for name in COMMANDS:
        began = time.monotonic()
        if status := ended(child(name), began + 600):
            raise SystemExit(said(name, status))
        taken[name] = time.monotonic() - began
    return taken


def main() -> int:
    """Prints a line for each fault and one at the end; exit code 1 when anything was half or left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    options = parser.parse_args()
    out = options.out.absolute() if options.out else None
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import numpy as np
    import onnxscript  # noqa: F401
    import torch
    import torch.onnx  # noqa: F401
    import transformers  # noqa: F401

    draw, faults, killed, finished = random.Random(options.seed), list[str](), Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="kills-") as work, contextlib.chdir(work):
        sys.path.insert(0, work)
        os.environ["PYTHONPATH"] = os.pathsep.join([work, *filter(None, [os.environ.get("PYTHONPATH")])])
        Path("killed_module.py").write_text(SOURCE)
        np.savez("in.npz", x=np.zeros((2, 8), np.float32))
        seconds = run_all()
        print("seconds a command:", ", ".join(f"{name} {value:.1f}" for name, value in seconds.items()), flush=True)
        while sum(killed.values()) < options.kills:
            name = draw.choices(list(COMMANDS), (1, 5, 2, 4))[0]  # an export takes longest
            end = kill(name, draw, seconds[name])
            (killed if end is None else finished)[name] += 1
            if end:
                faults.append(f"after kill {sum(killed.values())}: {end}")
                print(faults[-1], flush=True)
            if out:
                out.write_text(json.dumps({"killed": dict(killed), "findings": faults}) + "\n")
            for output in COMMANDS:
                if fault := wrong(output):
                    faults.append(f"after kill {sum(killed.values())}, of {name}: {output}: {fault}")
                    print(faults[-1], flush=True)
        run_all()
        left = sorted({path.name for path in Path().iterdir()} - OUTPUTS - {"__pycache__", "said"})
    result: dict[str, Any] = {
        "seed": options.seed, "killed": dict(killed), "ended before the kill": dict(finished), "findings": faults, "left": left,
    }  # fmt: skip
    print(json.dumps(result), flush=True)
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n")
    return bool(faults or left)


if __name__ == "__main__":
    sys.exit(main())
