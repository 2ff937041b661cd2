"""Weights that lie on a grid of integers already, as those of a quantized checkpoint do: the grid is found again, and nothing is lost.

A weight's values tell its steps: in each block all are multiples of one number, which float32 shows to its last digits or so. So a variant
carries a checkpoint's own codes whatever way the values came, and a plan makes the same graphs again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxport.quantize.plan import BLOCK_SIZES, FP32, Plan, scheme
from onnxport.quantize.schemes.linear import Linear, Lookup, linears, lookups
from onnxport.quantize.schemes.rounding import ROUNDED, Blocks, Grid, in_blocks

CARRYING = {"int4": 4, "int8-weight": 8}  # precisions of blocks, and their bits
MOST = 0.5  # share of a model's weights
REST = "int8-blocks"  # of weights that a 4-bit checkpoint left in float: nothing to speak of is lost
ROWS, FEW = 4, 4  # rows of a weight, and weights of a block, that are looked at first


def stored_blocks(weight: np.ndarray, bits: int, size: int, symmetric: bool) -> Blocks | None:
    """weight float [N, K] -> the codes that stand for its very values (to float32's rounding of a product); None where there are none."""
    for rows in (weight[:: max(1, len(weight) // ROWS)], weight):  # a few tell almost all weights that have none
        found = _blocks(in_blocks(rows, size), bits, symmetric)
        if found is None:
            return None
    return found


def _blocks(blocks: np.ndarray, bits: int, symmetric: bool) -> Blocks | None:
    most = (1 << bits) - 1
    reach = most if not symmetric else 127 if bits == 8 else 8
    step = _steps(blocks.reshape(-1, blocks.shape[2]), reach, symmetric and bits == 8).reshape(blocks.shape[:2])
    if np.isnan(step).any():
        return None
    times = np.rint(blocks / step[:, :, None])
    low, high = times.min(2).clip(None, 0), times.max(2).clip(0, None)
    zero = None
    if symmetric:
        if bits == 4:  # one more code below 0 than above
            step = np.where(high > -low, -step, step)
            low, high = np.minimum(low, -high), np.minimum(high, -low)
            if (low < -8).any() or (high > 7).any():
                return None
    else:
        if (high - low > most).any():
            return None
        zero = (-low).astype(np.uint8)
    grid = Grid(bits, blocks.shape[2], step.astype(np.float32), zero)
    return Blocks(grid, grid.nearest(blocks))


def _steps(blocks: np.ndarray, reach: int, farthest: bool) -> np.ndarray:
    """blocks float32 [M, size] -> what all of a block are multiples of, up to `reach` times, float32 [M]; 1 for zeros, NaN for none.

    The largest such number, or, where `farthest` allows it, one that is quicker to find: most blocks reach as far as they can.
    """
    largest = np.abs(blocks).max(1)
    step = np.where(largest > 0, np.nan, 1).astype(np.float32)
    open_ = np.flatnonzero(largest > 0)
    for times in (reach, *range(1, reach)) if farthest else range(1, reach + 1):
        if not open_.size:
            break
        guess = largest[open_] / np.float32(times)
        few = open_[_multiples(blocks[open_, :FEW], guess)]
        whole = few[_multiples(blocks[few], largest[few] / np.float32(times))]
        step[whole] = largest[whole] / np.float32(times)
        open_ = np.setdiff1d(open_, whole, assume_unique=True) if whole.size else open_
    return step


def _multiples(blocks: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Which blocks [M, n] hold whole multiples of their `step` [M] alone."""
    times = blocks / step[:, None]
    whole: np.ndarray = (np.abs(times - np.rint(times)) <= ROUNDED * np.maximum(np.abs(times), 1)).all(1)
    return whole


def scheme_of(weight: np.ndarray, bits: Iterable[int]) -> str | None:
    """The scheme of fewest bits and largest blocks that loses nothing of a weight [N, K]; None where all do."""
    least = BLOCK_SIZES[0]
    if not weight.any() or weight.shape[1] % least or _blocks(in_blocks(weight[:1], least), 8, False) is None:
        return None  # what is on any grid is on this one too
    for count in bits:
        for size in (size for size in BLOCK_SIZES[::-1] if weight.shape[1] % size == 0):
            for symmetric in (True, False):
                if stored_blocks(weight, count, size, symmetric) is not None:
                    return f"int{count}-blocks{size}{'' if symmetric else '-asym'}"
    return None


@dataclass(frozen=True)
class Stored:
    """What of a model's weights lies on grids. schemes: name -> what loses nothing. share: of all weights, by their number."""

    schemes: Mapping[str, str]
    share: float


def stored(graphs: Mapping[str, ir.Model], bits: int) -> Stored:
    """Weights that schemes of `bits` carry without loss, 4 or 8, and in 8 bits those that need them."""
    found: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for part in _parts(graphs):
        weight = part.weight.T if isinstance(part, Linear) else part.table
        name = scheme_of(weight, range(bits, 9, 4)) or FP32.name
        same = found.setdefault(part.parameter, name) == name
        found[part.parameter] = name if same else FP32.name
        sizes[part.parameter] = weight.size
    kept = {name: carried for name, carried in found.items() if carried != FP32.name}
    just = sum(sizes[name] for name, carried in kept.items() if carried.startswith(f"int{bits}-"))
    return Stored(kept if just else {}, just / max(1, sum(sizes.values())))


def carrying(graphs: Mapping[str, ir.Model]) -> str | None:
    """The precision whose blocks carry most of a model's weights without loss: int4, else int8-weight; None where neither does."""
    return next((name for name, bits in CARRYING.items() if stored(graphs, bits).share >= MOST), None)


def own_plan(plan: Plan, graphs: Mapping[str, ir.Model]) -> Plan:
    """A precision's plan of blocks, rounded to nearest, with the codes that weights have already; any other plan as it is.

    Where that is most of a model, what its checkpoint left in float is kept in 8 bits.
    """
    chosen = scheme(plan.schemes["*"]) if set(plan.schemes) == {"*"} else FP32
    if chosen.kind != "blocks" or chosen.solver != "rtn":
        return plan
    found = stored(graphs, chosen.bits)
    rest = {"*": REST} if found.share >= MOST else {}
    return Plan({**plan.schemes, **rest, **found.schemes})


def _parts(graphs: Mapping[str, ir.Model]) -> Iterator[Linear | Lookup]:
    for model in graphs.values():
        yield from linears(model.graph)
        yield from lookups(model.graph)
