"""Waiting until a side's process is idle.

Threads of some libraries go on spinning when an answer is there: those of ONNX Runtime as it is set up by itself for about 36 ms, of which
the side that runs next would be robbed. Elsewhere than on Linux nobody waits, for it is not known what a process does.
"""

from __future__ import annotations

import time
from pathlib import Path

from onnxport.compare.protocol.client import Client

LOOK_S, MOST_S = 0.001, 0.25
RUNNING = "R"


def wait(side: Client) -> None:
    """Returns when no thread of the side's process computes any more, or after MOST_S seconds."""
    ends = time.monotonic() + MOST_S
    while computes(side.pid) and time.monotonic() < ends:
        time.sleep(LOOK_S)


def computes(pid: int) -> bool:
    """Whether a thread of a process runs, or waits for a processor to run on; False where that cannot be told."""
    try:
        return any(map(_runs, Path(f"/proc/{pid}/task").iterdir()))
    except OSError:
        return False


def _runs(task: Path) -> bool:
    try:
        state = (task / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # it has just ended
        return False
    return state.rpartition(")")[2].split()[:1] == [RUNNING]
