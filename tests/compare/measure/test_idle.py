"""A side that goes on computing after its answer is waited for, up to a limit."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from onnxport.compare.measure import idle
from onnxport.compare.measure.timing import alternate

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no /proc tells what a process does")
SPIN = "print('begun', flush=True)\nwhile True: pass"
SLEEP = "import time\nprint('begun', flush=True)\ntime.sleep(600)"


@pytest.fixture(params=[SPIN, SLEEP], ids=["spins", "sleeps"])
def process(request: pytest.FixtureRequest):
    with subprocess.Popen([sys.executable, "-c", request.param], stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None and running.stdout.readline() == "begun\n"
            yield running, request.param == SPIN
        finally:
            running.kill()


def test_a_process_that_spins_computes(process) -> None:
    running, spins = process
    deadline = time.monotonic() + 30
    while idle.computes(running.pid) != spins and time.monotonic() < deadline:  # it may be about to sleep
        time.sleep(0.01)
    assert idle.computes(running.pid) == spins


def test_a_process_that_spins_is_waited_for_up_to_a_limit(process, monkeypatch: pytest.MonkeyPatch) -> None:
    running, spins = process
    deadline = time.monotonic() + 30
    while idle.computes(running.pid) != spins and time.monotonic() < deadline:
        time.sleep(0.01)
    monkeypatch.setattr(idle, "MOST_S", 0.5 if spins else 60.0)
    begun = time.monotonic()
    idle.wait(SimpleNamespace(pid=running.pid))
    waited = time.monotonic() - begun
    assert waited >= 0.5 if spins else waited < 30


def test_a_process_that_has_ended_is_idle() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as running:
        running.wait()
    assert not idle.computes(running.pid)


def test_each_of_several_sides_is_waited_for() -> None:
    waited: list[str] = []
    alternate({"a": "A", "b": "B"}, lambda side, number: (1.0, 1), rounds=2, warm_up=1, after=waited.append)
    assert sorted(waited) == ["A"] * 3 + ["B"] * 3
    alternate({"a": "A"}, lambda side, number: (1.0, 1), rounds=2, after=lambda side: pytest.fail("nobody runs next"))
