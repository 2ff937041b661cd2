"""Inputs on their way into a batch: their sources are encoded some at a time, ahead of their turn, like lengths together."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import takewhile
from typing import Generic, Protocol, TypeVar

from onnxport.runtime.engine import Cross, Engine
from onnxport.runtime.job import Job
from onnxport.runtime.running import Encoded

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
        size = AHEAD if self._engine.device == "cpu" else count
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
