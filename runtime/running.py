"""A batch in flight: the cache, one binding of the decoder made once, and what happens to it: prefill, step, choice of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from onnxport.runtime.engine import Cross, Engine, padded
from onnxport.runtime.session import empty_value, run_bound, value_of

if TYPE_CHECKING:
    import onnxruntime

AHEAD = 256  # new positions room is made for at first; then the cache doubles


class Running:
    """Rows that decode together.

    `ids` int64 [rows, 1] is the decoder's next input, written by whoever chooses the tokens. `lengths` int64 [rows] counts valid
    cache entries. `active` bool [rows]: rows that are finished keep their length, and what they compute is not used.
    `logits` is the OrtValue float32 [rows, vocab] that prefill and every step write; it changes only when the number of rows does.
    """

    def __init__(self, engine: Engine, cross: Cross | None, prefixes: Sequence[Sequence[int]], new: int) -> None:
        self.engine, self.cross = engine, cross
        self._prefixes, self._new = prefixes, new
        self.cache = engine.new_cache()
        self.lengths = np.array([len(p) for p in prefixes], np.int64)
        self._binding: onnxruntime.IOBinding | None = None
        self._bound: list[onnxruntime.OrtValue] | None = None
        self._renew(len(prefixes))

    @property
    def rows(self) -> int:
        """Number of rows now."""
        return len(self.lengths)

    def prefill(self) -> None:
        """Run all prefixes (right-padded) and leave the logits of each row's last token."""
        longest = int(self.lengths.max())
        self.cache.allocate(self.rows, longest + min(self._new, AHEAD))
        ids, _ = padded(self._prefixes, self.engine.config.pad_id or 0)
        feeds: dict[str, np.ndarray] = {
            "input_ids": ids,
            "position_ids": np.tile(np.arange(longest, dtype=np.int64), (self.rows, 1)),
            "logits_index": self.lengths - 1,
            "seqlens_k": (self.lengths - 1).astype(np.int32),
            "total_sequence_length": np.array(longest, np.int32),
        }
        run_bound(self.engine.decoder, self._bind(feeds))

    def step(self) -> None:
        """Run `ids`, one token a row, and leave the logits."""
        at = self.lengths - ~self.active  # a finished row writes its last entry again, so that it never runs out of positions
        longest = int(at.max())
        if longest >= self.cache.capacity:
            self.cache.grow(max(2 * self.cache.capacity, longest + 1), longest)
        self._seqlens[:] = at
        self._position[:] = at
        self._total[...] = longest + 1
        # Bound host memory is copied to a device at binding, not at running; a cache may have changed its buffers.
        if self._binding is None or self._bound is not self.cache.values or self.engine.device != "cpu":
            self._binding, self._bound = self._bind(self._feeds), self.cache.values
        run_bound(self.engine.decoder, self._binding)
        self.lengths += self.active

    def expand(self, beams: int) -> None:
        """Each row becomes `beams` equal rows, side by side; they share their source's keys and values."""
        rows = np.repeat(np.arange(self.rows), beams)
        self._select(rows)

    def keep(self, rows: np.ndarray, sources: np.ndarray | None = None) -> None:
        """Go on with these rows only; `sources` says which sources are left (default: the same, one row a source)."""
        self._select(rows)
        if self.cross is not None:
            self.cross = self.engine.select_cross(self.cross, rows if sources is None else sources)

    def reorder(self, rows: np.ndarray, start: int) -> None:
        """Row i goes on from the old row rows[i]; their caches are known to be equal before position `start`."""
        self.cache.reorder(rows, start, int(self.lengths.max()))
        self.lengths = self.lengths[rows]

    def _select(self, rows: np.ndarray) -> None:
        used = int(self.lengths[rows].max())
        self.cache.select(rows, used, max(self.cache.capacity, used + 1))
        self.lengths = self.lengths[rows]
        active = self.active[rows]
        self._renew(len(rows))
        self.active[:] = active

    def _renew(self, rows: int) -> None:
        self.active = np.ones(rows, bool)
        self.ids = np.zeros((rows, 1), np.int64)
        self._position = np.zeros(rows, np.int64)
        self._seqlens = np.zeros(rows, np.int32)
        self._total = np.zeros((), np.int32)
        self._feeds: dict[str, np.ndarray] = {
            "input_ids": self.ids,
            "position_ids": self._position.reshape(rows, 1),
            "logits_index": np.zeros(rows, np.int64),
            "seqlens_k": self._seqlens,
            "total_sequence_length": self._total,
        }
        self.logits = empty_value((rows, self.engine.vocab_size), np.float32, self.engine.device)
        self._binding = None

    def _bind(self, feeds: dict[str, np.ndarray]) -> onnxruntime.IOBinding:
        binding, wanted = self.engine.decoder.io_binding(), self.engine.inputs
        for name, array in feeds.items():
            if name in wanted:
                binding.bind_ortvalue_input(name, value_of(array))
        if self.cross is not None:
            for name, value in self.cross.values.items():
                if name in wanted:
                    binding.bind_ortvalue_input(name, value)
            if "source_mask" in wanted:
                binding.bind_ortvalue_input("source_mask", value_of(self.cross.mask))
        for name, value in zip(self.engine.cache_names, self.cache.values, strict=True):
            binding.bind_ortvalue_input(f"past_{name}", value)
            binding.bind_ortvalue_output(f"present_{name}", value)
        binding.bind_ortvalue_output("logits", self.logits)
        return binding
