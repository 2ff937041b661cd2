"""Calls into native code without Python's lock: none is under way when the interpreter is taken down.

Python ends a thread that comes back from such a call after that, in the middle of C++ or Rust, which takes the whole process with it
(SIGABRT). Only daemon threads can: the others are joined before. So the last thing that happens at exit is to let no new call in, and to
wait for those that are under way: a step of a model, the tokenizing of some texts.
"""

from __future__ import annotations

import atexit
import os
import threading
from types import TracebackType

LONGEST_WAIT = 60.0  # seconds; an end that never comes would be worse


class NativeCalls:
    """A context manager around every such call. After the exit has begun it ends the thread that comes (SystemExit, which is quiet).

    The main thread is neither counted nor ended: it is the one that exits.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._running, self._exiting = 0, False

    def __enter__(self) -> None:
        if _on_main_thread():
            return
        with self._changed:
            if self._exiting:
                raise SystemExit
            self._running += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if _on_main_thread():
            return
        with self._changed:
            self._running -= 1
            if self._exiting:
                self._changed.notify_all()

    def finish(self) -> None:
        """Let no new call in and wait for those that are under way."""
        with self._changed:
            self._exiting = True
            self._changed.wait_for(lambda: self._running <= 0, LONGEST_WAIT)

    def forked(self) -> None:
        """The calls of other threads stayed in the parent."""
        self._reset()


def _on_main_thread() -> bool:
    return threading.get_ident() == threading.main_thread().ident


native = NativeCalls()
atexit.register(native.finish)  # at import: what an application registers later runs before, and can still use its models
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=native.forked)
