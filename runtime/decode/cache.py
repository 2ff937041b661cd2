"""Keys and values: the cross-attention's of a batch of sources, and the growing cache of self attention, on the host or a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxport.runtime.bundle.manifest import LayerCache
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
    """Keys and values of each layer [rows, kv_heads, capacity, head_size] in host memory; fresh pages cost nothing until they are written.

    A layer with a window keeps the newest entries alone, which the kernel moves up.
    """

    def __init__(self, layers: Sequence[LayerCache], dtype: np.dtype) -> None:
        self.layers, self.dtype = layers, np.dtype(dtype)
        self.arrays: list[np.ndarray] = []  # the first rows of `_whole`
        self._whole: list[np.ndarray] = []
        self.values: list[onnxruntime.OrtValue] = []
        self.rows = self.capacity = 0

    @property
    def bounded(self) -> bool:
        """Whether no layer ever needs more room."""
        return all(layer.window is not None for layer in self.layers)

    def allocate(self, rows: int, capacity: int) -> None:
        """New zeroed buffers for `rows` and at least `capacity` positions."""
        self.rows, self.capacity = rows, rounded(capacity)
        self._hold([np.zeros(shape, self.dtype) for shape in buffer_shapes(self.layers, rows, self.capacity)])

    def grow(self, capacity: int, used: int) -> None:
        """Room for `capacity` positions; the first `used` are kept."""
        self.capacity = rounded(capacity)
        self._move(len(self._whole[0]), used)

    def widen(self, rows: int, used: int) -> None:
        """More rows, of which nothing counts yet; the first `used` positions of the others are kept."""
        if rows > len(self._whole[0]):
            self._move(rows + rows // 4, used)  # so that rows that come one by one are not all moved for each of them
        self.shrink(rows)

    def _move(self, rows: int, used: int) -> None:
        """Into buffers for `rows` rows and the capacity there is now."""
        shapes = buffer_shapes(self.layers, rows, self.capacity)
        wholes = [old if old.shape == shape else np.zeros(shape, self.dtype) for old, shape in zip(self._whole, shapes, strict=True)]
        for new, old in zip(wholes, self._whole, strict=True):
            if new is not old:
                new[: self.rows, :, :used] = old[: self.rows, :, :used]
        self._hold(wholes)
        self.shrink(self.rows)

    def select(self, rows: np.ndarray, used: int, capacity: int) -> None:
        """New buffers whose row i is the old row rows[i]: for beams that start from one prompt, and for rows that go on alone."""
        before = self.arrays
        self.allocate(len(rows), capacity)
        for new, old in zip(self.arrays, before, strict=True):
            new[:, :, :used] = old[rows, :, :used]

    def shrink(self, rows: int) -> None:
        """Go on with the first rows only; nothing is copied."""
        self.rows, self.arrays = rows, [array[:rows] for array in self._whole]
        self.values = [value_of(array) for array in self.arrays]

    def put(self, row: int, other: HostCache, source: int, used: int) -> None:
        """Row `row` becomes the other cache's row `source`, of which `used` positions count; there is room for them."""
        for array, theirs in zip(self.arrays, other.arrays, strict=True):
            array[row, :, :used] = theirs[source, :, :used]

    def copy(self, moves: Sequence[Move], used: int) -> None:
        """In place: each target row becomes its source row at positions start..used; no target is a source."""
        for array in self.arrays:
            moved_up = used > array.shape[2]  # then no entry lies at its position
            for target, source, start in moves:
                kept = slice(0 if moved_up else start, used)
                array[target, :, kept] = array[source, :, kept]

    def _hold(self, arrays: list[np.ndarray]) -> None:
        self._whole = self.arrays = arrays
        self.values = [value_of(array) for array in arrays]


class DeviceCache:
    """The same cache where only graphs can touch it: rows move through the `reorder` graph between two sets of buffers."""

    def __init__(self, layers: Sequence[LayerCache], dtype: np.dtype, device: Device, reorder: onnxruntime.InferenceSession) -> None:
        self.layers, self.dtype, self.device = layers, np.dtype(dtype), device
        self._session = reorder
        self.values: list[onnxruntime.OrtValue] = []
        self._spare: list[onnxruntime.OrtValue] = []
        self.rows = self.capacity = 0

    @property
    def bounded(self) -> bool:
        """Whether no layer ever needs more room."""
        return all(layer.window is not None for layer in self.layers)

    def allocate(self, rows: int, capacity: int) -> None:
        """New buffers for `rows` and at least `capacity` positions."""
        self.rows, self.capacity = rows, rounded(capacity)
        self.values, self._spare = self._buffers(rows), []

    def grow(self, capacity: int, used: int) -> None:
        """Room for `capacity` positions; the first `used` are kept (through the host: growth is rare)."""
        self.capacity, self._spare = rounded(capacity), []
        shapes = buffer_shapes(self.layers, self.rows, self.capacity)
        self.values = [self._grown(value, shape, used) for value, shape in zip(self.values, shapes, strict=True)]

    def _grown(self, value: onnxruntime.OrtValue, shape: tuple[int, ...], used: int) -> onnxruntime.OrtValue:
        if tuple(value.shape()) == shape:
            return value
        new = np.zeros(shape, self.dtype)
        new[:, :, :used] = value.numpy()[:, :, :used]
        return value_of(new, self.device)

    def select(self, rows: np.ndarray, used: int, capacity: int) -> None:
        """New buffers whose row i is the old row rows[i]."""
        if capacity > self.capacity and not self.bounded:
            self.grow(capacity, used)
        self._spare = self._buffers(len(rows))
        self._gather(rows)
        self._spare, self.rows = [], len(rows)

    def copy(self, moves: Sequence[Move], used: int) -> None:
        """Each target row becomes its source row, whole; the buffers change places, so bindings must be made anew."""
        if moves:
            self._spare = self._spare or self._buffers(self.rows)
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

    def _buffers(self, rows: int) -> list[onnxruntime.OrtValue]:
        return [empty_value(shape, self.dtype, self.device) for shape in buffer_shapes(self.layers, rows, self.capacity)]


Cache = HostCache | DeviceCache


def buffer_shapes(layers: Sequence[LayerCache], rows: int, capacity: int) -> list[tuple[int, int, int, int]]:
    """Shapes of the key and the value of each layer, in the order of a graph's inputs."""
    return [(rows, layer.kv_heads, layer.window or capacity, layer.head_size) for layer in layers for _ in range(2)]


def rounded(capacity: int) -> int:
    """The positions that are made for so many."""
    return -(-capacity // STEP) * STEP
