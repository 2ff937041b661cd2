"""The key/value cache: buffers that are past and present at once, grown in steps, reordered for beams.

On the CPU a buffer is NumPy memory seen by ONNX Runtime, so that the host can move rows without a graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxport.runtime.session import empty_value, run_bound, value_of

if TYPE_CHECKING:
    import onnxruntime

STEP = 64  # positions a growth is rounded up to


class HostCache:
    """2 * layers buffers [rows, heads, capacity, head_size] in host memory; fresh pages cost nothing until they are written."""

    device = "cpu"

    def __init__(self, count: int, heads: int, size: int, dtype: np.dtype) -> None:
        self.count, self.heads, self.size, self.dtype = count, heads, size, np.dtype(dtype)
        self.arrays: list[np.ndarray] = []
        self.values: list[onnxruntime.OrtValue] = []
        self.rows = self.capacity = 0

    def allocate(self, rows: int, capacity: int) -> None:
        """New zeroed buffers for `rows` and at least `capacity` positions."""
        self._take([np.zeros((rows, self.heads, _rounded(capacity), self.size), self.dtype) for _ in range(self.count)])

    def grow(self, capacity: int, used: int) -> None:
        """Room for `capacity` positions; the first `used` are kept."""
        old = self.arrays
        self.allocate(self.rows, capacity)
        for new, before in zip(self.arrays, old, strict=True):
            new[:, :, :used] = before[:, :, :used]

    def select(self, rows: np.ndarray, used: int, capacity: int) -> None:
        """New buffers whose row i is the old row rows[i]: for beams that start from one prompt, and for rows that go on alone."""
        old = self.arrays
        self.allocate(len(rows), capacity)
        for new, before in zip(self.arrays, old, strict=True):
            new[:, :, :used] = before[rows, :, :used]

    def reorder(self, rows: np.ndarray, start: int, used: int) -> None:
        """In place: row i becomes the old row rows[i] at positions start..used; before `start` the two must be equal already."""
        changed = np.flatnonzero(rows != np.arange(len(rows)))
        if not len(changed) or start >= used:
            return
        source = rows[changed]
        for array in self.arrays:
            array[changed, :, start:used] = array[source, :, start:used]

    def _take(self, arrays: list[np.ndarray]) -> None:
        self.arrays = arrays
        self.values = [value_of(a) for a in arrays]
        self.rows, self.capacity = arrays[0].shape[0], arrays[0].shape[2]


class DeviceCache:
    """The same cache where only graphs can touch it: rows move through the `reorder` graph between two sets of buffers."""

    def __init__(self, count: int, heads: int, size: int, dtype: np.dtype, device: str, reorder: onnxruntime.InferenceSession) -> None:
        self.count, self.heads, self.size, self.dtype, self.device = count, heads, size, np.dtype(dtype), device
        self._session = reorder
        self.values: list[onnxruntime.OrtValue] = []
        self._spare: list[onnxruntime.OrtValue] = []
        self.rows = self.capacity = 0

    def allocate(self, rows: int, capacity: int) -> None:
        """New buffers for `rows` and at least `capacity` positions."""
        self.values, self._spare = self._buffers(rows, _rounded(capacity)), []
        self.rows, self.capacity = rows, _rounded(capacity)

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
        if capacity > self.capacity:
            self.grow(capacity, used)
        self._spare = self._buffers(len(rows), self.capacity)
        self._gather(rows)
        self._spare, self.rows = [], len(rows)

    def reorder(self, rows: np.ndarray, start: int, used: int) -> None:
        """Row i becomes the old row rows[i]; the buffers change places, so bindings must be made anew."""
        if start < used and not np.array_equal(rows, np.arange(self.rows)):
            self._spare = self._spare or self._buffers(self.rows, self.capacity)
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
