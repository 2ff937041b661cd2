"""A model that crossed a fork says so, and never waits for threads that stayed in the parent."""

import gc
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onnxport.runtime import load

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def child(work: Callable[[], None]) -> str:
    """What `work` raised in a forked child, or "" ; the child is killed when it hangs."""
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        said = ""
        try:
            work()
        except BaseException as e:
            said = f"{type(e).__name__}: {e}"
        finally:
            os.write(writing, said.encode())
            os._exit(0)
    os.close(writing)
    end = time.monotonic() + 30
    while os.waitpid(process, os.WNOHANG) == (0, 0):
        if time.monotonic() > end:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            pytest.fail("the child hangs")
        time.sleep(0.01)
    with os.fdopen(reading) as said_by_child:
        return said_by_child.read()


def test_a_forked_child_neither_hangs_nor_answers(tiny_bundle: Path) -> None:
    held = [load(tiny_bundle, threads=2)]
    stream = held[0].stream("w5 w6", min_new_tokens=9, max_new_tokens=9)
    next(stream)
    assert child(held[0].close) == ""
    assert child(lambda: held.clear() or gc.collect()) == ""  # type: ignore[func-returns-value]
    calls_of_the_child: list[Callable[[], Any]] = [
        lambda: held[0].generate("w5"), lambda: held[0].stream("w5"), lambda: held[0].tokenize("w5"), lambda: next(stream),
    ]  # fmt: skip
    for call in calls_of_the_child:
        assert child(call).startswith("UsageError: this model was loaded in process")
    assert held[0].generate("w5 w6", min_new_tokens=9, max_new_tokens=9)  # the parent goes on
    assert list(stream)
