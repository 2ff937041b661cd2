"""GPTQ (Frantar et al. 2022, https://arxiv.org/abs/2210.17323): columns are rounded one by one, those to come make good each one's error.

With H = mean of x xᵀ, trace((W - Q) H (W - Q)ᵀ) is the squared error of the layer's outputs. Scales come first, from the weights as they
are, so columns can be rounded in any order while each stays in its block: the costliest come first ("act-order" with "static groups").
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxport.quantize.schemes.blocks.least_error import find_grid
from onnxport.quantize.schemes.blocks.rounding import Blocks, Grid, in_blocks

DAMPING = 0.1  # of H's mean diagonal, added to it: calibration texts of a few thousand tokens show an H that is not quite theirs alone
LAZY = 128  # columns whose errors are passed on to the rest in one product


def quantize_gptq(
    weight: np.ndarray, bits: int, size: int, symmetric: bool, hessian: Sequence[np.ndarray], damping: float = DAMPING
) -> Blocks:
    """weight float [N, K] -> codes.

    hessian: of the layer's input, its parts along the diagonal, float64 [k, k] each, which have K columns together; `size` divides all k
    but the last. Errors of one part are not made good in another. damping: see DAMPING.
    """
    n = len(weight)
    blocks = in_blocks(weight, size)
    damped = [part + np.eye(len(part)) * max(damping * np.diag(part).mean(), 1e-30) for part in hessian]
    diagonal = np.concatenate([np.diag(part) for part in damped])
    grid = find_grid(blocks, bits, symmetric, in_blocks(diagonal[None] / diagonal.max(), size))
    codes = np.broadcast_to(grid.offset[:, :, None].astype(np.uint8), blocks.shape).copy().reshape(n, -1)
    begun = 0
    for part in damped:
        order = np.argsort(-np.diag(part), kind="stable")
        places = begun + order
        codes[:, places] = _rounded(weight[:, places].T.astype(np.float32), grid, places // size, _factor(part[np.ix_(order, order)])).T
        begun += len(part)
    return Blocks(grid, codes.reshape(blocks.shape))


def _factor(hessian: np.ndarray) -> np.ndarray:
    """The upper Cholesky factor of H's inverse, float32 [K, K]: row i tells how later columns make good an error of column i."""
    found: np.ndarray = np.linalg.cholesky(np.linalg.inv(hessian)).T
    return found.astype(np.float32)


def _rounded(columns: np.ndarray, grid: Grid, block_of: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """columns float32 [K, N], changed; block_of int [K] -> codes uint8 [K, N]."""
    codes = np.zeros(columns.shape, np.uint8)
    scales, offsets, most = grid.scale.T, grid.offset.T, (1 << grid.bits) - 1
    for start in range(0, len(columns), LAZY):
        stop = min(start + LAZY, len(columns))
        errors = np.zeros((stop - start, columns.shape[1]), np.float32)
        for i in range(start, stop):
            scale, offset = scales[block_of[i]], offsets[block_of[i]]
            code = (np.rint(columns[i] / scale) + offset).clip(grid.least, most)
            codes[i] = code
            errors[i - start] = (columns[i] - (code - offset) * scale) / factor[i, i]
            columns[i + 1 : stop] -= factor[i, i + 1 : stop, None] * errors[i - start]
        columns[stop:] -= factor[start:stop, stop:].T @ errors
    return codes
