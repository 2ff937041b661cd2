"""Constant numbers in a graph, and values that are multiples of others by such."""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx_ir as ir

from onnxport.graph.edit import array_of, dims, is_op, source


def scaled(value: ir.Value) -> tuple[ir.Value, float]:
    """What is multiplied or divided by constant numbers, and their product."""
    *_, last = scalings(value)
    return last


def scalings(value: ir.Value) -> Iterator[tuple[ir.Value, float]]:
    """All values that, times a number, are this one: itself, what it is a multiple of, what that is one of, and so on."""
    factor = 1.0
    yield value, factor
    while (node := value.producer()) is not None and node.op_type in ("Mul", "Div") and not node.domain:
        found = [(i, array) for i, array in enumerate(map(number_of, node.inputs)) if array is not None]
        if not found or (node.op_type == "Div" and found[0][0] == 0):
            break
        place, number = found[0]
        factor *= number if node.op_type == "Mul" else 1 / number
        value = source(node, 1 - place)
        yield value, factor


def number_of(value: ir.Value | None) -> float | None:
    """A constant of one element, or what a little arithmetic makes of such and of dimensions that are known."""
    array, node = array_of(value), None if value is None else value.producer()
    if array is not None:
        return float(array.item()) if array.size == 1 else None
    if node is None or node.domain:
        return None
    if node.op_type in ("Cast", "Squeeze", "Unsqueeze", "Identity"):
        return number_of(source(node))
    if node.op_type == "Sqrt":
        inner = number_of(source(node))
        return None if inner is None else math.sqrt(inner)
    if node.op_type in ("Div", "Mul"):
        left, right = number_of(source(node, 0)), number_of(source(node, 1))
        if left is None or right is None:
            return None
        return left * right if node.op_type == "Mul" else left / right
    if node.op_type in ("Slice", "Gather") and is_op(shape := source(node).producer(), "Shape"):
        return _dimension(node, dims(source(shape)) if not shape.attributes else None)
    return None


def _dimension(node: ir.Node, shape: tuple[int | str, ...] | None) -> float | None:
    """The one dimension that a Slice or Gather takes out of a shape."""
    begin = array_of(source(node, 1))
    if shape is None or begin is None or begin.size != 1:
        return None
    if node.op_type == "Slice":
        end = array_of(source(node, 2))
        taken: tuple[int | str, ...] = () if end is None or end.size != 1 else shape[int(begin.item()) : int(end.item())]
    else:
        taken = (shape[int(begin.item())],)
    return float(taken[0]) if len(taken) == 1 and isinstance(taken[0], int) else None
