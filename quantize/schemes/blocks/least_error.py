"""Rounding to the nearest codes, on the grid of each block that gives the least squared error.

Candidates are steps with which the codes reach as far as the largest weight, or less; each is fitted to its own codes. The numbers of a
block lie in a column, so that one operation of numpy goes over many blocks: five times as fast as along blocks of 32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from onnxport.quantize.schemes.blocks.by_rows import PIECE, by_rows
from onnxport.quantize.schemes.blocks.rounding import Blocks, Grid, better, columns, in_blocks, joined, never_zero
from onnxport.quantize.schemes.threads import in_threads

STEPS = np.linspace(6.0, 8.6, 14, dtype=np.float32)  # symmetric: steps from 0 to the largest weight; beyond 8 it is clipped
PARTS = np.linspace(0.6, 1.0, 11, dtype=np.float32)  # asymmetric: of the range between the least and the greatest weight


def quantize_nearest(weight: np.ndarray, bits: int, size: int, symmetric: bool, importance: np.ndarray | None = None) -> Blocks:
    """weight float [N, K] -> the nearest codes of 4 or 8 bits. importance: float [K], what a squared error costs; None: the same."""
    costs = None if importance is None else in_blocks(importance[None], size)

    def nearest(blocks: np.ndarray) -> Blocks:
        grid = _Search(blocks, bits, symmetric, costs).best()
        return Blocks(grid, grid.nearest(blocks))

    found = by_rows(weight, size, nearest)
    assert found is not None
    return found


def find_grid(blocks: np.ndarray, bits: int, symmetric: bool, costs: np.ndarray | None = None) -> Grid:
    """blocks float32 [N, blocks, size] -> a grid of 4 or 8 bits. costs: float32 [1, blocks, size] of squared errors; None: the same."""
    step = max(1, PIECE // max(1, blocks[:1].size))
    pieces = (blocks[i : i + step] for i in range(0, max(1, len(blocks)), step))
    return joined(list(in_threads(lambda rows: _Search(rows, bits, symmetric, costs).best(), pieces)))


class _Search:
    """The search over some rows. Numbers are [size, all blocks]."""

    def __init__(self, blocks: np.ndarray, bits: int, symmetric: bool, costs: np.ndarray | None) -> None:
        self.bits, self.symmetric, self.form = bits, symmetric, blocks.shape
        self.x = columns(blocks)
        self.costs = None if costs is None else columns(np.broadcast_to(costs, blocks.shape))
        self.codes, self.beside = np.empty_like(self.x), np.empty_like(self.x)

    def best(self) -> Grid:
        """The grid of the least error, its scales in float16 where that holds them."""
        candidates = self._candidates()
        best = next(candidates).in_half()
        least = self._error(best)
        for candidate in candidates:
            fitted = self._fitted(candidate).in_half()
            best, least = better(best, least, fitted, self._error(fitted))
        return best

    def _grid(self, scale: np.ndarray, zero: np.ndarray | None = None) -> Grid:
        """Of a scale and a zero point [all blocks]."""
        shape = self.form[:2]
        return Grid(
            self.bits, self.form[2], never_zero(scale).reshape(shape), None if zero is None else zero.astype(np.uint8).reshape(shape)
        )

    def _candidates(self) -> Iterator[Grid]:
        low, high = self.x.min(0, initial=0), self.x.max(0, initial=0)
        if self.symmetric:
            extreme = np.where(high >= -low, high, low)
            yield from [self._grid(np.abs(extreme) / 127)] if self.bits == 8 else (self._grid(-extreme / steps) for steps in STEPS)
            return
        most = (1 << self.bits) - 1
        for part in PARTS[::-1] if self.bits == 4 else (np.float32(1),):
            scale = never_zero((high - low) * part / most)
            yield self._grid(scale, np.rint(-low * part / scale).clip(0, most))

    def _round(self, grid: Grid) -> np.ndarray:
        """The nearest codes, less the code of 0."""
        codes = np.divide(self.x, grid.scale.reshape(-1), out=self.codes)
        np.rint(codes, out=codes)
        offset = np.float32(grid.middle) if grid.zero is None else grid.offset.reshape(-1)
        found: np.ndarray = np.clip(codes, grid.least - offset, (1 << self.bits) - 1 - offset, out=codes)
        return found

    def _fitted(self, grid: Grid) -> Grid:
        """With the scale of the least error for the codes as they are: <w, q> / <q, q>."""
        codes = self._round(grid)
        power = self._sum(np.multiply(codes, codes, out=self.beside))
        product = self._sum(np.multiply(codes, self.x, out=self.beside))
        return replace(grid, scale=never_zero(np.divide(product, power, out=grid.scale.copy(), where=power > 0)))

    def _error(self, grid: Grid) -> np.ndarray:
        """Squared error of the nearest codes, [N, blocks]."""
        error = self._round(grid)
        error *= grid.scale.reshape(-1)
        error -= self.x
        error *= error
        return self._sum(error)

    def _sum(self, values: np.ndarray) -> np.ndarray:
        """Of each block, by what errors cost: [N, blocks]."""
        if self.costs is not None:
            values *= self.costs
        found: np.ndarray = values.sum(0).reshape(self.form[:2])
        return found
