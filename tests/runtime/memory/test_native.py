"""The interpreter may leave while daemon threads answer: the process ends quietly, and what is registered for its end still answers."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from onnxport.runtime.memory.native import NativeCalls

BEGIN = "import atexit, os, sys, threading, time\nfrom onnxport.runtime import load\npath = sys.argv[1]\n"
SERVE = """
def serve():
    while True:
        {work}
for _ in range(3):
    threading.Thread(target=serve, daemon=True).start()
time.sleep(0.3)
"""
WORK = {
    "generate": "model.generate([[5, 9, 33]], min_new_tokens=40, max_new_tokens=40)",
    "texts": "model.generate('w5 w9 w33', beam=3, min_new_tokens=40, max_new_tokens=40)",
    "stream": "list(model.stream('w5 w9 w33', min_new_tokens=40, max_new_tokens=40))",
    "tokenize": "model.tokenize('w5 w9 w33 ' * 2000)",
    "load": "load(path, threads=2)",
}


def run(code: str, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BEGIN + code, str(path)], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("work", WORK)
def test_the_interpreter_leaves_while_daemon_threads_work(work: str, tiny_bundle: Path) -> None:
    for _ in range(2):
        done = run("model = load(path, threads=2)\n" + SERVE.format(work=WORK[work]), tiny_bundle)
        assert (done.returncode, done.stderr) == (0, "")


def test_what_an_application_registers_for_its_end_can_use_its_model(tiny_bundle: Path) -> None:
    last = "model = load(path, threads=1)\n"
    last += "atexit.register(lambda: print(len(model.generate([[5, 9]], min_new_tokens=7, max_new_tokens=7)[0].tokens)))\n"
    done = run(last + SERVE.format(work=WORK["generate"]), tiny_bundle)
    assert (done.returncode, done.stdout, done.stderr) == (0, "7\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_waits_for_no_thread_of_its_parent(tiny_bundle: Path) -> None:
    code = (
        SERVE.format(work=WORK["generate"]) + "child = os.fork()\nif child:\n    print(os.waitpid(child, 0)[1])\nelse:\n    sys.exit(0)\n"
    )
    done = run("model = load(path, threads=1)\n" + code, tiny_bundle)
    assert (done.returncode, done.stdout.split()[-1:], done.stderr) == (0, ["0"], "")


def test_the_exit_waits_for_a_call_and_lets_no_other_in() -> None:
    native, inside, leave, seen = NativeCalls(), threading.Event(), threading.Event(), []

    def call() -> None:
        with native:
            inside.set()
            leave.wait(30)
        seen.append("left")

    def late() -> None:
        with pytest.raises(SystemExit), native:
            seen.append("came in")

    first = threading.Thread(target=call, daemon=True)
    first.start()
    assert inside.wait(30)
    exiting = threading.Thread(target=lambda: (native.finish(), seen.append("finished")), daemon=True)
    exiting.start()
    exiting.join(0.2)
    assert exiting.is_alive() and seen == []
    second = threading.Thread(target=late, daemon=True)
    second.start()
    second.join(30)
    assert seen == []
    leave.set()
    for thread in (first, exiting):
        thread.join(30)
        assert not thread.is_alive()
    assert sorted(seen) == ["finished", "left"]
    native.forked()
    with native:
        pass
    native.finish()
