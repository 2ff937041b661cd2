"""Round to nearest, on the grid that errs least: 4 bit takes the best of some scales, 8 bit the largest weight's.

The search follows llama.cpp's Q4_0 and its kin (ggml-quants.c, `make_qx_quants`): all 16 codes are used, so that the largest weight of a
block may be -8 with a scale of the other sign; each candidate is fitted to its codes by least squares; the one of least error stays.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxport.quantize.packing import Blocks, Grid, in_blocks

STEPS = np.linspace(6.0, 8.6, 14, dtype=np.float32)  # symmetric: steps from 0 to the largest weight; beyond 8 it is clipped
PARTS = np.linspace(0.6, 1.0, 11, dtype=np.float32)  # asymmetric: of the range between the least and the greatest weight


def quantize_nearest(weight: np.ndarray, bits: int, size: int, symmetric: bool, importance: np.ndarray | None = None) -> Blocks:
    """weight float [N, K] -> the nearest codes. importance: float [K], what a squared error costs in each column; None: the same."""
    blocks = in_blocks(weight, size)
    costs = np.ones(1, np.float32) if importance is None else in_blocks(importance[None], size)
    grid = find_grid(blocks, bits, symmetric, costs)
    return Blocks(grid, grid.nearest(blocks))


def find_grid(blocks: np.ndarray, bits: int, symmetric: bool, costs: np.ndarray) -> Grid:
    """blocks float32 [N, blocks, size], costs float32 that spreads to that shape."""
    candidates = _candidates(blocks, bits, symmetric)
    best = next(candidates)
    least = error(best, blocks, costs)
    for candidate in candidates:
        fitted = _fitted(candidate, blocks, costs)
        best, least = better(best, least, fitted, error(fitted, blocks, costs))
    return best


def better(one: Grid, error_of_one: np.ndarray, other: Grid, error_of_other: np.ndarray) -> tuple[Grid, np.ndarray]:
    """In each block the grid of less error, and that error [N, blocks]."""
    wins = error_of_other < error_of_one
    zero = None if one.zero is None or other.zero is None else np.where(wins, other.zero, one.zero)
    scale = np.where(wins, other.scale, one.scale)
    return Grid(one.bits, one.size, scale, zero), np.where(wins, error_of_other, error_of_one)


def error(grid: Grid, blocks: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Squared error of the nearest codes, float32 [N, blocks]."""
    found: np.ndarray = (costs * (grid.values(grid.nearest(blocks)) - blocks) ** 2).sum(2)
    return found


def _candidates(blocks: np.ndarray, bits: int, symmetric: bool) -> Iterator[Grid]:
    size = blocks.shape[2]
    low, high = blocks.min(2).clip(None, 0), blocks.max(2).clip(0, None)
    if symmetric:
        extreme = np.where(high >= -low, high, low)
        if bits == 8:
            yield Grid(bits, size, _never_zero(np.abs(extreme) / 127))
        else:
            for steps in STEPS:
                yield Grid(bits, size, _never_zero(-extreme / steps))
        return
    most = (1 << bits) - 1
    for part in PARTS[::-1] if bits == 4 else (np.float32(1),):
        scale = _never_zero((high - low) * part / most)
        zero = np.rint(-low * part / scale).clip(0, most)
        yield Grid(bits, size, scale, zero.astype(np.uint8))


def _fitted(grid: Grid, blocks: np.ndarray, costs: np.ndarray) -> Grid:
    """With the scale that errs least for the codes as they are: <w, q> / <q, q>."""
    codes = grid.nearest(blocks).astype(np.float32) - grid.offset[:, :, None]
    power = (costs * codes * codes).sum(2)
    scale = np.divide((costs * blocks * codes).sum(2), power, out=grid.scale.copy(), where=power > 0)
    return Grid(grid.bits, grid.size, _never_zero(scale), grid.zero)


def _never_zero(scale: np.ndarray) -> np.ndarray:
    return np.where(np.abs(scale) > 1e-30, scale, 1).astype(np.float32)
