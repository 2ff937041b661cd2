"""What norms that are written out have in common: a mean over the last axis, squares, and a small number under the root."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxport.graph.edit import Miss, array_of, attribute, constant, dims, is_op, produced_by, source


def with_scalar(add: ir.Node) -> tuple[ir.Value, float]:
    """What a constant number of float32 is added to, and the number."""
    for value, other in ((source(add), source(add, 1)), (source(add, 1), source(add))):
        array = array_of(other)
        if array is not None and array.size == 1 and array.dtype == np.float32:
            return value, float(array.item())
    raise Miss("no small number is added to the mean of squares")


def mean_of(value: ir.Value) -> ir.Value:
    """What a value is the mean of, over the last axis alone, which is kept."""
    node = produced_by(value, "ReduceMean", "a mean")
    axes = array_of(node.inputs[1]) if len(node.inputs) > 1 else np.array(attribute(node, "axes", ()))
    rank = len(dims(source(node)) or ())
    if axes is None or axes.size != 1 or int(axes.item()) not in (-1, rank - 1) or attribute(node, "keepdims", 1) != 1:
        raise Miss("the mean is not over the last axis alone, or does not keep it")
    return source(node)


def squared(value: ir.Value) -> ir.Value:
    """What a value is the square of."""
    node = value.producer()
    if node is not None and is_op(node, "Pow"):
        power = array_of(source(node, 1))
        if power is not None and power.size == 1 and float(power.item()) == 2:
            return source(node)
    if node is not None and is_op(node, "Mul") and node.inputs[0] is node.inputs[1]:
        return source(node)
    raise Miss("the mean is not of squares")


def no_weight(graph: ir.Graph, x: ir.Value) -> ir.Value:
    """Ones as long as the last axis of x, which the rule has seen to be known."""
    size = (dims(x) or ())[-1]
    assert isinstance(size, int)
    return constant(graph, f"ones_{size}", np.ones(size, np.float32))
