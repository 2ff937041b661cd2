"""The state of a batch that decodes: its cache and the decoder's binding to it, through prefill, steps, and rows that come and go."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxport.runtime.arrays import padded
from onnxport.runtime.bundle import interface
from onnxport.runtime.decode.cache import CrossCache, HostCache, Move
from onnxport.runtime.decode.engine import Engine
from onnxport.runtime.decode.prompt_cache import Beginning
from onnxport.runtime.sessions import empty_value, run_bound, value_of

if TYPE_CHECKING:
    import onnxruntime

NO_IDS = np.zeros(0, np.int64)
FIRST_POSITIONS = 64  # new positions room is made for at first; then the cache doubles
PREFILL_CHUNK = 256  # ids of a row that prefill runs at once: longer parts were slower in every variant, shorter ones hardly faster
UNBOUNDED = 1 << 40  # entries
EncodedSource = tuple[CrossCache, int]  # an encoded source: where it lies
# Of prefixes: ids int64 [rows, part] padded on the right, and by row how many ids were before and how many of these are real, int64 [rows].
Part = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class BestTokens:
    """The best tokens of each row, best first: `token` int64 and `logprob` float32 [rows, count], the log-softmax of the logits; `kept`
    float32 [rows], the log of the share of the distribution that suppressed ids leave."""

    token: np.ndarray
    logprob: np.ndarray
    kept: np.ndarray

    @classmethod
    def empty(cls, rows: int, count: int) -> BestTokens:
        """Room for them."""
        return cls(np.zeros((rows, count), np.int64), np.zeros((rows, count), np.float32), np.zeros(rows, np.float32))

    def bind(self, binding: onnxruntime.IOBinding) -> None:
        """Let a graph's outputs of these names be written here."""
        for name in interface.BEST:
            binding.bind_ortvalue_output(name, value_of(getattr(self, name)))


class CheckedPositions:
    """Logits float32 [count, vocab] and best tokens of `count` positions of a run; `ids` int64 [count, 1] gets what is selected."""

    beams = 1

    def __init__(self, engine: Engine, count: int) -> None:
        self.ids = np.zeros((count, 1), np.int64)
        self.logits = empty_value((count, engine.vocab_size), np.float32, engine.device)
        self.best, self.candidates, self.suppressed = BestTokens.empty(count, 1), np.ones(1, np.int64), NO_IDS

    def request_top(self, count: int, suppressed: np.ndarray) -> None:
        """As of `DecoderState`."""
        self.suppressed = suppressed
        if count != self.best.token.shape[1]:
            self.best, self.candidates = BestTokens.empty(len(self.ids), count), np.array([count], np.int64)


class DecoderState:
    """Rows that decode together.

    `ids` int64 [rows, 1] is the decoder's next input, written by whoever chooses the tokens. `lengths` int64 [rows] counts valid
    cache entries. `active` bool [rows]: rows that are finished keep their length, and what they compute is not used.
    `logits` is the OrtValue float32 [rows, vocab] and `best` the best tokens that every run writes; `logits` changes only when the number
    of rows does.
    beams: rows that share a source, side by side. known: what of each row's prefix need not run; in host memory only.
    """

    def __init__(
        self,
        engine: Engine,
        cross: CrossCache | None,
        prefixes: Sequence[Sequence[int]],
        new: int,
        beams: int = 1,
        known: Sequence[Beginning] = (),
    ) -> None:
        self.engine, self.cross, self.beams = engine, cross, beams
        self._known = known
        self._prefixes, self._new = prefixes, new
        self._parts: deque[Part] | None = None  # of the prefixes, that have not run
        self.begun = False  # all prefixes have run
        self.cache = engine.new_cache()
        self.lengths = np.array([len(p) for p in prefixes], np.int64)
        self._binding: onnxruntime.IOBinding | None = None
        self._bound: list[onnxruntime.OrtValue] | None = None
        self.suppressed = NO_IDS
        self.best, self.candidates = BestTokens.empty(len(prefixes), 1), np.ones(1, np.int64)
        self._renew(len(prefixes))

    @property
    def rows(self) -> int:
        """Number of rows now."""
        return len(self.lengths)

    def run_part(self) -> bool:
        """Run the next part of long prefixes, but not the last, which `advance` runs; False where only that is left."""
        if self.begun or int(self.lengths.max()) == 1:
            return False
        parts = self._parts_left()
        if len(parts) > 1:
            self._run_part(parts.popleft())
            return True
        return False

    def prefill(self) -> None:
        """Run what is left of all prefixes and leave the logits of each row's last token."""
        parts = self._parts_left()
        while parts:
            self._run_part(parts.popleft())
        self.begun = True

    def _parts_left(self) -> deque[Part]:
        if self._parts is None:
            longest = int(self.lengths.max())
            self.cache.allocate(self.rows, longest + min(self._new, FIRST_POSITIONS))
            size = PREFILL_CHUNK if interface.QUERY_LENGTHS in self.engine.inputs else longest  # only then may entries be before a part
            before = np.zeros(self.rows, np.int64)
            for row, beginning in enumerate(self._known):
                if beginning.length:
                    assert isinstance(self.cache, HostCache)
                    beginning.put(self.cache, row)
                    before[row] = beginning.length
            self._parts = deque(_chunks(self._prefixes, before, self.engine.config.pad_id or 0, size))
        return self._parts

    def _run_part(self, part: Part) -> None:
        ids, done, real = part
        self.engine.positions.add(ids.size, int(real.sum()))
        run_bound(self.engine.decoder, self._bind(_several_ids(ids, real, done), self))

    def advance(self) -> None:
        """The first time run the prefixes, then `ids`; leave logits and the best tokens."""
        if not self.begun and int(self.lengths.max()) > 1:
            self.prefill()
            return
        if not self.begun:  # prefixes of one token: nothing to run before the first step
            self.begun = True
            self.cache.allocate(self.rows, min(self._new, FIRST_POSITIONS))
            self.ids[:, 0] = [p[0] for p in self._prefixes]
            self.lengths[:] = 0
        self.step()

    def request_top(self, count: int, suppressed: np.ndarray) -> None:
        """Have runs give beside logits each row's `count` best tokens, and the share that the ids `suppressed` int64 [S] leave."""
        if count != self.best.token.shape[1] or suppressed is not self.suppressed:
            self.suppressed = suppressed
            self.best, self.candidates = BestTokens.empty(self.rows, count), np.array([count], np.int64)
            self._binding = None

    def step(self) -> None:
        """Run `ids`, one token a row, and leave the logits."""
        # A finished row writes its last entry again, so that it never runs out of positions.
        at = np.where(self.active, self.lengths, np.maximum(self.lengths, 1) - 1)
        longest = int(at.max())
        if longest >= self.cache.capacity and not self.cache.bounded:
            self.cache.grow(max(2 * self.cache.capacity, longest + 1), longest)
        interface.at_positions(self._feeds, at)
        # Bound host memory is copied to a device at binding, not at running; a cache may have changed its buffers.
        if self._binding is None or self._bound is not self.cache.values or not self.engine.device.host_memory:
            self._binding, self._bound = self._bind(self._feeds, self), self.cache.values
        self.engine.positions.add(self.rows, int(self.active.sum()))
        run_bound(self.engine.decoder, self._binding)
        self.lengths += self.active

    def room(self) -> np.ndarray:
        """How many new ids of each row may be taken back after a run, int64 [rows]: only its length goes back, so that no entry may have
        moved up in a window's buffer."""
        return np.maximum((self.engine.shortest_window or UNBOUNDED) - self.lengths, 0)

    def extend(self, new: Sequence[Sequence[int]]) -> None:
        """Run several ids behind each row's entries, none where a row is finished, and leave what `advance` leaves."""
        feeds = self._several(new)
        run_bound(self.engine.decoder, self._bind(feeds, self))
        self.lengths += [len(ids) for ids in new]

    def check(self, new: Sequence[Sequence[int]], found: CheckedPositions) -> None:
        """Run as `extend`, and leave in `found` the logits and best tokens behind every one of these ids, row by row.

        `lengths` stay: the caller adds how many of the ids hold. The entries of the others are written over later.
        """
        feeds = self._several(new)
        feeds[interface.LOGITS_ROWS] = np.repeat(np.arange(self.rows), [len(ids) for ids in new])
        feeds[interface.LOGITS_INDEX] = np.concatenate([np.arange(len(ids), dtype=np.int64) for ids in new])
        run_bound(self.engine.decoder, self._bind(feeds, found))

    def _several(self, new: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
        """The feeds for several ids a row; a finished row writes its last entry again."""
        counts = np.array([len(ids) for ids in new], np.int64)
        before = np.where(counts > 0, self.lengths, np.maximum(self.lengths, 1) - 1)
        longest = int((before + np.maximum(counts, 1)).max())
        if longest > self.cache.capacity and not self.cache.bounded:
            self.cache.grow(max(2 * self.cache.capacity, longest), int(before.max()))
        ids, _ = padded([one or (0,) for one in new], self.engine.config.pad_id or 0)
        self.engine.positions.add(ids.size, int(counts.sum()))
        return _several_ids(ids, np.maximum(counts, 1), before)

    def expand(self, beams: int) -> None:
        """Each row becomes `beams` equal rows, side by side; they share their source's keys and values."""
        self._select(np.repeat(np.arange(self.rows), beams))
        self.beams = beams

    def compact(self, sources: Sequence[int]) -> list[int]:
        """Go on with the rows of these sources only; returns which old source is in which place now. The last fill the gaps."""
        count = len(sources)
        late = iter([i for i in sources if i >= count])
        order = [i if i in sources else next(late) for i in range(count)]
        rows = (np.array(order)[:, None] * self.beams + np.arange(self.beams)).ravel()
        ids = self.ids[rows]
        if isinstance(self.cache, HostCache):
            used = int(self.lengths[rows].max())
            self.cache.copy([(row, int(old), 0) for row, old in enumerate(rows) if row != old], used)
            self.cache.shrink(len(rows))
            self._take_rows(rows)
        else:
            self._select(rows)
        self.ids[:] = ids
        if self.cross is not None:
            self.cross = self.engine.select_cross(self.cross, np.array(order))
        return order

    def admit(self, places: Sequence[int], starts: Sequence[int], encoded: Sequence[EncodedSource]) -> None:
        """New sources in the places of finished ones, each decoded from one token; in host memory only."""
        self._put_sources(places, encoded)
        for place, start in zip(places, starts, strict=True):
            rows = slice(place * self.beams, (place + 1) * self.beams)
            self.lengths[rows], self.active[rows], self.ids[rows] = 0, True, start
        self._narrow()

    def absorb(self, places: Sequence[int], other: DecoderState, sources: Sequence[int]) -> None:
        """Sources of another state, which has begun, go on in the places of finished ones here; in host memory only."""
        assert isinstance(self.cache, HostCache) and isinstance(other.cache, HostCache) and self.beams == other.beams
        theirs = (np.array(sources)[:, None] * self.beams + np.arange(self.beams)).ravel()
        ours = (np.array(places)[:, None] * self.beams + np.arange(self.beams)).ravel()
        longest = int(other.lengths[theirs].max())
        if longest >= self.cache.capacity and not self.cache.bounded:
            self.cache.grow(max(2 * self.cache.capacity, longest + FIRST_POSITIONS), int(self.lengths.max()))
        for row, their in zip(ours.tolist(), theirs.tolist(), strict=True):
            self.cache.put(row, other.cache, their, int(other.lengths[their]))
        self.lengths[ours], self.active[ours], self.ids[ours] = other.lengths[theirs], other.active[theirs], other.ids[theirs]
        if other.cross is not None:
            self._put_sources(places, [(other.cross, source) for source in sources])
            self._narrow()

    def _put_sources(self, places: Sequence[int], encoded: Sequence[EncodedSource]) -> None:
        assert self.cross is not None
        longest = max(int(cross.mask[index].sum()) for cross, index in encoded)
        if longest > self.cross.mask.shape[1]:
            wider = self.cross.empty_like(len(self.cross.mask), longest)
            for i in range(len(self.cross.mask)):
                wider.put(i, self.cross, i)
            self.cross, self._binding = wider, None
        for place, (cross, index) in zip(places, encoded, strict=True):
            self.cross.put(place, cross, index)

    def _narrow(self) -> None:
        """Forget padding that only sources had which are done."""
        assert self.cross is not None
        live = self.active.reshape(-1, self.beams).any(1)
        longest, width = int(self.cross.mask[live].sum(1).max()), self.cross.mask.shape[1]
        if 4 * longest <= 3 * width:
            arrays = {n: np.ascontiguousarray(a[:, :, :longest]) for n, a in self.cross.arrays.items()}
            self.cross = CrossCache.of_arrays(arrays, np.ascontiguousarray(self.cross.mask[:, :longest]))
            self._binding = None

    def widen(self, sources: int) -> None:
        """Room for more sources, in places that count as finished until something joins; in host memory only."""
        assert isinstance(self.cache, HostCache)
        now, rows = self.rows, sources * self.beams
        ids, active, lengths = self.ids.copy(), self.active, self.lengths
        self.cache.widen(rows, int(lengths.max()))
        self._renew(rows)
        self.lengths = np.concatenate([lengths, np.zeros(rows - now, np.int64)])
        self.ids[:now], self.active[:now], self.active[now:] = ids, active, False
        if self.cross is not None:
            places = np.concatenate([np.arange(now // self.beams), np.zeros(sources - now // self.beams, np.int64)])
            self.cross = self.engine.select_cross(self.cross, places)

    def copy(self, moves: Sequence[Move]) -> None:
        """Copy cache rows for beams: each target row goes on from its source row."""
        if moves:
            self.cache.copy(moves, int(self.lengths.max()))

    def _select(self, rows: np.ndarray) -> None:
        used = int(self.lengths[rows].max())
        self.cache.select(rows, used, max(self.cache.capacity, used + 1))
        self._take_rows(rows)

    def _take_rows(self, rows: np.ndarray) -> None:
        self.lengths = self.lengths[rows]
        active = self.active[rows]
        self._renew(len(rows))
        self.active[:] = active

    def _renew(self, rows: int) -> None:
        self.active = np.ones(rows, bool)
        self.ids = np.zeros((rows, 1), np.int64)
        self._feeds = interface.step(self.ids)
        self.logits = empty_value((rows, self.engine.vocab_size), np.float32, self.engine.device)
        self.best = BestTokens.empty(rows, self.best.token.shape[1])
        self._binding = None

    def _bind(self, feeds: dict[str, np.ndarray], outputs: DecoderState | CheckedPositions) -> onnxruntime.IOBinding:
        binding, inputs = self.engine.decoder.io_binding(), self.engine.inputs
        top = {interface.CANDIDATES: outputs.candidates, interface.SUPPRESSED: outputs.suppressed}
        for name, array in (feeds | top).items():
            if name in inputs:
                binding.bind_ortvalue_input(name, value_of(array))
        if self.cross is not None:
            for name, value in self.cross.values.items():
                if name in inputs:
                    binding.bind_ortvalue_input(name, value)
            if interface.SOURCE_MASK in inputs:
                binding.bind_ortvalue_input(interface.SOURCE_MASK, value_of(self.cross.mask))
        for past, present, value in zip(self.engine.past, self.engine.present, self.cache.values, strict=True):
            binding.bind_ortvalue_input(past, value)
            binding.bind_ortvalue_output(present, value)
        binding.bind_ortvalue_output(interface.LOGITS, outputs.logits)
        outputs.best.bind(binding)
        return binding


def _several_ids(ids: np.ndarray, lengths: np.ndarray, before: np.ndarray) -> dict[str, np.ndarray]:
    """`interface.prefill`, whose padding stands where the last id of its row does, within the model's positions."""
    feeds = interface.prefill(ids, lengths, before)
    np.minimum(feeds[interface.POSITION_IDS], feeds[interface.SEQLENS][:, None], out=feeds[interface.POSITION_IDS])
    return feeds


def _chunks(prefixes: Sequence[Sequence[int]], before: np.ndarray, pad: int, size: int) -> Iterator[Part]:
    """Parts of at most `size` ids of each row, behind the first `before` int64 [rows], which need not run.

    All rows end in the last part; how a row is cut depends on its own length only.
    """
    lengths = np.array([len(p) for p in prefixes], np.int64) - before
    for left in range((int(lengths.max()) - 1) // size * size, -1, -size):  # ids of the longest row that come after this part
        stops = before + np.maximum(lengths - left, 0)
        starts = before + np.maximum(lengths - left - size, 0)
        ids, _ = padded([p[start:stop] for p, start, stop in zip(prefixes, starts, stops, strict=True)], pad)
        yield ids, starts, stops - starts
