"""Rotary positions written out by halves, x * cos + (-x2, x1) * sin, become RotaryEmbedding (Su et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxport.graph.edit import Miss, array_of, attribute, constant, is_op, known_dims, new_node, same_shape, source, take_over
from onnxport.quantize.fusion.rule import Rule

ELEMENTWISE = ("Cos", "Sin")


@dataclass
class Match:
    """x [batch, heads, length, size] turned by tables [batch, length, size] whose halves are equal."""

    x: ir.Value
    cosines: ir.Value
    sines: ir.Value
    answer: ir.Node


class Rotary(Rule):
    """The sum of x times cosines and of x, its halves exchanged, times sines."""

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
                x = source(plain, i)
                if _is_exchanged(source(turned, j), x):
                    cosines, sines = (_table(source(product, 1 - k)) for product, k in ((plain, i), (turned, j)))
                    return Match(x, cosines, sines, node)
        raise Miss("no term is the other with its halves exchanged")

    def check(self, graph: ir.Graph, match: Match) -> None:
        """As `Rule`."""
        *_, size = known_dims(match.x, 4, "what is turned")
        for table in (match.cosines, match.sines):
            if known_dims(table, 3, "the table")[-1] != size:
                raise Miss("the tables turn a part of a head")
            rows = known_dims(table, 3, "the table")[0]
            if rows != 1 and not same_shape((rows,), known_dims(match.x, 4, "what is turned")[:1]):
                raise Miss("the tables are not those of each row, nor of all")
            if not _has_equal_halves(table):
                raise Miss("the halves of a table are not known to be equal")

    def rewrite(self, graph: ir.Graph, match: Match) -> None:
        """As `Rule`."""
        tables = [_for_rows(graph, match.answer, _half(graph, match.answer, table), match.x) for table in (match.cosines, match.sines)]
        like = [match.answer.outputs[0]]
        made = new_node(graph, match.answer, self.kernel, [match.x, *tables], {}, like, domain="")
        take_over(match.answer.outputs[0], made.outputs[0])


def _is_exchanged(value: ir.Value, x: ir.Value) -> bool:
    """Whether a value is Concat(-second half of x, first half of x)."""
    concat = value.producer()
    if concat is None or not is_op(concat, "Concat") or attribute(concat, "axis", None) not in (-1, 3) or len(concat.inputs) != 2:
        return False
    negative, first = source(concat).producer(), source(concat, 1)
    if negative is None or not is_op(negative, "Neg"):
        return False
    second = source(negative)
    size = (known_dims(x, 4, "what is turned") if x.shape is not None and len(x.shape) == 4 else (None,))[-1]
    if not isinstance(size, int):
        return False
    split = first.producer()
    if split is not None and is_op(split, "Split") and split is second.producer() and split.inputs[0] is x:
        return tuple(split.outputs) == (first, second) and first.shape == second.shape
    return _slice_of(first, x) == (0, size // 2) and _slice_of(second, x) == (size // 2, size)


def _slice_of(value: ir.Value, x: ir.Value) -> tuple[int, int] | None:
    """Begin and end of a slice of the last axis of x."""
    node = value.producer()
    if node is None or not is_op(node, "Slice") or node.inputs[0] is not x:
        return None
    found = [array_of(part) for part in node.inputs[1:]]
    if any(part is None or part.size != 1 for part in found):
        return None
    begin, end, axis, *step = (int(part.item()) for part in found if part is not None)
    size = known_dims(x, 4, "x")[-1]
    if axis not in (-1, 3) or step not in ([], [1]) or not isinstance(size, int):
        return None
    return begin, min(end, size)


def _table(value: ir.Value) -> ir.Value:
    """[batch, length, size] behind [batch, 1, length, size]."""
    node = value.producer()
    if node is None or not is_op(node, "Unsqueeze"):
        raise Miss("the table is not spread over heads")
    axes = array_of(source(node, 1))
    if axes is None or axes.ravel().tolist() != [1]:
        raise Miss("the table is not spread over heads")
    return source(node)


def _has_equal_halves(table: ir.Value) -> bool:
    """Whether it is made, an element from an element, of one value that stands twice in a Concat."""
    node = table.producer()
    while node is not None:
        if is_op(node, "Concat"):
            return attribute(node, "axis", None) in (-1, 2) and len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]
        if node.op_type == "Mul" and node.domain == "":
            scaled = [value for value in node.inputs if (array := array_of(value)) is None or array.size != 1]
            node = scaled[0].producer() if len(scaled) == 1 and scaled[0] is not None else None
        elif node.op_type in ELEMENTWISE and node.domain == "":
            node = source(node).producer()
        else:
            return False
    return False


def _half(graph: ir.Graph, before: ir.Node, table: ir.Value) -> ir.Value:
    """The first half of a table, made once."""
    for use in table.uses():
        if use.node.name == f"{table.name}/half/Slice":
            return use.node.outputs[0]
    batch, length, size = known_dims(table, 3, "the table")
    assert isinstance(size, int)
    parts = [constant(graph, f"index_{n}", np.array([n], np.int64)) for n in (0, size // 2, -1)]
    like = ir.Value(name=f"{table.name}/half", type=table.type, shape=ir.Shape([batch, length, size // 2]))
    return new_node(graph, before, "Slice", [table, *parts], {}, [like], domain="").outputs[0]


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
