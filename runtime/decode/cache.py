"""Keys and values: the cross-attention's of a batch of sources, and the growing cache of self attention, on the host or a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxport.runtime.sessions import Device, empty_value, run_bound, value_of

if TYPE_CHECKING:
    import onnxruntime


@dataclass(frozen=True)
class CrossCache:
    """A batch's sources as the decoder reads them: keys and values by input name, [sources, heads, source, head_size], and the mask."""

    values: dict[str, onnxruntime.OrtValue]
    mask: np.ndarray  # int32 [sources, source]
    arrays: dict[str, np.ndarray]  # the values' memory, where it is the host's; else empty

    @classmethod
    def of_arrays(cls, arrays: dict[str, np.ndarray], mask: np.ndarray) -> CrossCache:
        """Sources in host memory."""
        return cls({name: value_of(array) for name, array in arrays.items()}, mask, arrays)

    def empty_like(self, sources: int, length: int) -> CrossCache:
        """An empty CrossCache of the same kind for so many sources of up to `length` tokens."""
        arrays = {n: np.zeros((sources, a.shape[1], length, a.shape[3]), a.dtype) for n, a in self.arrays.items()}
        return CrossCache.of_arrays(arrays, np.zeros((sources, length), np.int32))

    def put(self, place: int, other: CrossCache, index: int) -> None:
        """Source `place` becomes the other's source `index`, which is not longer than there is room."""
        length = int(other.mask[index].sum())
        self.mask[place] = 0
        self.mask[place, :length] = 1
        for name, array in self.arrays.items():
            array[place, :, :length] = other.arrays[name][index, :, :length]


STEP = 64  # positions a growth is rounded up to
Move = tuple[int, int, int]  # target row, source row, the position from which on they may differ


class HostCache:
    """2 * layers buffers [rows, heads, capacity, head_size], one array in host memory; fresh pages cost nothing until they are written."""

    def __init__(self, count: int, heads: int, size: int, dtype: np.dtype, window: int | None = None) -> None:
        self.count, self.heads, self.size, self.dtype, self.window = count, heads, size, np.dtype(dtype), window
        self.array = np.zeros((count, 0, heads, 0, size), dtype)
        self.values: list[onnxruntime.OrtValue] = []

    @property
    def rows(self) -> int:
        """Rows of the buffers."""
        return int(self.array.shape[1])

    @property
    def capacity(self) -> int:
        """Positions of the buffers."""
        return int(self.array.shape[3])

    def allocate(self, rows: int, capacity: int) -> None:
        """New zeroed buffers for `rows` and at least `capacity` positions."""
        self.array = np.zeros((self.count, rows, self.heads, self.window or _rounded(capacity), self.size), self.dtype)
        self.values = [value_of(a) for a in self.array]

    def grow(self, capacity: int, used: int) -> None:
        """Room for `capacity` positions; the first `used` are kept."""
        old = self.array
        self.allocate(self.rows, capacity)
        self.array[:, :, :, :used] = old[:, :, :, :used]

    def select(self, rows: np.ndarray, used: int, capacity: int) -> None:
        """New buffers whose row i is the old row rows[i]: for beams that start from one prompt, and for rows that go on alone."""
        old = self.array
        self.allocate(len(rows), capacity)
        for new, before in zip(self.array, old, strict=True):
            new[:, :, :used] = before[rows, :, :used]

    def shrink(self, rows: int) -> None:
        """Go on with the first rows only; nothing is copied."""
        self.array = self.array[:, :rows]
        self.values = [value_of(a) for a in self.array]

    def copy(self, moves: Sequence[Move], used: int) -> None:
        """In place: each target row becomes its source row at positions start..used; no target is a source."""
        for target, source, start in moves:
            if used > self.capacity:  # entries have moved up: none lies at its position
                start = 0
            self.array[:, target, :, start:used] = self.array[:, source, :, start:used]


class DeviceCache:
    """The same cache where only graphs can touch it: rows move through the `reorder` graph between two sets of buffers."""

    def __init__(
        self,
        count: int,
        heads: int,
        size: int,
        dtype: np.dtype,
        device: Device,
        reorder: onnxruntime.InferenceSession,
        window: int | None = None,
    ) -> None:
        self.count, self.heads, self.size, self.dtype, self.window = count, heads, size, np.dtype(dtype), window
        self.device = device
        self._session = reorder
        self.values: list[onnxruntime.OrtValue] = []
        self._spare: list[onnxruntime.OrtValue] = []
        self.rows = self.capacity = 0

    def allocate(self, rows: int, capacity: int) -> None:
        """New buffers for `rows` and at least `capacity` positions."""
        self.rows, self.capacity = rows, self.window or _rounded(capacity)
        self.values, self._spare = self._buffers(rows, self.capacity), []

    def grow(self, capacity: int, used: int) -> None:
        """Room for `capacity` positions; the first `used` are kept (through the host: growth is rare)."""
        old = [v.numpy() for v in self.values]
        self.rows, self.capacity, self._spare = self.rows, _rounded(capacity), []
        self.values = []
        for before in old:
            new = np.zeros((self.rows, self.heads, self.capacity, self.size), self.dtype)
            new[:, :, :used] = before[:, :, :used]
            self.values.append(value_of(new, self.device))

    def select(self, rows: np.ndarray, used: int, capacity: int) -> None:
        """New buffers whose row i is the old row rows[i]."""
        if capacity > self.capacity and self.window is None:
            self.grow(capacity, used)
        self._spare = self._buffers(len(rows), self.capacity)
        self._gather(rows)
        self._spare, self.rows = [], len(rows)

    def copy(self, moves: Sequence[Move], used: int) -> None:
        """Each target row becomes its source row, whole; the buffers change places, so bindings must be made anew."""
        if moves:
            self._spare = self._spare or self._buffers(self.rows, self.capacity)
            rows = np.arange(self.rows)
            for target, source, _ in moves:
                rows[target] = source
            self._gather(rows)

    def _gather(self, rows: np.ndarray) -> None:
        binding = self._session.io_binding()
        for i, (source, target) in enumerate(zip(self.values, self._spare, strict=True)):
            binding.bind_ortvalue_input(f"in_{i}", source)
            binding.bind_ortvalue_output(f"out_{i}", target)
        binding.bind_ortvalue_input("row", value_of(np.ascontiguousarray(rows, np.int64)))
        run_bound(self._session, binding)
        self.values, self._spare = self._spare, self.values

    def _buffers(self, rows: int, capacity: int) -> list[onnxruntime.OrtValue]:
        return [empty_value((rows, self.heads, capacity, self.size), self.dtype, self.device) for _ in range(self.count)]


Cache = HostCache | DeviceCache


def _rounded(capacity: int) -> int:
    return -(-capacity // STEP) * STEP
