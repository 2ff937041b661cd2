"""Requests of a call on their way to answers: batches in which they decode together, and the encoder that works ahead of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Generic, Protocol, TypeVar

from onnxport.runtime.decode.cache import CrossCache
from onnxport.runtime.decode.engine import Engine
from onnxport.runtime.decode.state import DecoderState, EncodedSource
from onnxport.runtime.options import Search

SOURCES_AHEAD = 16  # that an encoder takes at once: enough to be efficient, few enough to keep their keys and values small


@dataclass(frozen=True)
class Request:
    """One input of a call, ready to be searched.

    index: its place in the call. source: ids that the encoder reads; empty for a language model. prefix: ids that decoding starts from.
    limit: the most new tokens.
    """

    index: int
    source: Sequence[int]
    prefix: Sequence[int]
    limit: int


class Decoding(Protocol):
    """A request on its way to an answer."""

    @property
    def request(self) -> Request:
        """The input that it answers."""
        ...

    @property
    def done(self) -> bool:
        """True when it gets no more tokens, because it ended or was given up."""
        ...

    def drop(self) -> None:
        """Give up: it gets no more steps."""
        ...


T = TypeVar("T", bound=Decoding)


class Batch(ABC, Generic[T]):
    """Decodings that go on together, at most `search.batch_size`: `_decodings` by place, each with `_state.beams` rows."""

    def __init__(self, engine: Engine, search: Search) -> None:
        self._engine, self._search = engine, search
        self._sources: EncodedSources[T] = EncodedSources(engine)
        self._decodings: list[T] = []
        self._state: DecoderState | None = None

    def step(self, waiting: deque[T]) -> list[T]:
        """Take decodings from `waiting` while there is room, and move each one token on; returns those that ended."""
        self._admit(waiting)
        return [] if self._state is None else self._advance(self._state)

    @abstractmethod
    def _advance(self, state: DecoderState) -> list[T]:
        """Give every decoding one more token; returns those that ended."""

    @abstractmethod
    def _placeholder(self, like: T) -> T:
        """A decoding that is done, to stand in an empty place."""

    @abstractmethod
    def _rows_changed(self, state: DecoderState) -> None:
        """The number of rows has changed, so that the logits lie elsewhere."""

    def _begin(self, decoding: T, beams: int) -> None:
        """A decoding gets its `beams` rows."""

    def _first_rows(self, decodings: list[T]) -> int:
        """How many rows each of these starts with."""
        return 1

    def _admit(self, waiting: deque[T]) -> None:
        free = [place for place, decoding in enumerate(self._decodings) if decoding.done]
        live = len(self._decodings) - len(free)
        if not live or self._state is None:
            self._start(waiting)
        elif count := self._sources.admissible(waiting, self._search.batch_size - live):
            self._fill(self._state, free, waiting, count)
        elif 4 * live <= 3 * len(self._decodings):  # rows that are done cost as much as others: go on without them
            order = self._state.compact([place for place, decoding in enumerate(self._decodings) if not decoding.done])
            self._decodings = [self._decodings[place] for place in order]
            self._rows_changed(self._state)

    def _start(self, waiting: deque[T]) -> None:
        """Begin anew with what waits."""
        taken = self._sources.take(waiting, self._search.batch_size)
        self._decodings, self._state = [decoding for decoding, _ in taken], None
        if not taken:
            return
        beams = self._first_rows(self._decodings)
        prefixes = [decoding.request.prefix for decoding in self._decodings for _ in range(beams)]
        new = max(decoding.request.limit for decoding in self._decodings)
        self._state = DecoderState(self._engine, merged([source for _, source in taken]), prefixes, new, beams)
        for decoding in self._decodings:
            self._begin(decoding, beams)
        self._rows_changed(self._state)

    def _fill(self, state: DecoderState, free: list[int], waiting: deque[T], count: int) -> None:
        """Put `count` of those that wait into the `free` places, and into new ones where these are too few."""
        if count > len(free):
            places = len(self._decodings) - len(free) + count
            free += range(len(self._decodings), places)
            self._decodings += [self._placeholder(self._decodings[0]) for _ in range(places - len(self._decodings))]
            state.widen(places)
            self._rows_changed(state)
        taken = self._sources.take(waiting, count)
        places_taken = free[: len(taken)]
        for place, (decoding, _) in zip(places_taken, taken, strict=True):
            self._begin(decoding, state.beams)
            self._decodings[place] = decoding
        first = [decoding.request.prefix[0] for decoding, _ in taken]
        state.admit(places_taken, first, [source for _, source in taken if source is not None])


class EncodedSources(Generic[T]):
    """Decodings with their encoded sources, in the order of the queue that they came from."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._ready: deque[tuple[T, EncodedSource | None]] = deque()

    def take(self, waiting: deque[T], count: int) -> list[tuple[T, EncodedSource | None]]:
        """Up to `count` decodings with their sources (None where the model has no encoder); those that were given up are left out.

        TextError: see Engine.encode.
        """
        taken: list[tuple[T, EncodedSource | None]] = []
        while len(taken) < count and (self._ready or self._encode(waiting, count)):
            one = self._ready.popleft()
            if not one[0].done:
                taken.append(one)
        return taken

    def admissible(self, waiting: deque[T], most: int) -> int:
        """How many of the next `most` can join a batch that runs: those that were not given up and decode from a single token."""
        if not self._engine.admits_while_running:
            return 0
        ready = [decoding for decoding, _ in self._ready if not decoding.done]
        # By index: another thread may append to the queue meanwhile, which an iterator does not bear.
        queued = [waiting[i] for i in range(min(most, len(waiting))) if not waiting[i].done]
        return sum(1 for _ in takewhile(lambda decoding: len(decoding.request.prefix) == 1, [*ready, *queued][:most]))

    def _encode(self, waiting: deque[T], count: int) -> bool:
        """Encode the next sources; False when there are none."""
        # Rows on a device cannot be moved one by one: there the sources of one batch are encoded at once, and no others.
        size = SOURCES_AHEAD if self._engine.device.host_memory else count
        group: list[T] = []
        while waiting and len(group) < size:
            decoding = waiting.popleft()
            if not decoding.done:
                group.append(decoding)
        if self._engine.encoder is None:
            self._ready.extend((decoding, None) for decoding in group)
        elif group:
            cross = self._engine.encode([decoding.request.source for decoding in group])
            self._ready.extend((decoding, (cross, i)) for i, decoding in enumerate(group))
        return bool(group)


def merged(encoded: Sequence[EncodedSource | None]) -> CrossCache | None:
    """The sources as one CrossCache, copied only where they are not one already."""
    sources = [one for one in encoded if one is not None]
    if not sources:
        return None
    first = sources[0][0]
    if len(sources) == len(first.mask) and all(cross is first and index == i for i, (cross, index) in enumerate(sources)):
        return first
    result = first.empty_like(len(sources), max(int(cross.mask[index].sum()) for cross, index in sources))
    for place, (cross, index) in enumerate(sources):
        result.put(place, cross, index)
    return result
