"""One input of a call, ready to be searched."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Generic, Protocol, TypeVar

from onnxport.runtime.decode.cache import Cross
from onnxport.runtime.decode.engine import Engine
from onnxport.runtime.decode.state import Encoded, Running
from onnxport.runtime.options import Search


@dataclass(frozen=True)
class Job:
    """Its place in the call, source ids (seq2seq), the ids decoding starts from, and the most new tokens."""

    index: int
    source: Sequence[int]
    prefix: Sequence[int]
    limit: int


AHEAD = 16  # sources an encoder takes at once: enough to be efficient, few enough to keep their keys and values small


class Item(Protocol):
    """What waits: something with a job, and perhaps given up meanwhile."""

    @property
    def job(self) -> Job:
        """What is to be done."""
        ...

    @property
    def done(self) -> bool:
        """True when nothing more is to come."""
        ...


T = TypeVar("T", bound=Item)
Taken = tuple[T, Encoded | None]


class Sources(Generic[T]):
    """Encoded inputs, in the order of the queue they came from."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._ready: deque[Taken[T]] = deque()

    def take(self, waiting: deque[T], count: int) -> list[Taken[T]]:
        """Up to `count` inputs with their sources (None where the model has no encoder); those that were given up are left out.

        TextError: see Engine.encode.
        """
        taken: list[Taken[T]] = []
        while len(taken) < count and (self._ready or self._fill(waiting, count)):
            one = self._ready.popleft()
            if not one[0].done:
                taken.append(one)
        return taken

    def _fill(self, waiting: deque[T], count: int) -> bool:
        """Encode the next inputs; False when there are none."""
        # Rows on a device cannot be moved one by one: what is wanted there is encoded at once, and nothing else.
        size = AHEAD if self._engine.device.host_memory else count
        group: list[T] = []
        while waiting and len(group) < size:
            item = waiting.popleft()
            if not item.done:
                group.append(item)
        if self._engine.encoder is None:
            self._ready.extend((item, None) for item in group)
        elif group:
            cross = self._engine.encode([item.job.source for item in group])
            self._ready.extend((item, (cross, i)) for i, item in enumerate(group))
        return bool(group)

    def can_join(self, waiting: deque[T], most: int) -> int:
        """How many of the next `most` inputs can join a batch that runs: those that decode from a single token."""
        if not self._engine.joins:
            return 0
        # By index: another thread may append to the queue meanwhile, which an iterator does not bear.
        coming = [item for item, _ in self._ready] + [waiting[i] for i in range(min(most, len(waiting)))]
        return sum(1 for _ in takewhile(lambda item: len(item.job.prefix) == 1, coming[:most]))


def together(encoded: Sequence[Encoded | None]) -> Cross | None:
    """The sources as one Cross, copied only where they are not one already."""
    found = [one for one in encoded if one is not None]
    if not found:
        return None
    first = found[0][0]
    if len(found) == len(first.mask) and all(cross is first and index == i for i, (cross, index) in enumerate(found)):
        return first
    result = first.room(len(found), max(int(cross.mask[index].sum()) for cross, index in found))
    for place, (cross, index) in enumerate(found):
        result.put(place, cross, index)
    return result


class Task(Protocol):
    """One input on its way to an answer."""

    @property
    def job(self) -> Job:
        """What is to be done."""
        ...

    @property
    def done(self) -> bool:
        """True when nothing more is to come."""
        ...

    def drop(self) -> None:
        """Give up: no more steps for it."""
        ...


TaskT = TypeVar("TaskT", bound=Task)


class Batch(ABC, Generic[TaskT]):
    """Tasks that decode together, as many as `search.batch_size`: `_tasks` by place, each with `_running.beams` rows."""

    def __init__(self, engine: Engine, search: Search) -> None:
        self._engine, self._search = engine, search
        self._sources: Sources[TaskT] = Sources(engine)
        self._tasks: list[TaskT] = []
        self._running: Running | None = None

    def step(self, waiting: deque[TaskT]) -> list[TaskT]:
        """Take tasks from `waiting` while there is room, and move each one token on; returns those that ended."""
        self._admit(waiting)
        return [] if self._running is None else self._move(self._running)

    @abstractmethod
    def _move(self, running: Running) -> list[TaskT]:
        """One token more for every task; those that ended."""

    @abstractmethod
    def _vacant(self, like: TaskT) -> TaskT:
        """A task that is done, to stand in an empty place."""

    @abstractmethod
    def _renewed(self, running: Running) -> None:
        """The number of rows is another: choose from new logits."""

    def _enter(self, task: TaskT, beams: int) -> None:
        """A task gets its rows."""

    def _width(self, tasks: list[TaskT]) -> int:
        """Rows a task starts with."""
        return 1

    def _admit(self, waiting: deque[TaskT]) -> None:
        free = [place for place, task in enumerate(self._tasks) if task.done]
        live, most = len(self._tasks) - len(free), self._search.batch_size
        if not live or self._running is None:
            self._start(waiting)
            return
        running = self._running
        if joining := self._sources.can_join(waiting, most - live):
            if joining > len(free):
                free += range(len(self._tasks), live + joining)
                self._tasks += [self._vacant(self._tasks[0]) for _ in range(live + joining - len(self._tasks))]
                running.widen(len(self._tasks))
                self._renewed(running)
            taken = self._sources.take(waiting, joining)
            places = free[: len(taken)]
            for place, (task, _) in zip(places, taken, strict=True):
                self._enter(task, running.beams)
                self._tasks[place] = task
            running.join(places, [task.job.prefix[0] for task, _ in taken], [e for _, e in taken if e is not None])
        elif 4 * live <= 3 * len(self._tasks):  # rows that are done cost as much as others: go on without them
            order = running.keep([place for place, task in enumerate(self._tasks) if not task.done])
            self._tasks = [self._tasks[place] for place in order]
            self._renewed(running)

    def _start(self, waiting: deque[TaskT]) -> None:
        taken = self._sources.take(waiting, self._search.batch_size)
        self._tasks, self._running = [task for task, _ in taken], None
        if not taken:
            return
        width = self._width(self._tasks)
        prefixes = [task.job.prefix for task in self._tasks for _ in range(width)]
        new = max(task.job.limit for task in self._tasks)
        self._running = Running(self._engine, together([e for _, e in taken]), prefixes, new, width)
        for task in self._tasks:
            self._enter(task, width)
        self._renewed(self._running)
