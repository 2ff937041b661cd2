"""Calls from several threads share one batch: whichever of them is there steps it, the others wait for their results.

No thread is started for this. A call puts its inputs into the queue; one call at a time leads, that is, steps the batch until its own
inputs are done, then hands over. A batch that breaks is given up: the inputs of the other calls start again, the leader's alone.

Only the leader touches the batch and what waits for it. A call that leaves early never changes them under a step: the leader drops its
inputs before the next one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from onnxport.runtime.decode.batch import Decoding
from onnxport.runtime.options import Watch

WAIT_SECONDS = 0.05  # after which a waiting call looks at its own time limit


T = TypeVar("T", bound=Decoding)


class Steps(Protocol[T]):
    """What is shared: a batch."""

    def step(self, waiting: deque[T]) -> list[T]:
        """Take decodings from `waiting`, move them a token on and return those that ended."""
        ...


class SharedCall(Generic[T]):
    """The decodings of one call in a shared batch. again: makes a decoding as it was before its first step."""

    def __init__(self, decodings: Sequence[T], again: Callable[[T], T]) -> None:
        self.decodings, self.left, self._again = decodings, len(decodings), again
        self.alone = False  # its batch broke: it goes on by itself

    def restart(self) -> None:
        """Begin again with all that is not done."""
        self.decodings = [decoding if decoding.done else self._again(decoding) for decoding in self.decodings]
        self.left = sum(not decoding.done for decoding in self.decodings)


class SharedBatch(Generic[T]):
    """The batch of all calls that search alike. make_batch: makes a new, empty one."""

    def __init__(self, make_batch: Callable[[], Steps[T]]) -> None:
        self._make_batch = make_batch
        self._calls: list[SharedCall[T]] = []
        self._leader: SharedCall[T] | None = None
        self._changed = threading.Condition()  # of an RLock: what holds it may call what takes it
        self._clear()

    def _clear(self) -> None:
        self._batch: Steps[T] | None = None
        self._waiting: deque[T] = deque()
        self._owner: dict[int, SharedCall[T]] = {}
        self._left_early: list[SharedCall[T]] = []
        self._entered = 0  # calls that had inputs in this batch: with one alone, what breaks it is that call's own fault

    @property
    def idle(self) -> bool:
        """True when no call is in it."""
        return not self._calls

    def enter(self, decodings: Sequence[T], again: Callable[[T], T]) -> SharedCall[T]:
        """Queue a call's decodings; `run` must follow."""
        call = SharedCall(decodings, again)
        with self._changed:
            self._calls.append(call)
            self._queue(call)
        return call

    def run(self, call: SharedCall[T], watch: Watch) -> Sequence[T]:
        """The call's decodings, done. Raises what the watch raises and what breaks the batch."""
        try:
            while call.left:
                watch.check()
                if call.alone:
                    return self._alone(call, watch)
                if self._take_lead(call):
                    self._lead(call, watch)
            return call.decodings
        finally:
            self._leave(call)

    def _leave(self, call: SharedCall[T]) -> None:
        """Whatever happened: others go on without this call, and a batch that nobody is in any more keeps no memory."""
        with self._changed:
            if self._leader is call:
                self._leader = None
            self._calls.remove(call)
            for decoding in call.decodings:
                self._owner.pop(id(decoding), None)
            self._left_early.append(call)
            if self._leader is None:
                self._drop()
            if not self._calls:
                self._clear()
            self._changed.notify_all()

    def _drop(self) -> None:
        """Give up the inputs of calls that have left; nobody steps the batch meanwhile."""
        with self._changed:
            gone, self._left_early = self._left_early, []
            for call in gone:
                for decoding in call.decodings:
                    decoding.drop()
            if gone:
                self._waiting = deque(decoding for decoding in self._waiting if not decoding.done)

    def _queue(self, call: SharedCall[T]) -> None:
        self._entered += 1
        self._owner |= {id(decoding): call for decoding in call.decodings}
        self._waiting.extend(decoding for decoding in call.decodings if not decoding.done)

    def _take_lead(self, call: SharedCall[T]) -> bool:
        with self._changed:
            if self._leader is not None:
                self._changed.wait_for(lambda: self._leader is None or not call.left or call.alone, WAIT_SECONDS)
            if self._leader is not None or not call.left or call.alone:
                return False
            self._leader = call
            return True

    def _lead(self, call: SharedCall[T], watch: Watch) -> None:
        """Step until the call's inputs are done, or a broken batch sends it on alone."""
        while call.left:
            watch.check()
            self._drop()
            try:
                self._batch = self._batch or self._make_batch()
                self._count(self._batch.step(self._waiting), call)
            except BaseException as error:
                shared = self._break_up(call)
                if shared and isinstance(error, Exception):
                    call.alone = True
                    break
                raise
        with self._changed:
            self._leader = None
            self._changed.notify_all()

    def _count(self, ended: Sequence[T], leader: SharedCall[T]) -> None:
        """Take what ended off its calls, and wake those that have all."""
        if not ended:
            return
        with self._changed:
            owners = [owner for decoding in ended if (owner := self._owner.get(id(decoding))) is not None]
            for owner in owners:
                owner.left -= 1
            if any(owner is not leader and not owner.left for owner in owners):
                self._changed.notify_all()

    def _break_up(self, leader: SharedCall[T]) -> bool:
        """Give up the batch; True when others had inputs in it. Those that have not left meanwhile start again."""
        with self._changed:
            shared = self._entered > 1
            self._drop()
            self._clear()
            for call in self._calls:
                if call is not leader and not call.alone:
                    call.restart()
                    self._queue(call)
            return shared

    def _alone(self, call: SharedCall[T], watch: Watch) -> Sequence[T]:
        """The call's inputs in a batch of their own: what fails now is their own fault."""
        call.restart()
        batch, waiting = self._make_batch(), deque(decoding for decoding in call.decodings if not decoding.done)
        left = len(waiting)
        while left:
            watch.check()
            left -= len(batch.step(waiting))
        return call.decodings
