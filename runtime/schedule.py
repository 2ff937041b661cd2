"""Calls from several threads share one batch: whichever of them is there steps it, the others wait for their results.

There is no thread of our own. A call puts its inputs into the queue; one call at a time leads, that is, steps the batch until its own
inputs are done, then hands over. A batch that breaks is given up: the inputs of the other calls start again, the leader's alone.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from onnxport.runtime.batch import Task
from onnxport.runtime.options import Watch

GLANCE = 0.05  # seconds between a waiting call's looks at its own time limit


T = TypeVar("T", bound=Task)


class Steps(Protocol[T]):
    """A batch: takes tasks from a queue and moves them on; returns those that ended."""

    def step(self, waiting: deque[T]) -> list[T]:
        """See the class."""
        ...


class Call(Generic[T]):
    """The tasks of one call. again: makes a task as it was before its first step."""

    def __init__(self, tasks: Sequence[T], again: Callable[[T], T]) -> None:
        self.tasks, self.left, self._again = tasks, len(tasks), again
        self.alone = False  # its batch broke: it goes on by itself

    def restart(self) -> None:
        """Begin again with all that is not done."""
        self.tasks = [task if task.done else self._again(task) for task in self.tasks]
        self.left = sum(not task.done for task in self.tasks)


class Lane(Generic[T]):
    """The shared batch of calls that search alike. make_batch: a new, empty batch."""

    def __init__(self, make_batch: Callable[[], Steps[T]]) -> None:
        self._make_batch = make_batch
        self._batch = make_batch()
        self._waiting: deque[T] = deque()
        self._calls: list[Call[T]] = []
        self._owner: dict[int, Call[T]] = {}
        self._changed = threading.Condition()
        self._leading = False

    @property
    def idle(self) -> bool:
        """True when no call is in it."""
        return not self._calls

    def enter(self, tasks: Sequence[T], again: Callable[[T], T]) -> Call[T]:
        """Queue a call's tasks; `run` must follow."""
        call = Call(tasks, again)
        with self._changed:
            self._calls.append(call)
            self._queue(call)
        return call

    def run(self, call: Call[T], watch: Watch) -> Sequence[T]:
        """The call's tasks, done. Raises what the watch raises and what breaks the batch."""
        try:
            while call.left:
                watch.check()
                if call.alone:
                    return self._alone(call, watch)
                if self._take_lead(call):
                    try:
                        self._lead(call, watch)
                    finally:
                        self._hand_over()
            return call.tasks
        finally:
            with self._changed:
                self._calls.remove(call)
                for task in call.tasks:
                    self._owner.pop(id(task), None)
                    task.drop()
                self._changed.notify_all()

    def _queue(self, call: Call[T]) -> None:
        self._owner |= {id(task): call for task in call.tasks}
        self._waiting.extend(task for task in call.tasks if not task.done)

    def _take_lead(self, call: Call[T]) -> bool:
        with self._changed:
            if self._leading:
                self._changed.wait_for(lambda: not self._leading or not call.left or call.alone, GLANCE)
            if self._leading or not call.left or call.alone:
                return False
            self._leading = True
            return True

    def _hand_over(self) -> None:
        with self._changed:
            self._leading = False
            self._changed.notify_all()

    def _lead(self, call: Call[T], watch: Watch) -> None:
        while call.left:
            watch.check()
            try:
                ended = self._batch.step(self._waiting)
            except BaseException as error:
                shared = self._break_up(call)
                if shared and isinstance(error, Exception):
                    call.alone = True
                    return
                raise
            if ended:
                with self._changed:
                    owners = [self._owner.get(id(task)) for task in ended]
                    for owner in owners:
                        if owner is not None:
                            owner.left -= 1
                    if any(owner is not None and owner is not call and not owner.left for owner in owners):
                        self._changed.notify_all()

    def _break_up(self, leader: Call[T]) -> bool:
        """Give up the batch; True when others had inputs in it, which start again."""
        with self._changed:
            others = [call for call in self._calls if call is not leader and not call.alone]
            self._batch, self._waiting, self._owner = self._make_batch(), deque(), {}
            for call in others:
                call.restart()
                self._queue(call)
            return bool(others)

    def _alone(self, call: Call[T], watch: Watch) -> Sequence[T]:
        """The call's inputs in a batch of their own: what fails now is their own fault."""
        call.restart()
        batch, waiting = self._make_batch(), deque(task for task in call.tasks if not task.done)
        left = len(waiting)
        while left:
            watch.check()
            left -= len(batch.step(waiting))
        return call.tasks
