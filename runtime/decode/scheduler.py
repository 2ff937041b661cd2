"""Calls from several threads share one batch: whichever of them is there steps it, the others wait for what comes of their inputs.

No thread is started for this, but for calls whose caller cannot wait, see `follow`. A call puts its inputs into the queue; one call at a
time leads, that is, steps the batch until it has what it waits for, then hands over. A batch that breaks is given up: the inputs of the
other calls go on in a new one, the leader's alone.

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
    """The decodings of one call in a shared batch.

    again: makes of a decoding one that can begin in another batch. each_step: the call wants to know of every step, not of its end alone.
    moved: called then, by whoever leads; it must return at once.
    """

    def __init__(
        self,
        decodings: Sequence[T],
        again: Callable[[T], T],
        each_step: bool = False,
        moved: Callable[[], None] | None = None,
    ) -> None:
        self.decodings, self.left, self._again = decodings, len(decodings), again
        self.each_step, self.moved = each_step, moved
        self.alone = False  # its batch broke: it goes on by itself
        self.gone = False  # it has left, or leaves after the step that it leads
        self.error: BaseException | None = None  # what ended a call that is followed
        self._own: tuple[Steps[T], deque[T]] | None = None

    def restart(self) -> None:
        """Begin again with all that is not done."""
        self.decodings = [decoding if decoding.done else self._again(decoding) for decoding in self.decodings]
        self.left = sum(not decoding.done for decoding in self.decodings)

    def step_alone(self, make_batch: Callable[[], Steps[T]]) -> None:
        """A step of the call's inputs in a batch of their own: what fails now is their own fault."""
        if self._own is None:
            self.restart()
            self._own = make_batch(), deque(decoding for decoding in self.decodings if not decoding.done)
        else:
            batch, waiting = self._own
            self.left -= len(batch.step(waiting))


def _never() -> bool:
    return False


class SharedBatch(Generic[T]):
    """The batch of all calls that search alike. make_batch: makes a new, empty one."""

    def __init__(self, make_batch: Callable[[], Steps[T]]) -> None:
        self._make_batch = make_batch
        self._calls: list[SharedCall[T]] = []
        self._leader: SharedCall[T] | None = None
        self._leading_thread = 0
        self._followed: deque[tuple[SharedCall[T], Watch]] = deque()
        self._follower: threading.Thread | None = None
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

    def enter(
        self,
        decodings: Sequence[T],
        again: Callable[[T], T],
        each_step: bool = False,
        moved: Callable[[], None] | None = None,
    ) -> SharedCall[T]:
        """Queue a call's decodings, see SharedCall; `run` must follow, or `leave` after all else."""
        call = SharedCall(decodings, again, each_step, moved)
        with self._changed:
            self._calls.append(call)
            self._queue(call)
        return call

    def run(self, call: SharedCall[T], watch: Watch) -> Sequence[T]:
        """The call's decodings, done. Raises what the watch raises and what breaks the batch."""
        try:
            self.advance(call, watch)
            return call.decodings
        finally:
            self.leave(call)

    def advance(self, call: SharedCall[T], watch: Watch, until: Callable[[], bool] = _never) -> None:
        """Step, or wait for others' steps, until the call's decodings are done or `until` holds. Raises as `run`; `leave` must follow."""
        watch.check()
        while call.left and not call.gone and not until():
            watch.check()
            if call.alone:
                call.step_alone(self._make_batch)
                self._tell(call)
            elif self._take_lead(call, until):
                self._lead(call, watch, until)

    def follow(self, call: SharedCall[T], watch: Watch) -> None:
        """Have a thread step for a call whose caller does not wait; it ends with the last such call. `error` is what `run` would raise."""
        with self._changed:
            self._followed.append((call, watch))
            if self._follower is None:
                self._follower = threading.Thread(target=self._run_followed, name="onnxport steps", daemon=True)
                self._follower.start()

    def _run_followed(self) -> None:
        while True:
            with self._changed:
                if not self._followed:
                    self._follower = None
                    return
                call, watch = self._followed.popleft()
            try:
                self.advance(call, watch)
            except BaseException as error:  # the call's, whatever it is: its caller raises it
                call.error = error
            self._tell(call)

    def leave(self, call: SharedCall[T]) -> None:
        """Whatever happened: others go on without this call, and a batch that nobody is in any more keeps no memory. Twice does no harm."""
        with self._changed:
            call.gone = True
            # While another thread leads for the call, that one takes it out, after its step.
            if not (self._leader is call and self._leading_thread != threading.get_ident()):
                self._remove(call)

    def _remove(self, call: SharedCall[T]) -> None:
        with self._changed:
            if call not in self._calls:
                return
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

    def _take_lead(self, call: SharedCall[T], until: Callable[[], bool]) -> bool:
        def over() -> bool:
            return not call.left or call.alone or call.gone or until()

        with self._changed:
            if self._leader is not None:
                self._changed.wait_for(lambda: self._leader is None or over(), WAIT_SECONDS)
            if self._leader is not None or over():
                return False
            self._leader, self._leading_thread = call, threading.get_ident()
            return True

    def _lead(self, call: SharedCall[T], watch: Watch, until: Callable[[], bool]) -> None:
        """Step until the call has what it waits for, or a broken batch sends it on alone."""
        try:
            while call.left and not call.gone and not until():
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
        finally:
            with self._changed:
                self._leader = None
                if call.gone:
                    self._remove(call)
                self._changed.notify_all()

    def _count(self, ended: Sequence[T], leader: SharedCall[T]) -> None:
        """Take what ended off its calls, and wake those that have all or want to know of each step."""
        with self._changed:
            wake = False
            for decoding in ended:
                if (owner := self._owner.get(id(decoding))) is not None:
                    owner.left -= 1
                    wake = wake or (owner is not leader and not owner.left)
            for call in self._calls:
                if call.each_step or not call.left:
                    self._tell(call)
                    wake = wake or call is not leader
            if wake:
                self._changed.notify_all()

    @staticmethod
    def _tell(call: SharedCall[T]) -> None:
        if call.moved is not None:
            call.moved()

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
