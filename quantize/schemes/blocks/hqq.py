"""HQQ, half-quadratic quantization without data (Badri and Shaji 2023, https://mobiusml.github.io/hqq_blog/).

Minimizes sum |w - (q - z) s|^p with p < 1, so that few large errors, those of outlying weights, do not pull the grid away from the others:
errors that are let stand, e, are split off (their step is a shrinkage), and the rest is a problem of least squares. Other than there,
zero points are whole numbers, as the kernel for the CPU wants them; the scale is fitted too, in the same closed form; errors are
measured in steps of the scale, so that the same constants serve weights of any size.
"""

from __future__ import annotations

import numpy as np

from onnxport.quantize.schemes.blocks.least_error import find_grid
from onnxport.quantize.schemes.blocks.rounding import Blocks, Grid, better, in_blocks

P, BETA, GROWTH, ROUNDS = 0.7, 10.0, 1.01, 20  # as in the source


def quantize_hqq(weight: np.ndarray, bits: int, size: int, symmetric: bool) -> Blocks:
    """weight float [N, K] -> codes on the best grid that was met, from the one of the least squared error on."""
    blocks = in_blocks(weight, size)
    now = best = find_grid(blocks, bits, symmetric)
    least, beta = cost(best, blocks), BETA
    for _ in range(ROUNDS):
        now = _improved(now, blocks, beta)
        half = now.in_half()
        best, least = better(best, least, half, cost(half, blocks))
        beta *= GROWTH
    return Blocks(best, best.nearest(blocks))


def cost(grid: Grid, blocks: np.ndarray) -> np.ndarray:
    """sum |error|^p of each block, float32 [N, blocks]."""
    found: np.ndarray = (np.abs(grid.values(grid.nearest(blocks)) - blocks) ** P).sum(2)
    return found


def _improved(grid: Grid, blocks: np.ndarray, beta: float) -> Grid:
    scale = grid.scale[:, :, None]
    codes = grid.nearest(blocks).astype(np.float32)
    error = blocks / scale - (codes - grid.offset[:, :, None])
    size = np.abs(error).clip(1e-6)
    kept = np.sign(error) * (size - size ** (P - 1) / beta).clip(0)
    target = blocks / scale - kept
    zero = grid.zero
    if zero is not None:
        zero = np.rint((codes - target).mean(2)).clip(0, (1 << grid.bits) - 1).astype(np.uint8)
    steps = codes - Grid(grid.bits, grid.size, grid.scale, zero).offset[:, :, None]
    power = (steps * steps).sum(2)
    factor = np.divide((target * steps).sum(2), power, out=np.ones_like(power), where=power > 0)
    factor = np.where(factor > 0, factor, 1)
    return Grid(grid.bits, grid.size, (grid.scale * factor).astype(np.float32), zero)
