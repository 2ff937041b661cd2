"""Weights that lie on a grid of integers already, as those of a quantized checkpoint do: the grid is found again, and nothing is lost.

A weight's values tell its steps: in each block all are multiples of one number, which float32 shows to its last digits or so. So a variant
carries a checkpoint's own codes whatever way the values came, and a plan makes the same graphs again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import onnx_ir as ir

from onnxport.quantize.plan import BLOCK_SIZES, FP32, Plan, Scheme, scheme
from onnxport.quantize.schemes.blocks.by_rows import by_rows
from onnxport.quantize.schemes.blocks.rounding import ROUNDED, Blocks, Grid, based_grid, columns, multiples
from onnxport.quantize.schemes.linear import Linear, Lookup, linears, lookups
from onnxport.quantize.schemes.mixtures import ExpertWeights, mixtures

BITS = (4, 8)
CARRYING = {"int4": 4, "int8-weight": 8}  # precisions of blocks, and their bits
MOST = 0.5  # share of a model's weights
REST = "int8-blocks"  # of weights that a 4-bit checkpoint left in float: nothing to speak of is lost
ROWS, FEW = 4, 4  # rows of a weight, and weights of a block, that are looked at first
SHARING = 24  # rows that tell whether two columns share their steps


def stored_blocks(weight: np.ndarray, chosen: Scheme, size: int) -> Blocks | None:
    """weight float [N, K] -> the codes that stand for its very values (to float32's rounding of a product); None where there are none.

    chosen: of blocks; `size` is theirs.
    """
    order = groups(weight, size, chosen.bits) if chosen.in_groups else None

    def find(blocks: np.ndarray) -> Blocks | None:
        return _blocks(blocks, chosen)

    few = weight[:: max(1, len(weight) // ROWS)]  # they tell almost all weights that have none
    return None if by_rows(few, size, find, order) is None else by_rows(weight, size, find, order)


def _blocks(blocks: np.ndarray, chosen: Scheme) -> Blocks | None:
    """blocks float32 [N, blocks, size]. In what follows the numbers of a block lie in a column, [size, M]."""
    x, bits = columns(blocks), chosen.bits
    if chosen.minimum:
        low = x.min(0)
        x, error = x - low, np.abs(x).max(0) + np.abs(low)  # what float32 rounded was as large
        step = _steps(x, (1 << bits) - 1, False, error)
        if np.isnan(step).any():
            return None
        grid = based_grid(bits, low.reshape(blocks.shape[:2]), step.reshape(blocks.shape[:2]), blocks.shape[2])
        return Blocks(grid, grid.nearest(blocks))
    reach = (1 << bits) - 1 if not chosen.symmetric else 127 if bits == 8 else 8
    step = _steps(x, reach, chosen.symmetric and bits == 8)
    if np.isnan(step).any():
        return None
    codes = np.rint(np.divide(x, step, out=x), out=x)
    low, high = codes.min(0).clip(None, 0), codes.max(0).clip(0, None)
    if not chosen.symmetric:
        if (high - low > reach).any():
            return None
        codes -= low
    elif bits == 8:
        codes += 128
    else:  # one more code below 0 than above
        sign = np.where(high > -low, np.float32(-1), np.float32(1))
        if (np.minimum(high, -low) > 7).any():
            return None
        step, codes = step * sign, np.multiply(codes, sign, out=codes)
        codes += 8
    zero = None if chosen.symmetric else (-low).astype(np.uint8).reshape(blocks.shape[:2])
    grid = Grid(bits, blocks.shape[2], step.astype(np.float32).reshape(blocks.shape[:2]), zero)
    return Blocks(grid, np.ascontiguousarray(codes.astype(np.uint8).T).reshape(blocks.shape))


def _steps(blocks: np.ndarray, reach: int, farthest: bool, error: np.ndarray | None = None) -> np.ndarray:
    """blocks float32 [size, M] -> what all of a block are multiples of, up to `reach` times, float32 [M]; 1 for zeros, NaN for none.

    The largest such number, or, where `farthest` allows it, one that is quicker to find: most blocks reach as far as they can.
    error: float32 [M], what the numbers were differences of.
    """
    largest = np.maximum(blocks.max(0), -blocks.min(0))
    wide = largest if error is None else error
    step = np.where(largest > 0, np.nan, 1).astype(np.float32)
    for times in (reach, *range(1, reach)) if farthest else range(1, reach + 1):
        open_ = np.flatnonzero(np.isnan(step))
        if not open_.size:
            break
        guess = largest[open_] / np.float32(times)
        few = open_[multiples(blocks[:FEW].take(open_, 1), guess, wide[open_])]
        whole = few[multiples(blocks.take(few, 1), largest[few] / np.float32(times), wide[few])]
        step[whole] = largest[whole] / np.float32(times)
    return step


def groups(weight: np.ndarray, size: int, bits: int) -> np.ndarray | None:
    """weight [N, K] -> its columns by groups of `size` that share their steps in all rows, int64 [K]; None: there are none, or all lie so.

    GPTQ leaves groups across the inputs, by what an input weighs (`desc_act`). Columns of one group are the same steps as often as small
    integers say, so their ratios are quotients of such; those of two groups are not.
    """
    k = weight.shape[1]
    filled = weight.any(0)
    left, found = np.flatnonzero(filled), list[np.ndarray]()
    while left.size:
        same = left[_share(weight, int(left[0]), left, bits)]
        if same.size > size or same[0] != left[0]:
            return None
        found.append(same)
        left = np.setdiff1d(left, same, assume_unique=True)
        if len(found) * size >= k + size:
            return None
    order = np.concatenate(_filled_up(found, np.flatnonzero(~filled), size))
    return None if len(order) != k or np.array_equal(order, np.arange(k)) else order


def _filled_up(found: list[np.ndarray], zeros: np.ndarray, size: int) -> list[np.ndarray]:
    """Groups with columns of zeros, which are in any group, where they lack some; what is shorter still comes last."""
    whole = []
    for group in sorted(found, key=lambda group: -len(group)):
        whole.append(np.sort(np.concatenate([group, zeros[: size - len(group)]])))
        zeros = zeros[size - len(group) :]
    if any(len(group) < size for group in whole[:-1]):
        return []
    return [*sorted(whole[:-1], key=lambda group: int(group[0])), *whole[-1:], zeros]


def _share(weight: np.ndarray, column: int, others: np.ndarray, bits: int) -> np.ndarray:
    """Which of the columns `others` share the steps of `column` in all rows that are looked at: bool of their shape."""
    rows = np.flatnonzero(weight[:, column])[:SHARING]
    one = weight[rows, column][:, None]
    share = np.ones(len(others), bool)
    for few in (slice(0, ROWS), slice(ROWS, None)):  # a few tell almost all columns apart
        at = np.flatnonzero(share)
        ratio = weight[rows[few][:, None], others[at][None]] / one[few]
        share[at] = _quotients(ratio, (1 << bits) - 1).all(0)
    return share


def _quotients(ratio: np.ndarray, reach: int) -> np.ndarray:
    """Which numbers are quotients of two integers up to `reach`."""
    found = np.zeros(ratio.shape, bool)
    for below in range(1, reach + 1):
        times = ratio * np.float32(below)
        found |= (np.abs(times - np.rint(times)) <= ROUNDED * np.maximum(np.abs(times), 1)) & (np.abs(times) < reach + 0.5)
    return found


def scheme_of(weight: np.ndarray, bits: tuple[int, ...] = BITS) -> str | None:
    """The scheme of fewest bits and largest blocks that loses nothing of a weight [N, K]; None where all do."""
    if not weight.any() or weight.shape[1] % BLOCK_SIZES[0]:
        return None
    found = (chosen for chosen in _schemes(weight, bits) if stored_blocks(weight, chosen, chosen.block or 0) is not None)
    return next((chosen.name for chosen in found), None)


def carrying_scheme(part: Linear | Lookup | ExpertWeights) -> str | None:
    """`scheme_of` the weight of a product, lookup or mixture, looked for once."""
    tensor, turned = part.place
    known = _FOUND.setdefault(tensor, {})
    if turned not in known:
        known[turned] = scheme_of(part.rows)
    return known[turned]


_FOUND: WeakKeyDictionary[ir.TensorProtocol, dict[bool, str | None]] = WeakKeyDictionary()


def _schemes(weight: np.ndarray, bits: tuple[int, ...]) -> Iterator[Scheme]:
    """What may lose nothing of a weight, best first."""
    widest = scheme(f"int8-blocks{BLOCK_SIZES[0]}-min")  # what is on any grid is on this one too
    if stored_blocks(weight[:1], widest, BLOCK_SIZES[0]) is not None:
        sizes = [size for size in BLOCK_SIZES[::-1] if weight.shape[1] % size == 0]
        yield from (scheme(f"int{count}-blocks{size}{form}") for count in bits for size in sizes for form in ("", "-asym", "-min"))
    first = np.flatnonzero(weight.any(0))
    for count in bits:
        shared = int(_share(weight, int(first[0]), first, count).sum())
        size = next((size for size in BLOCK_SIZES if BLOCK_SIZES[0] // 2 <= shared <= size), None)
        if size is not None:
            yield from (scheme(f"int{count}-blocks{size}{form}-sorted") for form in ("", "-asym"))


@dataclass(frozen=True)
class Stored:
    """What of a model's weights lies on grids. schemes: name -> what loses nothing. share: of all weights, by their number."""

    schemes: Mapping[str, str]
    share: float


def stored(graphs: Mapping[str, ir.Model], bits: int) -> Stored:
    """Weights that schemes of `bits` carry without loss, 4 or 8, and in 8 bits those that need them: what 4 hold, 8 hold too."""
    found: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for part in _parts(graphs):
        name = (carrying_scheme(part) or FP32.name).replace("int4", f"int{bits}")
        same = found.setdefault(part.parameter, name) == name
        found[part.parameter] = name if same else FP32.name
        sizes[part.parameter] = math.prod(part.shape)
    kept = {name: carried for name, carried in found.items() if carried != FP32.name}
    just = sum(sizes[name] for name, carried in kept.items() if carried.startswith(f"int{bits}-"))
    return Stored(kept if just else {}, just / max(1, sum(sizes.values())))


def carrying(graphs: Mapping[str, ir.Model]) -> str | None:
    """The precision whose blocks carry most of a model's weights without loss: int4, else int8-weight; None where neither does."""
    return next((name for name, bits in CARRYING.items() if stored(graphs, bits).share >= MOST), None)


def carries(plan: Plan, graphs: Mapping[str, ir.Model]) -> bool:
    """Whether a plan of blocks, rounded to nearest, carries most of a model's weights without loss."""
    blocks = [s for s in map(scheme, plan.schemes.values()) if s.kind == "blocks" and s.solver == "rtn"]
    return bool(blocks) and stored(graphs, blocks[0].bits).share >= MOST


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


def _parts(graphs: Mapping[str, ir.Model]) -> Iterator[Linear | Lookup | ExpertWeights]:
    for model in graphs.values():
        yield from linears(model.graph)
        yield from lookups(model.graph)
        yield from (weights for mixture in mixtures(model.graph) for weights in mixture.weights)
