"""The inputs of a cached decoder after fusion: the mask goes, and nothing may ask a cache buffer how long the past is."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxport.errors import FusionError
from onnxport.graph.edit import attribute, constant, dims, is_op, new_node, take_over
from onnxport.quantize.fusion.rule import Outcome
from onnxport.runtime.bundle.interface import PAST, SELF_MASK, TOTAL_LENGTH


def drop_mask(graph: ir.Graph, role: str, outcome: Outcome) -> None:
    """Remove the graph input `self_mask`; dimensions read from it or from a past are read from other inputs of the same dimension.

    Raises `FusionError` if anything but a Shape still reads the mask, or if a dimension is to be had nowhere else.
    """
    gone = [v for v in graph.inputs if v.name == SELF_MASK or (v.name or "").startswith(PAST)]
    providers = [v for v in graph.inputs if v not in gone]
    for value in gone:
        for use in list(value.uses()):
            if is_op(use.node, "Shape"):
                _from_elsewhere(graph, use.node, value, providers, role)
    for value in [v for v in graph.inputs if v.name == SELF_MASK]:
        if value.uses():
            readers = {use.node.name for use in value.uses()}
            reasons = [m for m in outcome.misses.get("group_query_attention", []) if m.split(":")[0] in readers] or [
                f"it is read by {sorted(map(str, readers))}"
            ]
            raise FusionError(
                f"{role}: group_query_attention was applied to {outcome.counts['group_query_attention']} layers, expected all that read "
                f"'{SELF_MASK}'; the first miss is {reasons[0]}; export every layer alike or leave the graph unfused"
            )
        graph.inputs.remove(value)


def _from_elsewhere(graph: ir.Graph, node: ir.Node, value: ir.Value, providers: list[ir.Value], role: str) -> None:
    """Replaces a Shape of an input that goes, `value`, by dimensions of `providers`."""
    shape = dims(value) or ()
    start, end = attribute(node, "start", 0), attribute(node, "end", len(shape))
    parts: list[ir.Value] = []
    total = next((v for v in graph.inputs if v.name == TOTAL_LENGTH), None)
    for axis, dim in list(enumerate(shape))[start:end]:
        if isinstance(dim, int):
            parts.append(constant(graph, f"dim_{dim}", np.array([dim], np.int64)))
            continue
        if value.name == SELF_MASK and axis == 3 and total is not None:  # how many entries there are after this call
            parts.append(_as_dimension(graph, total))
            continue
        found = next(((v, (dims(v) or ()).index(dim)) for v in providers if dim in (dims(v) or ())), None)
        if found is None:
            raise FusionError(
                f"{role}: the graph reads dimension {axis} ('{dim}') of '{value.name}', expected only dimensions that other inputs have; "
                "compute it from position_ids or input_ids in the model"
            )
        like = ir.Value(name=f"{node.outputs[0].name}/{dim}", type=node.outputs[0].type, shape=ir.Shape([1]))
        parts.append(new_node(graph, node, "Shape", [found[0]], {"start": found[1], "end": found[1] + 1}, [like], domain="").outputs[0])
    if len(parts) == 1:
        replacement = parts[0]
        ir.convenience.replace_all_uses_with(node.outputs[0], replacement)
        graph.remove(node, safe=True)
        return
    new = new_node(graph, node, "Concat", parts, {"axis": 0}, [node.outputs[0]], domain="")
    take_over(node.outputs[0], new.outputs[0])
    graph.remove(node, safe=True)


def _as_dimension(graph: ir.Graph, scalar: ir.Value) -> ir.Value:
    """A scalar int32 as int64 [1], made once."""
    name = f"{scalar.name}/dimension"
    for node in graph:
        if node.outputs[0].name == name:
            return node.outputs[0]
    wide = ir.Value(name=f"{scalar.name}/int64", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
    cast = new_node(graph, graph[0], "Cast", [scalar], {"to": ir.DataType.INT64}, [wide], domain="")
    shape = constant(graph, "shape_1", np.array([1], np.int64))
    like = ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1]))
    reshape = new_node(graph, graph[0], "Reshape", [cast.outputs[0], shape], {}, [like], domain="")
    return reshape.outputs[0]
