"""Weights of 8 or 4 bit with one scale per block of 16 to 256 weights of an output: for steps of a decoder, where reading weights takes
the time.

A table of embeddings has the same form as the projection to the vocabulary, so tied weights are the same bytes, stored once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxport.graph.edit import constant, new_node, take_over
from onnxport.graph.lazy import mapped
from onnxport.quantize.plan import Scheme
from onnxport.quantize.schemes.blocks.gptq import DAMPING, quantize_gptq
from onnxport.quantize.schemes.blocks.hqq import quantize_hqq
from onnxport.quantize.schemes.blocks.least_error import quantize_nearest
from onnxport.quantize.schemes.blocks.rounding import Blocks, Grid, from_minimum
from onnxport.quantize.schemes.blocks.stored import stored_blocks
from onnxport.quantize.schemes.finished import Finished
from onnxport.quantize.schemes.linear import Linear, Lookup

SIZES = (128, 64, 32, 16)
TIED = 10.0  # damping of GPTQ for a weight that is a table too: its rows should stay near themselves, whatever the projection's input is
MOST_KEPT = 2**28  # bytes of integers
ACCURACY = 4  # activations are quantized to int8 in blocks too


def block_size(k: int, wanted: int | None = None) -> int:
    """The wanted block, halved while half of it holds all of K; without a wish the largest that divides K, or one that wastes little."""
    if wanted is None:
        return next((size for size in SIZES if k % size == 0), 32 if k >= 32 else 16)
    while wanted > SIZES[-1] and wanted >= 2 * k:
        wanted //= 2
    return wanted


class Weights:
    """Integers of weights, found once for all uses of a weight in the graphs of a variant: a use may be a product or a lookup.

    Schemes that look at inputs are solved before any graph is changed, and kept. Of all others, which are quick to find again, those
    found last are kept as far as there is room: uses of a weight follow each other.

    finished: keeps what is solved, and has what was solved before from the same graphs and inputs.
    """

    def __init__(self, finished: Finished | None = None) -> None:
        self._finished = finished
        self._costs: dict[str, list[np.ndarray]] = {}
        self._looked_up: set[str] = set()
        self._solved: dict[tuple[str, str], Blocks] = {}
        self._found: dict[tuple[object, ...], Blocks] = {}

    def has(self, key: str, chosen: Scheme, size: int) -> bool:
        """Whether a weight, by its key, has been solved by a scheme that looks at inputs."""
        return (key, named(chosen, size)) in self._solved

    def take_over(self, key: str, chosen: Scheme, size: int) -> bool:
        """Whether a weight has been solved, also before this export began."""
        name = key, named(chosen, size)
        if name not in self._solved and self._finished is not None and (arrays := self._finished.get(" ".join(name))) is not None:
            self._solved[name] = _blocks(arrays, chosen.bits, size)
        return name in self._solved

    def see(self, key: str, costs: list[np.ndarray]) -> None:
        """What errors of a weight, by its key, cost in one of its uses, before it is solved: uses add up.

        costs: float64, the parts of the Hessian along its diagonal, or one array [K], the diagonal itself, where inputs count one by one.
        """
        self._costs[key] = [a + b for a, b in zip(self._costs[key], costs, strict=True)] if key in self._costs else costs

    def look_up(self, key: str) -> None:
        """A weight, by its key, whose rows are read as they are, before it is solved."""
        self._looked_up.add(key)

    def solve(self, key: str, weight: np.ndarray, chosen: Scheme, size: int) -> None:
        """Round a weight float [N, K], whose key is `key`, by the costs of all its uses, which are forgotten."""
        costs = self._costs.pop(key)
        found = stored_blocks(weight, chosen, size)
        if found is None and chosen.solver == "gptq":
            damping = TIED if key in self._looked_up else DAMPING
            found = quantize_gptq(weight, chosen.bits, size, chosen.symmetric, costs, damping)
        found = found or quantize_nearest(weight, chosen.bits, size, chosen.symmetric, costs[0])
        name = key, named(chosen, size)
        if self._finished is None:
            self._solved[name] = replace(found, codes=mapped(found.codes))
        else:
            self._solved[name] = _blocks(self._finished.keep(" ".join(name), _arrays(found)), chosen.bits, size)

    def blocks(self, part: Linear | Lookup, chosen: Scheme, size: int) -> Blocks:
        """The integers of a weight: those it has already where it lies on such a grid.

        A scheme that looks at inputs rounds to nearest where a weight was not solved: a token's row is read as it is.
        """
        name = named(chosen, size)
        if self._solved and (part.key, name) in self._solved:
            return self._solved[part.key, name]
        made_anew = isinstance(part.tensor, ir.LazyTensor)  # takes no memory; told from others without being made
        place = (*part.place, name) if made_anew else (part.key, name)
        if place not in self._found:
            while self._found and sum(other.codes.size for other in self._found.values()) + math.prod(part.shape) > MOST_KEPT:
                self._found.pop(next(iter(self._found)))  # before more is in memory
            self._found[place] = rounded(part.rows, chosen, size)
        return self._found[place]


def _arrays(found: Blocks) -> dict[str, np.ndarray]:
    grid = found.grid
    arrays = {"codes": found.codes, "order": found.order, "scale": grid.scale, "zero": grid.zero, "base": grid.base}
    return {name: array for name, array in arrays.items() if array is not None}


def _blocks(arrays: Mapping[str, np.ndarray], bits: int, size: int) -> Blocks:
    """What `_arrays` was given."""
    grid = Grid(bits, size, arrays["scale"], arrays.get("zero"), arrays.get("base"))
    return Blocks(grid, arrays["codes"], arrays.get("order"))


def rounded(weight: np.ndarray, chosen: Scheme, size: int) -> Blocks:
    """weight float [N, K] -> its integers, whatever its inputs are; those that it lies on, where it does."""
    if (found := stored_blocks(weight, chosen, size)) is not None:
        return found
    if chosen.minimum:
        return from_minimum(weight, chosen.bits, size)
    if chosen.solver == "hqq":
        return quantize_hqq(weight, chosen.bits, size, chosen.symmetric)
    return quantize_nearest(weight, chosen.bits, size, chosen.symmetric)


def named(chosen: Scheme, size: int) -> str:
    """The scheme's name with its block size told: `int4-blocks-asym` -> `int4-blocks32-asym`."""
    kind, _, rest = chosen.name.partition("-blocks")
    return f"{kind}-blocks{size}{rest.lstrip('0123456789')}"


def replace_linear(graph: ir.Graph, linear: Linear, chosen: Scheme, weights: Weights) -> str:
    """Put a MatMulNBits in the place of a product; returns the scheme with its block size told."""
    k, n = linear.shape
    size = block_size(k, chosen.block)
    found = weights.blocks(linear, chosen, size)
    name = linear.node.outputs[0].name
    x = linear.x if found.order is None else _sorted(graph, linear.node, linear.x, found.order)
    inputs = [
        x,
        constant(graph, f"{name}/uint{chosen.bits}", mapped(found.packed())),
        constant(graph, f"{name}/block_scale", mapped(found.grid.scale)),
    ]
    zero = found.grid.packed_zero()
    if zero is not None or linear.bias is not None:
        inputs.append(None if zero is None else constant(graph, f"{name}/block_zero", zero))
    if linear.bias is not None:
        inputs += [None, linear.bias]  # no order of groups
    attributes = {"K": k, "N": n, "bits": chosen.bits, "block_size": size, "accuracy_level": ACCURACY}
    out = linear.output
    like = out if found.grid.base is None else ir.Value(name=f"{name}/of_steps", type=out.type, shape=out.shape)
    y = new_node(graph, linear.node, "MatMulNBits", inputs, attributes, [like]).outputs[0]
    take_over(out, y if found.grid.base is None else _raised(graph, linear, x, found.grid, y))
    return named(chosen, size)


def _sorted(graph: ir.Graph, before: ir.Node, x: ir.Value, order: np.ndarray) -> ir.Value:
    """x with its last axis in another order, once for all products that read it so."""
    places = constant(graph, f"order_{hashlib.sha256(order.tobytes()).hexdigest()[:16]}", order.astype(np.int64))
    return _once(graph, before, "Gather", [x, places], f"{x.name}/{places.name}", axis=-1)


def _raised(graph: ir.Graph, linear: Linear, x: ir.Value, grid: Grid, y: ir.Value) -> ir.Value:
    """y [..., N] and what the bases of blocks add to it: each is multiplied with the sum of the x [..., K] in its block.

    The kernel takes zero points that are no integers too, but expands all weights for them at every run: 44 ms against 0.5 for 2048 x 2048.
    """
    before, name = linear.node, linear.node.outputs[0].name
    assert grid.base is not None
    split = _once(graph, before, "Reshape", [x, _block_shape(graph, grid.base.shape[1], grid.size)], f"{x.name}/blocks{grid.size}")
    sums = _once(graph, before, "ReduceSum", [split, constant(graph, "axis_2", np.array([2], np.int64))], f"{split.name}/sums", keepdims=0)
    base = constant(graph, f"{name}/block_base", np.ascontiguousarray(grid.base.T))
    more = _once(graph, before, "MatMul", [sums, base], f"{name}/of_bases")
    more = _once(graph, before, "Reshape", [more, _shape_of(graph, before, y)], f"{more.name}/like")
    return new_node(graph, before, "Add", [y, more], {}, [linear.output], domain="").outputs[0]


def _raised_rows(graph: ir.Graph, lookup: Lookup, grid: Grid, y: ir.Value) -> ir.Value:
    """The rows y [..., K] with the bases of their blocks."""
    before, name = lookup.node, lookup.node.outputs[0].name
    assert grid.base is not None
    count = grid.base.shape[1]
    table = constant(graph, f"{name}/block_base", grid.base)
    bases = _once(graph, before, "Gather", [table, lookup.ids], f"{name}/of_bases", axis=0)
    bases = _once(graph, before, "Reshape", [bases, _block_shape(graph, count, 1)], f"{name}/of_bases/blocks")
    split = _once(graph, before, "Reshape", [y, _block_shape(graph, count, grid.size)], f"{y.name}/blocks")
    total = _once(graph, before, "Add", [split, bases], f"{y.name}/raised")
    return new_node(graph, before, "Reshape", [total, _shape_of(graph, before, y)], {}, [lookup.node.outputs[0]], domain="").outputs[0]


def _block_shape(graph: ir.Graph, count: int, size: int) -> ir.Value:
    return constant(graph, f"shape_blocks_{count}_{size}", np.array([-1, count, size], np.int64))


def _shape_of(graph: ir.Graph, before: ir.Node, y: ir.Value) -> ir.Value:
    like = ir.Value(name=f"{y.name}/shape", type=ir.TensorType(ir.DataType.INT64))
    return new_node(graph, before, "Shape", [y], {}, [like], domain="").outputs[0]


def _once(graph: ir.Graph, before: ir.Node, op_type: str, inputs: list[ir.Value], name: str, **attributes: int) -> ir.Value:
    """The result of a node of floats, made where there is none of that name yet."""
    made = next((use.node.outputs[0] for use in inputs[0].uses() if use.node.outputs[0].name == name), None)
    if made is not None:
        return made
    like = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT))
    return new_node(graph, before, op_type, inputs, attributes, [like], domain="").outputs[0]


def replace_lookup(graph: ir.Graph, lookup: Lookup, chosen: Scheme, weights: Weights) -> str:
    """Put a GatherBlockQuantized in the place of a Gather; returns the scheme with its block size told."""
    k = lookup.shape[1]
    size = block_size(k, chosen.block)
    found = weights.blocks(lookup, chosen, size)
    out = lookup.node.outputs[0]
    name = out.name
    table = constant(graph, f"{name}/uint{chosen.bits}", mapped(found.packed().reshape(len(found.codes), -1)))
    inputs = [table, lookup.ids, constant(graph, f"{name}/block_scale", mapped(found.grid.scale))]
    zero = found.grid.packed_zero()
    if zero is not None:
        inputs.append(constant(graph, f"{name}/block_zero", zero))
    attributes = {"bits": chosen.bits, "block_size": size, "gather_axis": 0, "quantize_axis": 1}
    whole = k % size == 0
    plain = whole and found.grid.base is None
    wide = out if plain else ir.Value(name=f"{name}/{'of_steps' if whole else 'padded'}", type=out.type)
    y = new_node(graph, lookup.node, "GatherBlockQuantized", inputs, attributes, [wide]).outputs[0]
    if found.grid.base is not None:
        y = _raised_rows(graph, lookup, found.grid, y)
    if not whole:
        ends = [constant(graph, f"slice_{i}", np.array([i], np.int64)) for i in (0, k, -1)]
        y = new_node(graph, lookup.node, "Slice", [y, *ends], {}, [out], domain="").outputs[0]
    take_over(out, y)
    return named(chosen, size)
