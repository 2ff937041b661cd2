"""Integers in blocks, as ONNX Runtime's MatMulNBits and GatherBlockQuantized store them.

Both operators: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

PIECE = 2**22  # weights that are worked on together: what is made of them on the way takes some ten times their memory
SAMPLE = 16  # rows that are looked at first
LEAST_HALF, MOST_HALF = (float(edge) for edge in (np.finfo(np.float16).tiny, np.finfo(np.float16).max))
ROUNDED = 1e-6  # relative: a product of an integer and a step that float32 rounded, divided by a step that was rounded too


@dataclass(frozen=True)
class Grid:
    """What integers stand for in each block: value = (code - zero) * scale + base.

    scale float32 [N, blocks], of either sign and never 0; zero uint8 [N, blocks], or None: the middle, 8 or 128; base float32 [N, blocks],
    or None: 0.
    """

    bits: int
    size: int
    scale: np.ndarray
    zero: np.ndarray | None = None
    base: np.ndarray | None = None

    @property
    def middle(self) -> int:
        """The code of 0 where there are no zero points."""
        return 1 << (self.bits - 1)

    @property
    def least(self) -> int:
        """The least code: symmetric 8 bit leaves one out, so that both signs reach as far."""
        return 1 if self.bits == 8 and self.zero is None else 0

    @property
    def offset(self) -> np.ndarray:
        """float32 [N, blocks]: the code of 0."""
        return np.full_like(self.scale, self.middle) if self.zero is None else self.zero.astype(np.float32)

    def nearest(self, blocks: np.ndarray) -> np.ndarray:
        """blocks float [N, blocks, size] -> the nearest codes, uint8 of the same shape."""
        raised = blocks if self.base is None else blocks - self.base[:, :, None]
        codes: np.ndarray = np.rint(raised / self.scale[:, :, None]) + self.offset[:, :, None]
        return codes.clip(self.least, (1 << self.bits) - 1).astype(np.uint8)

    def values(self, codes: np.ndarray) -> np.ndarray:
        """codes uint8 [N, blocks, size] -> float32 of the same shape."""
        found: np.ndarray = (codes.astype(np.float32) - self.offset[:, :, None]) * self.scale[:, :, None]
        return found if self.base is None else found + self.base[:, :, None]

    def in_half(self) -> Grid:
        """The grid with scales that float16 holds, which take half the bytes; as it is where one is beyond what float16 holds well."""
        size = np.abs(self.scale)
        fits = size.size == 0 or (size.min() >= LEAST_HALF and size.max() <= MOST_HALF)
        return replace(self, scale=self.scale.astype(np.float16).astype(np.float32)) if fits else self

    def packed_zero(self) -> np.ndarray | None:
        """uint8 [N, ceil(blocks * bits / 8)], or None."""
        return None if self.zero is None else pack(self.zero, self.bits)


def joined(grids: Sequence[Grid]) -> Grid:
    """The grid of rows whose grids follow each other, alike but for their numbers."""

    def column(name: str) -> np.ndarray | None:
        parts = [getattr(grid, name) for grid in grids]
        return None if parts[0] is None else np.concatenate(parts)

    scale = column("scale")
    assert scale is not None
    return Grid(grids[0].bits, grids[0].size, scale, column("zero"), column("base"))


@dataclass(frozen=True)
class Blocks:
    """A weight [N, K] in integers: codes uint8 [N, blocks, size], what the padding of the last block holds stands for 0.

    order: int64 [K], the weight's column of each place in the blocks; None where columns stay where they are.
    """

    grid: Grid
    codes: np.ndarray
    order: np.ndarray | None = None

    def packed(self) -> np.ndarray:
        """uint8 [N, blocks, size * bits / 8]."""
        return pack(self.codes, self.grid.bits)

    def values(self, k: int) -> np.ndarray:
        """float32 [N, K]."""
        found = self.grid.values(self.codes).reshape(len(self.codes), -1)[:, :k]
        return found if self.order is None else found[:, np.argsort(self.order)]


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """uint8 [..., n] -> [..., ceil(n * bits / 8)]: of two values of 4 bits the first is the low half of their byte."""
    if bits == 8:
        return codes
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros_like(codes[..., :1])], -1)
    found: np.ndarray = codes[..., 0::2] | codes[..., 1::2] << 4
    return found


def in_blocks(weight: np.ndarray, size: int) -> np.ndarray:
    """float [N, K] -> float32 [N, blocks, size], the very weights where nothing has to be changed; the last block is filled up with 0."""
    n, k = weight.shape
    blocks = -(-k // size)
    if k % size == 0:
        return np.ascontiguousarray(weight, np.float32).reshape(n, blocks, size)
    padded = np.zeros((n, blocks * size), np.float32)
    padded[:, :k] = weight
    return padded.reshape(n, blocks, size)


def columns(blocks: np.ndarray) -> np.ndarray:
    """float [N, blocks, size] -> float32 [size, N * blocks], a copy: one operation of numpy goes over many blocks at a time."""
    return np.array(blocks.reshape(-1, blocks.shape[2]).T, np.float32, order="C")


def from_minimum(weight: np.ndarray, bits: int, size: int) -> Blocks:
    """weight float [N, K] -> the nearest codes, the least and the greatest of a block being its ends. `size` divides K."""
    blocks, most = in_blocks(weight, size), (1 << bits) - 1
    low, high = blocks.min(2), blocks.max(2)
    grid = based_grid(bits, low, never_zero((high - low) / most), size)
    return Blocks(grid, grid.nearest(blocks))


def based_grid(bits: int, low: np.ndarray, step: np.ndarray, size: int) -> Grid:
    """The grid from `low` on, in steps. Its zero points say as much of `low` as they can: a kernel that rounds x errs the less."""
    zero = np.rint(-low / step).clip(0, (1 << bits) - 1)
    return Grid(bits, size, step, zero.astype(np.uint8), (low + zero * step).astype(np.float32))


def stored_step(weight: np.ndarray, levels: int) -> np.ndarray:
    """weight float [K, N] -> the number that all of a column are multiples of, at most `levels` times, float32 [N]; NaN: there is none.

    The largest such number, 1 for a column of zeros. Few rows tell almost all columns that have none.
    """
    largest = np.abs(weight).max(0, initial=0)
    step = np.where(largest > 0, np.nan, 1).astype(np.float32)
    open_ = np.flatnonzero(largest > 0)
    for times in range(1, levels + 1):
        if not open_.size:
            break
        guess = largest[open_] / np.float32(times)
        few = open_[multiples(weight[:SAMPLE, open_], guess)]
        whole = few[multiples(weight[:, few], largest[few] / np.float32(times))]
        step[whole] = largest[whole] / np.float32(times)
        open_ = np.setdiff1d(open_, whole, assume_unique=True)
    return step


def multiples(weight: np.ndarray, step: np.ndarray, wide: np.ndarray | float = 0) -> np.ndarray:
    """Which columns of [K, N] are whole multiples of `step` [N], as float32 rounds them, and numbers as large as `wide` [N]: bool [N]."""
    codes = weight / step
    rest = np.rint(codes)
    rest -= codes
    room = np.maximum(np.abs(codes, out=codes), np.maximum(1, wide / step), out=codes)
    room *= ROUNDED
    found: np.ndarray = (np.abs(rest, out=rest) <= room).all(0)
    return found


def better(one: Grid, error_of_one: np.ndarray, other: Grid, error_of_other: np.ndarray) -> tuple[Grid, np.ndarray]:
    """In each block the grid of less error, and that error [N, blocks]."""
    wins = error_of_other < error_of_one
    zero = None if one.zero is None or other.zero is None else np.where(wins, other.zero, one.zero)
    scale = np.where(wins, other.scale, one.scale)
    return Grid(one.bits, one.size, scale, zero), np.where(wins, error_of_other, error_of_one)


def never_zero(scale: np.ndarray) -> np.ndarray:
    """Scales float32, 1 where one is next to nothing."""
    return np.where(np.abs(scale) > 1e-30, scale, 1).astype(np.float32)
