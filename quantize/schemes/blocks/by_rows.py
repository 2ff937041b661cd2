"""Codes of a weight found for some rows at a time, by several threads, each of which writes to its place in the whole."""

from collections.abc import Callable

import numpy as np

from onnxport.quantize.schemes.blocks.rounding import Blocks, Grid, in_blocks, joined
from onnxport.quantize.schemes.threads import in_threads

PIECE = 2**18  # weights that are worked on together: what a processor keeps near
Find = Callable[[np.ndarray], Blocks | None]


def by_rows(weight: np.ndarray, size: int, find: Find, order: np.ndarray | None = None) -> Blocks | None:
    """The blocks of a weight float [N, K]; None where `find` has none for some rows.

    find: for blocks float32 [rows, blocks, size]. order: of the columns, as in `Blocks`.
    """
    n, k = weight.shape
    codes = np.empty((n, -(-k // size), size), np.uint8)
    step = max(1, PIECE // max(1, k))

    def put(begin: int) -> Grid | None:
        rows = weight[begin : begin + step]
        found = find(in_blocks(rows if order is None else rows[:, order], size))
        if found is None:
            return None
        codes[begin : begin + step] = found.codes
        return found.grid

    grids = []
    for grid in in_threads(put, range(0, max(1, n), step)):
        if grid is None:
            return None
        grids.append(grid)
    return Blocks(joined(grids), codes, order)
