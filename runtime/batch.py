"""Who is in a batch: tasks that come from a queue, take places as others are done, and leave a smaller batch behind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from typing import Generic, Protocol, TypeVar

from onnxport.runtime.engine import Engine
from onnxport.runtime.job import Job
from onnxport.runtime.options import Search
from onnxport.runtime.running import Running
from onnxport.runtime.sources import Sources, together


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


T = TypeVar("T", bound=Task)


class Batch(ABC, Generic[T]):
    """Tasks that decode together, as many as `search.batch_size`: `_tasks` by place, each with `_running.beams` rows."""

    def __init__(self, engine: Engine, search: Search) -> None:
        self._engine, self._search = engine, search
        self._sources: Sources[T] = Sources(engine)
        self._tasks: list[T] = []
        self._running: Running | None = None

    def step(self, waiting: deque[T]) -> list[T]:
        """Take tasks from `waiting` while there is room, and move each one token on; returns those that ended."""
        self._admit(waiting)
        return [] if self._running is None else self._move(self._running)

    @abstractmethod
    def _move(self, running: Running) -> list[T]:
        """One token more for every task; those that ended."""

    @abstractmethod
    def _vacant(self, like: T) -> T:
        """A task that is done, to stand in an empty place."""

    @abstractmethod
    def _renewed(self, running: Running) -> None:
        """The number of rows is another: choose from new logits."""

    def _enter(self, task: T, beams: int) -> None:
        """A task gets its rows."""

    def _width(self, tasks: list[T]) -> int:
        """Rows a task starts with."""
        return 1

    def _admit(self, waiting: deque[T]) -> None:
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

    def _start(self, waiting: deque[T]) -> None:
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
