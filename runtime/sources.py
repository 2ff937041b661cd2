"""Inputs on their way into a batch: their sources are encoded some at a time, ahead of their turn, like lengths together."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import chain, islice, takewhile
from typing import Generic, Protocol, TypeVar

from onnxport.runtime.engine import Cross, Engine
from onnxport.runtime.job import Job
from onnxport.runtime.running import Encoded

AHEAD = 16  # sources an encoder takes at once: enough to be efficient, few enough to keep their keys and values small


class Item(Protocol):
    """What waits: something with a job."""

    @property
    def job(self) -> Job:
        """What is to be done."""
        ...


T = TypeVar("T", bound=Item)
Taken = tuple[T, Encoded | None]


class Sources(Generic[T]):
    """Encoded inputs, in the order of the queue they came from."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._ready: deque[Taken[T]] = deque()

    def __len__(self) -> int:
        return len(self._ready)

    def take(self, waiting: deque[T], count: int) -> list[Taken[T]]:
        """Up to `count` inputs with their sources (None where the model has no encoder). TextError: see Engine.encode."""
        while len(self._ready) < count and waiting:
            # Rows on a device cannot be moved one by one: what is wanted there is encoded at once, and nothing else.
            size = AHEAD if self._engine.device == "cpu" else count
            group = [waiting.popleft() for _ in range(min(len(waiting), size))]
            if self._engine.encoder is None:
                self._ready.extend((item, None) for item in group)
            else:
                cross = self._engine.encode([item.job.source for item in group])
                self._ready.extend((item, (cross, i)) for i, item in enumerate(group))
        return [self._ready.popleft() for _ in range(min(count, len(self._ready)))]

    def can_join(self, waiting: deque[T], most: int) -> int:
        """How many of the next `most` inputs can join a batch that runs: those that decode from a single token."""
        if self._engine.device != "cpu" or self._engine.encoder is None:
            return 0
        following = chain((item for item, _ in self._ready), waiting)
        return sum(1 for _ in takewhile(lambda item: len(item.job.prefix) == 1, islice(following, most)))


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
