"""Rotary positions that are written out become RotaryEmbedding (Su et al. 2021), of whole heads or of their beginnings.

By halves, x * cos + (-x2, x1) * sin with x = (x1, x2), or by pairs, where x1 and x2 are every other element of x.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxport.graph.edit import (
    Miss,
    array_of,
    attribute,
    constant,
    dims,
    is_op,
    known_dims,
    new_node,
    only_use,
    produced_by,
    same_shape,
    source,
    take_over,
)
from onnxport.quantize.fusion.rule import Rule

ELEMENTWISE = ("Cos", "Sin")
LAST = (-1, 3)  # axes that are the last of four


@dataclass
class Match:
    """x [batch, heads, length, size] turned by tables [batch, 1, length, size], in which each number stands twice.

    pairs: every other element is turned with the next one, and the tables' numbers stand beside each other.
    """

    x: ir.Value
    cosines: ir.Value
    sines: ir.Value
    answer: ir.Node
    pairs: bool


class Rotary(Rule):
    """The sum of x times cosines and of x, its halves or neighbours exchanged, times sines."""

    name = "rotary"
    anchor = "Add"
    since = 23
    kernel = "RotaryEmbedding"

    def pattern(self, node: ir.Node) -> Match:
        """As `Rule`."""
        products = [value.producer() for value in (source(node), source(node, 1))]
        if not all(is_op(product, "Mul") for product in products):
            raise Miss("the sum is not of two products")
        for plain, turned in (products, products[::-1]):
            assert plain is not None and turned is not None
            for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
                x, other = source(plain, i), source(turned, j)
                if (pairs := _is_paired(other, x)) or _is_exchanged(other, x):
                    return Match(x, source(plain, 1 - i), source(turned, 1 - j), node, pairs)
        raise Miss("no term is the other with its halves or its neighbours exchanged")

    def check(self, graph: ir.Graph, match: Match) -> None:
        """As `Rule`."""
        batch, *_, size = known_dims(match.x, 4, "what is turned")
        for table in (match.cosines, match.sines):
            rows, heads, _, width = known_dims(table, 4, "the table")
            if width != size:
                raise Miss("the tables turn a part of a head")
            if heads != 1:
                raise Miss("the table is not spread over heads")
            if rows != 1 and not same_shape((rows,), (batch,)):
                raise Miss("the tables are not those of each row, nor of all")
            if not _stands_twice(table, match.pairs):
                raise Miss(f"the {'neighbours' if match.pairs else 'halves'} of a table are not known to be equal")

    def rewrite(self, graph: ir.Graph, match: Match) -> None:
        """As `Rule`."""
        node, tables = match.answer, (match.cosines, match.sines)
        halves = [_for_rows(graph, node, _half(graph, node, table, match.pairs), match.x) for table in tables]
        attributes = {"interleaved": 1} if match.pairs else {}
        made = new_node(graph, node, self.kernel, [match.x, *halves], attributes, [node.outputs[0]], domain="")
        take_over(node.outputs[0], made.outputs[0])


class PartialRotary(Rule):
    """Heads whose beginnings are turned, and then joined to what is left of them, go into the kernel whole."""

    name = "partial_rotary"
    anchor = "Concat"
    since = 23
    kernel = ""

    def pattern(self, node: ir.Node) -> tuple[ir.Node, ir.Node, ir.Value]:
        """As `Rule`."""
        if len(node.inputs) != 2 or attribute(node, "axis", None) not in LAST:
            raise Miss("it does not join two parts of heads")
        turned = produced_by(source(node), "RotaryEmbedding", "the first part")
        if len(turned.inputs) != 3 or not only_use(turned.outputs[0]):
            raise Miss("what is turned has other uses, or tables of positions")
        begin = source(turned)
        whole = next((source(part) for part in (begin.producer(),) if is_op(part, "Slice") or is_op(part, "Split")), None)
        if whole is None:
            raise Miss("what is turned is no part of a head")
        return node, turned, whole

    def check(self, graph: ir.Graph, match: tuple[ir.Node, ir.Node, ir.Value]) -> None:
        """As `Rule`."""
        node, turned, whole = match
        size = known_dims(whole, 4, "heads")[-1]
        width = known_dims(source(turned), 4, "what is turned")[-1]
        if not _are_parts((source(turned), source(node, 1)), whole, width):
            raise Miss(f"the parts are not the first {width} and the other elements of heads of {size}")

    def rewrite(self, graph: ir.Graph, match: tuple[ir.Node, ir.Node, ir.Value]) -> None:
        """As `Rule`."""
        node, turned, whole = match
        attributes = {key: found.value for key, found in turned.attributes.items()}
        attributes |= {"rotary_embedding_dim": known_dims(source(turned), 4, "what is turned")[-1]}
        made = new_node(graph, node, "RotaryEmbedding", [whole, *turned.inputs[1:]], attributes, [node.outputs[0]], domain="")
        take_over(node.outputs[0], made.outputs[0])


def _is_exchanged(value: ir.Value, x: ir.Value) -> bool:
    """Whether a value is Concat(-second half of x, first half of x)."""
    concat = value.producer()
    if concat is None or not is_op(concat, "Concat") or attribute(concat, "axis", None) not in LAST or len(concat.inputs) != 2:
        return False
    negative, first = source(concat).producer(), source(concat, 1)
    size = (dims(x) or (None,))[-1]
    if negative is None or not is_op(negative, "Neg") or not isinstance(size, int):
        return False
    return _are_parts((first, source(negative)), x, size // 2)


def _is_paired(value: ir.Value, x: ir.Value) -> bool:
    """Whether a value holds, for neighbours a and b in x, -b and a."""
    merged, size = value.producer(), (dims(x) or (None,))[-1]
    if merged is None or not is_op(merged, "Reshape") or not same_shape(dims(value), dims(x)) or not isinstance(size, int):
        return False
    concat = source(merged).producer()
    if concat is None or not is_op(concat, "Concat") or attribute(concat, "axis", None) not in (-1, 4) or len(concat.inputs) != 2:
        return False
    negative, first = _spread(source(concat)), _spread(source(concat, 1))
    if negative is None or first is None or not is_op(node := negative.producer(), "Neg"):
        return False
    assert node is not None
    return _slice_of(first, x) == (0, size, 2) and _slice_of(source(node), x) == (1, size, 2)


def _spread(value: ir.Value) -> ir.Value | None:
    """[..., n] behind [..., n, 1]."""
    node = value.producer()
    if node is None or not is_op(node, "Unsqueeze"):
        return None
    axes, rank = array_of(source(node, 1)), len(dims(value) or ())
    return source(node) if axes is not None and axes.ravel().tolist() in ([-1], [rank - 1]) else None


def _are_parts(parts: tuple[ir.Value, ir.Value], x: ir.Value, width: int | str) -> bool:
    """Whether two values are the first `width` elements of x and those behind them, by a Split or by two Slices."""
    size = (dims(x) or (None,))[-1]
    first, second = parts
    split = first.producer()
    if split is not None and is_op(split, "Split") and split is second.producer() and split.inputs[0] is x:
        on_last = attribute(split, "axis", 0) in LAST
        return on_last and tuple(split.outputs) == parts and known_dims(first, 4, "a part")[-1] == width
    return _slice_of(first, x) == (0, width, 1) and _slice_of(second, x) == (width, size, 1)


def _slice_of(value: ir.Value, x: ir.Value) -> tuple[int, int, int] | None:
    """Begin, end and step of a slice of the last axis of x."""
    node = value.producer()
    if node is None or not is_op(node, "Slice") or node.inputs[0] is not x:
        return None
    found = [array_of(part) for part in node.inputs[1:]]
    if any(part is None or part.size != 1 for part in found):
        return None
    begin, end, axis, *step = (int(part.item()) for part in found if part is not None)
    size = known_dims(x, 4, "x")[-1]
    if axis not in LAST or not isinstance(size, int):
        return None
    return begin, min(end, size), (step or [1])[0]


def _stands_twice(table: ir.Value, pairs: bool) -> bool:
    """Whether a table is made, an element from an element, of one value that stands twice: in a Concat, or each element beside itself."""
    node = table.producer()
    while node is not None:
        if is_op(node, "Concat"):
            last = (-1, len(dims(node.outputs[0]) or ()) - 1)
            return not pairs and attribute(node, "axis", None) in last and len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]
        if is_op(node, "Reshape"):
            return pairs and _is_repeated(node)
        if node.op_type == "Mul" and node.domain == "":
            scaled = [value for value in node.inputs if (array := array_of(value)) is None or array.size != 1]
            node = scaled[0].producer() if len(scaled) == 1 and scaled[0] is not None else None
        elif node.op_type in ELEMENTWISE and node.domain == "" or _spreads_over_heads(node):
            node = source(node).producer()
        else:
            return False
    return False


def _spreads_over_heads(node: ir.Node) -> bool:
    """Whether a node makes [batch, 1, length, size] of [batch, length, size]."""
    axes = array_of(source(node, 1)) if is_op(node, "Unsqueeze") else None
    return axes is not None and axes.ravel().tolist() == [1]


def _is_repeated(node: ir.Node) -> bool:
    """Whether a Reshape gives [..., 2 n] of a value [..., n] whose elements were each laid out twice."""
    wide = source(node).producer()
    if wide is None or not is_op(wide, "Expand") or (narrow := _spread(source(wide))) is None:
        return False
    before, repeated, after = dims(narrow), dims(wide.outputs[0]), dims(node.outputs[0])
    if before is None or repeated is None or after is None or not isinstance(before[-1], int):
        return False
    return same_shape(repeated, (*before, 2)) and same_shape(after, (*before[:-1], 2 * before[-1]))


def _half(graph: ir.Graph, before: ir.Node, table: ir.Value, pairs: bool) -> ir.Value:
    """Each number of a table [batch, 1, length, size] once, [batch, length, size / 2]."""
    node = table.producer()
    if node is not None and _spreads_over_heads(node):  # all layers read one table
        table = source(node)
    name = f"{table.name}/{'every_other' if pairs else 'half'}"
    made = next((use.node.outputs[0] for use in table.uses() if use.node.outputs[0].name in (name, f"{name}/of_heads")), None)
    if made is not None:
        return made if made.name == name else made.uses()[0].node.outputs[0]
    shape = dims(table)
    assert shape is not None and isinstance(shape[-1], int) and table.shape is not None
    half = shape[-1] // 2
    ends = (0, shape[-1], -1, 2) if pairs else (0, half, -1)
    parts = [constant(graph, f"index_{n}", np.array([n], np.int64)) for n in ends]
    spread = len(shape) == 4
    like = ir.Value(name=f"{name}/of_heads" if spread else name, type=table.type, shape=ir.Shape([*table.shape[:-1], half]))
    found = new_node(graph, before, "Slice", [table, *parts], {}, [like], domain="").outputs[0]
    if not spread:
        return found
    like = ir.Value(name=name, type=table.type, shape=ir.Shape([table.shape[0], table.shape[2], half]))
    axis = constant(graph, "axis_1", np.array([1], np.int64))
    return new_node(graph, before, "Squeeze", [found, axis], {}, [like], domain="").outputs[0]


def _for_rows(graph: ir.Graph, before: ir.Node, table: ir.Value, x: ir.Value) -> ir.Value:
    """A table of all rows, once for each of them, as the kernel wants it."""
    rows, length, size = known_dims(table, 3, "the table")
    batch = known_dims(x, 4, "what is turned")[0]
    if rows != 1 or batch == 1:
        return table
    name = f"{table.name}/rows"
    for use in table.uses():
        if use.node.outputs[0].name == name:
            return use.node.outputs[0]
    int64 = ir.TensorType(ir.DataType.INT64)
    count = ir.Value(name=f"{name}/batch", type=int64, shape=ir.Shape([1]))
    asked = new_node(graph, before, "Shape", [x], {"start": 0, "end": 1}, [count], domain="").outputs[0]
    target = ir.Value(name=f"{name}/shape", type=int64, shape=ir.Shape([3]))
    parts = [asked, constant(graph, "dims_1_1", np.array([1, 1], np.int64))]
    wanted = new_node(graph, before, "Concat", parts, {"axis": 0}, [target], domain="").outputs[0]
    like = ir.Value(name=name, type=table.type, shape=ir.Shape([batch, length, size]))
    return new_node(graph, before, "Expand", [table, wanted], {}, [like], domain="").outputs[0]
