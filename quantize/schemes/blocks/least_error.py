"""Rounding to the nearest codes, on the grid of each block that gives the least squared error.

Candidates are steps with which the codes reach as far as the largest weight, or less; each is fitted to its own codes. The numbers of a
block lie in a column, so that one operation of numpy goes over many blocks: five times as fast as along blocks of 32.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxport.quantize.schemes.blocks.by_rows import by_rows
from onnxport.quantize.schemes.blocks.rounding import Blocks, Grid, columns, in_blocks, joined, never_zero
from onnxport.quantize.schemes.threads import in_threads

STEPS = np.linspace(6.0, 8.6, 14, dtype=np.float32)  # symmetric: steps from 0 to the largest weight; beyond 8 it is clipped
PARTS = np.linspace(0.6, 1.0, 11, dtype=np.float32)  # asymmetric: of the range between the least and the greatest weight
PIECE = 2**18  # weights that are searched together: what a processor keeps near


def quantize_nearest(weight: np.ndarray, bits: int, size: int, symmetric: bool, importance: np.ndarray | None = None) -> Blocks:
    """weight float [N, K] -> the nearest codes of 4 or 8 bits. importance: float [K], what a squared error costs; None: the same."""
    costs = None if importance is None else in_blocks(importance[None], size)

    def nearest(blocks: np.ndarray) -> Blocks:
        grid = _Search(blocks, bits, symmetric, costs).best()
        return Blocks(grid, grid.nearest(blocks))

    found = by_rows(weight, size, PIECE, nearest)
    assert found is not None
    return found


def find_grid(blocks: np.ndarray, bits: int, symmetric: bool, costs: np.ndarray | None = None) -> Grid:
    """blocks float32 [N, blocks, size] -> a grid of 4 or 8 bits. costs: float32 [1, blocks, size] of squared errors; None: the same."""
    step = max(1, PIECE // max(1, blocks[:1].size))
    pieces = (blocks[i : i + step] for i in range(0, max(1, len(blocks)), step))
    return joined(list(in_threads(lambda rows: _Search(rows, bits, symmetric, costs).best(), pieces)))


class _Search:
    """The search over some rows. Arrays are [size, all blocks], or [all blocks]."""

    def __init__(self, blocks: np.ndarray, bits: int, symmetric: bool, costs: np.ndarray | None) -> None:
        self.bits, self.symmetric, self.form = bits, symmetric, blocks.shape
        self.x = columns(blocks)
        self.costs = None if costs is None else columns(np.broadcast_to(costs, blocks.shape))
        self.codes, self.beside = np.empty_like(self.x), np.empty_like(self.x)

    def best(self) -> Grid:
        """The grid of the least error, its scales in float16 where that holds them."""
        candidates = self._candidates()
        scale, zero = next(candidates)
        best = self._grid(scale, zero).in_half()
        scale, least = best.scale.reshape(-1), None
        for step, middle in candidates:
            least = self._error(scale, zero) if least is None else least
            fitted = self._grid(self._fitted(step, middle), middle).in_half().scale.reshape(-1)
            error = self._error(fitted, middle)
            wins = error < least
            scale, least = np.where(wins, fitted, scale), np.where(wins, error, least)
            zero = None if zero is None or middle is None else np.where(wins, middle, zero)
        return self._grid(scale, zero)

    def _grid(self, scale: np.ndarray, zero: np.ndarray | None) -> Grid:
        shape = self.form[:2]
        return Grid(self.bits, self.form[2], scale.reshape(shape), None if zero is None else zero.astype(np.uint8).reshape(shape))

    def _candidates(self) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """(scale, zero point, or None where that is the middle)."""
        low, high = self.x.min(0, initial=0), self.x.max(0, initial=0)
        if self.symmetric:
            extreme = np.where(high >= -low, high, low)
            if self.bits == 8:
                yield never_zero(np.abs(extreme) / 127), None
            else:
                for steps in STEPS:
                    yield never_zero(-extreme / steps), None
            return
        most = (1 << self.bits) - 1
        for part in PARTS[::-1] if self.bits == 4 else (np.float32(1),):
            scale = never_zero((high - low) * part / most)
            yield scale, np.rint(-low * part / scale).clip(0, most)

    def _round(self, scale: np.ndarray, zero: np.ndarray | None) -> np.ndarray:
        """The nearest codes, less the code of 0."""
        codes = np.divide(self.x, scale, out=self.codes)
        np.rint(codes, out=codes)
        grid = Grid(self.bits, self.form[2], scale, zero)
        offset = np.float32(grid.middle) if zero is None else zero
        found: np.ndarray = np.clip(codes, grid.least - offset, (1 << self.bits) - 1 - offset, out=codes)
        return found

    def _fitted(self, scale: np.ndarray, zero: np.ndarray | None) -> np.ndarray:
        """The scale of the least error for the codes as they are: <w, q> / <q, q>."""
        codes = self._round(scale, zero)
        power = self._sum(np.multiply(codes, codes, out=self.beside))
        product = self._sum(np.multiply(codes, self.x, out=self.beside))
        return never_zero(np.divide(product, power, out=scale.copy(), where=power > 0))

    def _error(self, scale: np.ndarray, zero: np.ndarray | None) -> np.ndarray:
        """Squared error of the nearest codes."""
        error = self._round(scale, zero)
        error *= scale
        error -= self.x
        error *= error
        return self._sum(error)

    def _sum(self, values: np.ndarray) -> np.ndarray:
        """Of each block, by what errors cost."""
        if self.costs is not None:
            values *= self.costs
        found: np.ndarray = values.sum(0)
        return found
