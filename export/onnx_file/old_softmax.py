"""Softmax of opsets before 13, which counted everything behind its axis as one: what its conversion to later opsets leaves behind."""

from __future__ import annotations

import onnx_ir as ir

from onnxport.graph.edit import attribute, dims, is_op, only_use, remove_dead, take_over


def unflatten(graph: ir.Graph) -> None:
    """Takes out Flatten and Reshape around a Softmax over the last axis, where they change nothing; edits `graph`."""
    for node in list(graph):
        if (is_op(node, "Softmax") or is_op(node, "LogSoftmax")) and (found := _around(node)) is not None:
            x, back = found
            node.replace_input_with(0, x)
            node.attributes["axis"] = ir.AttrInt64("axis", -1)
            node.outputs[0].shape = x.shape
            take_over(back.outputs[0], node.outputs[0])
            graph.remove(back, safe=True)
    remove_dead(graph)


def _around(node: ir.Node) -> tuple[ir.Value, ir.Node] | None:
    """x and the Reshape of Reshape(Softmax(Flatten(x)), Shape(x)), where Flatten leaves the last axis alone; None for anything else."""
    value, out = node.inputs[0], node.outputs[0]
    flat = None if value is None else value.producer()
    if flat is None or not is_op(flat, "Flatten") or not only_use(out) or not is_op(back := out.uses()[0].node, "Reshape"):
        return None
    x, shape = flat.inputs[0], back.inputs[1]
    if x is None or shape is None or dims(x) is None or not is_op(asked := shape.producer(), "Shape"):
        return None
    last = attribute(flat, "axis", 1) in (-1, len(dims(x) or ()) - 1) and attribute(node, "axis", -1) in (-1, 1)
    return (x, back) if last and asked.inputs[0] is x and not asked.attributes else None
