"""Requests of a call on their way to answers: batches in which they decode together, and the encoder that works ahead of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from onnxport.runtime.decode.cache import CrossCache, HostCache
from onnxport.runtime.decode.engine import Engine
from onnxport.runtime.decode.prompt_cache import Beginning
from onnxport.runtime.decode.state import DecoderState, EncodedSource
from onnxport.runtime.options import Sampling, Search

if TYPE_CHECKING:
    from onnxport.runtime.structured.matcher import AnswerFormat

SOURCES_AHEAD = 16  # that an encoder takes at once: enough to be efficient, few enough to keep their keys and values small
# Positions of prompts, padding counted, that are run at once: before anything decodes, and between two steps of what does.
START_POSITIONS, JOIN_POSITIONS = 2048, 256


@dataclass(frozen=True)
class Request:
    """One input of a call, ready to be searched.

    index: its place in the call. source: ids that the encoder reads; empty for a language model. prefix: ids that decoding starts from.
    limit: the most new tokens. ends: ids that end its answer besides the model's own. bias: ids with what is added to their logits.
    answer_format: what its answer must be. top: how many of the best tokens are told for each new one. sampling: how its tokens are drawn,
    None where the best ones are taken.
    """

    index: int
    source: Sequence[int]
    prefix: Sequence[int]
    limit: int
    ends: frozenset[int] = frozenset()
    bias: Sequence[tuple[int, float]] = ()
    answer_format: AnswerFormat | None = None
    top: int = 0
    sampling: Sampling | None = None

    def ended_by(self, tokens: Sequence[int]) -> bool:
        """Whether these new tokens are all that its format allows."""
        return self.answer_format is not None and self.answer_format.ended(tokens)


class Decoding(Protocol):
    """A request on its way to an answer. cached_tokens: of its prefix, that need not run."""

    cached_tokens: int

    @property
    def request(self) -> Request:
        """The input that it answers."""
        ...

    @property
    def done(self) -> bool:
        """True when it gets no more tokens, because it ended or was given up."""
        ...

    @property
    def written(self) -> Sequence[int]:
        """New tokens that it goes on behind in another batch than the one that it began in."""
        ...

    def drop(self) -> None:
        """Give up: it gets no more steps."""
        ...


def behind(decoding: Decoding) -> Sequence[int]:
    """The ids that it decodes behind."""
    return [*decoding.request.prefix, *decoding.written] if decoding.written else decoding.request.prefix


T = TypeVar("T", bound=Decoding)


class Batch(ABC, Generic[T]):
    """Decodings that go on together, at most `search.batch_size`: `_decodings` by place, each with `_state.beams` rows.

    In host memory others join while it runs, first come, first served, within the engine's bounds. A source that decodes from one token
    takes a place at once. A prompt has a batch of its own until it has run, a part at a time and in turn with the steps of those that
    decode; then its rows move here.
    """

    def __init__(self, engine: Engine, search: Search) -> None:
        self._engine, self._search = engine, search
        self._sources: EncodedSources[T] = EncodedSources(engine)
        self._decodings: list[T] = []
        self._state: DecoderState | None = None
        self._joining: Batch[T] | None = None
        self._others_turn = False  # what joins has just had a turn

    def step(self, waiting: deque[T]) -> list[T]:
        """Take decodings from `waiting` while there is room, and move each one token on or run a part of prompts; returns what ended."""
        self._admit(waiting)
        if self._joining is not None and not self._others_turn:
            self._others_turn = True
            return self._join(self._joining)
        self._others_turn = False
        if self._state is None or self._state.run_part():
            return []
        first, ended = not self._state.begun, self._advance(self._state)
        self._keep(self._state, self._decodings if first else ended)
        return ended

    def _keep(self, state: DecoderState, decodings: Sequence[T]) -> None:
        """Keep what was read of prompts that have just run, and of answers that have ended."""
        kept = self._engine.prompt_cache
        if kept is None or not decodings:
            return
        places = {id(decoding): place for place, decoding in enumerate(self._decodings)}
        for decoding in decodings:
            row = places[id(decoding)] * state.beams
            assert isinstance(state.cache, HostCache)
            kept.add(behind(decoding)[: int(state.lengths[row])], state.cache, row)

    @abstractmethod
    def _empty(self) -> Batch[T]:
        """Another batch of the same search."""

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

    def _live(self) -> list[int]:
        return [place for place, decoding in enumerate(self._decodings) if not decoding.done]

    def _admit(self, waiting: deque[T]) -> None:
        if self._joining is not None and not self._joining._live():  # all were given up
            self._joining = None
        live = self._live()
        if not live and self._joining is not None:
            self._decodings, self._state, self._joining = self._joining._decodings, self._joining._state, None
            assert self._state is not None
            self._rows_changed(self._state)
        elif not live or self._state is None:
            self._start(waiting, START_POSITIONS)
        elif self._joining is None and self._engine.admits_while_running and self._state.begun:
            self._admit_beside(self._state, live, waiting)

    def _admit_beside(self, state: DecoderState, live: list[int], waiting: deque[T]) -> None:
        """Take what waits beside those that decode."""
        singles = prompts = 0
        beside = [self._decodings[place] for place in live]
        for decoding in self._fitting(waiting, beside):
            if self._engine.encoder is None or len(behind(decoding)) > 1:
                prompts += not singles
                break
            singles += 1
        if singles:
            self._fill(state, waiting, singles)
        elif prompts:
            self._joining = self._empty()
            self._joining._sources = self._sources
            self._joining._start(waiting, JOIN_POSITIONS, beside)
        elif 4 * len(live) <= 3 * len(self._decodings):  # rows that are done cost as much as others: go on without them
            order = state.compact(live)
            self._decodings = [self._decodings[place] for place in order]
            self._rows_changed(state)

    def _fitting(self, waiting: deque[T], beside: Sequence[T]) -> Iterator[T]:
        """What waits and may decode together with `beside`, in order, up to the first that is too much; one is never too much alone."""
        every = [*beside]
        for decoding in self._sources.following(waiting, self._search.batch_size - len(beside)):
            every.append(decoding)
            if len(every) > 1 and not self._within_bounds(every):
                return
            yield decoding

    def _within_bounds(self, decodings: Sequence[T]) -> bool:
        """Whether the engine's bounds hold for a batch of these, each with as many tokens as it may have."""
        bounds, rows = self._engine.bounds, len(decodings) * self._search.beam
        if bounds.rows is not None and rows > bounds.rows:
            return False
        if bounds.cache_bytes is None:
            return True
        requests = [decoding.request for decoding in decodings]
        longest, source = (max(map(size, requests)) for size in (_most_positions, _source_length))
        engines: list[Engine] = [self._engine, *([] if self._search.draft is None else [self._search.draft])]
        taken = sum(engine.cache_bytes(rows, longest) + engine.cross_bytes(len(requests), source) for engine in engines)
        return taken <= bounds.cache_bytes

    def _start(self, waiting: deque[T], positions: int, beside: Sequence[T] = ()) -> None:
        """Begin anew with what waits and fits beside others: of several with prompts so many as have `positions`."""
        count = longest = 0
        kept, known = self._engine.prompt_cache, []
        for decoding in self._fitting(waiting, beside):
            beginning = Beginning() if kept is None else kept.find(behind(decoding))
            longest = max(longest, len(behind(decoding)) - beginning.length)
            if count and longest > 1 and (count + 1) * longest > positions and self._engine.admits_while_running:
                break
            count += 1
            known.append(beginning)
        taken = self._sources.take(waiting, count)
        self._decodings, self._state = [decoding for decoding, _ in taken], None
        if not taken:
            return
        beams = self._first_rows(self._decodings)
        prefixes = [behind(decoding) for decoding in self._decodings for _ in range(beams)]
        new = max(decoding.request.limit for decoding in self._decodings)
        cross = merged([source for _, source in taken])
        self._state = DecoderState(self._engine, cross, prefixes, new, beams, known if beams == 1 else ())
        for decoding, beginning in zip(self._decodings, known, strict=True):
            self._begin(decoding, beams)
            decoding.cached_tokens = min(beginning.length, len(decoding.request.prefix))
        self._rows_changed(self._state)

    def _join(self, joining: Batch[T]) -> list[T]:
        """Move what joins on; once its prompts have run, its rows become rows of this batch."""
        ended = joining.step(deque())
        if joining._state is not None and joining._state.begun:
            self._joining = None
            alive = joining._live()
            if self._state is not None and alive:
                places = self._places(self._state, len(alive))
                for place, i in zip(places, alive, strict=True):
                    self._decodings[place] = joining._decodings[i]
                self._state.absorb(places, joining._state, alive)
        return ended

    def _fill(self, state: DecoderState, waiting: deque[T], count: int) -> None:
        """Put `count` of those that wait, whose answers start from one token, into places of their own."""
        taken = self._sources.take(waiting, count)
        places = self._places(state, len(taken))
        for place, (decoding, _) in zip(places, taken, strict=True):
            self._begin(decoding, state.beams)
            self._decodings[place] = decoding
        first = [decoding.request.prefix[0] for decoding, _ in taken]
        state.admit(places, first, [source for _, source in taken if source is not None])

    def _places(self, state: DecoderState, count: int) -> list[int]:
        """Places for `count` decodings: those of others that are done, and new ones where these are too few."""
        free = [place for place, decoding in enumerate(self._decodings) if decoding.done]
        if count > len(free):
            places = len(self._decodings) - len(free) + count
            free += range(len(self._decodings), places)
            self._decodings += [self._placeholder(self._decodings[0]) for _ in range(places - len(self._decodings))]
            state.widen(places)
            self._rows_changed(state)
        return free[:count]


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

    def following(self, waiting: deque[T], most: int) -> Iterator[T]:
        """The next `most` decodings that `take` gives."""
        ready = (decoding for decoding, _ in self._ready)
        # By index: another thread may append to the queue meanwhile, which an iterator does not bear.
        queued = (waiting[i] for i in range(len(waiting)))
        return islice((decoding for part in (ready, queued) for decoding in part if not decoding.done), most)

    def _encode(self, waiting: deque[T], count: int) -> bool:
        """Encode the next sources; False when there are none."""
        # Rows on a device cannot be moved one by one: there the sources of one batch are encoded at once, and no others.
        size = SOURCES_AHEAD if self._engine.device.host_memory else count
        if self._engine.encoder is None:
            size = count
        group: list[T] = []
        while waiting and len(group) < size and self._has_room(group, waiting[0]):
            decoding = waiting.popleft()
            if not decoding.done:
                group.append(decoding)
        if self._engine.encoder is None:
            self._ready.extend((decoding, None) for decoding in group)
        elif group:
            cross = self._engine.encode([decoding.request.source for decoding in group])
            self._ready.extend((decoding, (cross, i)) for i, decoding in enumerate(group))
        return bool(group)

    def _has_room(self, group: Sequence[T], other: T) -> bool:
        """Whether the bound on a batch's keys and values holds for those of these sources, too."""
        most = self._engine.bounds.cache_bytes
        longest = max(_source_length(decoding.request) for decoding in (*group, other))
        return not group or most is None or self._engine.cross_bytes(len(group) + 1, longest) <= most


def _most_positions(request: Request) -> int:
    """Of a row's cache: the last new token is never read."""
    return len(request.prefix) + request.limit - 1


def _source_length(request: Request) -> int:
    return len(request.source)


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
