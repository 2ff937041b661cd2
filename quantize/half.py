"""FP16: weights, activations and caches in half precision; ids, masks and what users see stay as they are.

A converter of its own, since those of onnxruntime and onnxconverter-common have one switch for the types of all inputs and outputs, while
here caches must change and logits must not; ONNX Runtime itself inserts casts around CPU kernels that have no half-precision form.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from onnxport.errors import CheckpointError
from onnxport.quantize.fusion import name_shapes
from onnxport.quantize.fusion.constants import fold_constants
from onnxport.quantize.fusion.core import array_of, attribute, constant, new_node, optional

CACHES = re.compile(r"(past|present|cross)_(key|value)_\d+$")  # as our decoders call them; a foreign graph's keep their type
LARGEST = float(np.finfo(np.float16).max)
FLOAT32_ONLY = {"Range"}  # ONNX defines them without float16
FLOAT32_INPUTS = {"Resize": 2}  # the same for one input: scales
HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT


def to_fp16(model: ir.Model) -> ir.Model:
    """A half-precision copy of a float32 graph, standard or fused.

    Caches (`past_*`, `present_*`, `cross_*`) become float16; every other float input or output keeps float32 at the boundary. Raises
    `CheckpointError` for a weight beyond float16's range or a graph with control flow.
    """
    copy = model.clone()
    graph = copy.graph
    for node in graph:
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values() if isinstance(a, ir.Attr)):
            raise CheckpointError(
                f"{node.op_type} '{node.name}' holds a graph of its own, which fp16 does not support; leave fp16 out of --precision"
            )
    fold_constants(graph)
    name_shapes(copy)  # types too: a stored graph has none inside
    exact = _float32_inputs(graph)
    for name, value in graph.initializers.items():
        if value.dtype == FLOAT and value not in exact:
            array = array_of(value)
            assert array is not None
            value.const_value = ir.tensor(_halved(name, array), name=name)
            value.type = ir.TensorType(HALF)
    for node in list(graph):
        _halve_node(graph, node)
    _boundary(graph)
    graph.sort()
    return copy


def _float32_inputs(graph: ir.Graph) -> set[ir.Value]:
    """Constants that stay as they are, each read by nodes that take float32 alone."""
    exact: set[ir.Value] = set()
    for node in graph:
        value = optional(node, FLOAT32_INPUTS.get(node.op_type, len(node.inputs)))
        array = array_of(value)
        if value is not None and array is not None and array.dtype == np.float32:
            exact.add(own := constant(graph, f"{value.name}/float32", array))
            node.replace_input_with(FLOAT32_INPUTS[node.op_type], own)
    return exact


def _halved(name: str, array: np.ndarray) -> np.ndarray:
    limit = np.finfo(np.float32).min / 2
    # The lowest number of float32 stands for minus infinity in masks; the lowest of float16 does the same.
    masked = np.where(array <= limit, -LARGEST, array) if array.size and array.min() <= limit else array
    beyond = np.isfinite(masked) & (np.abs(masked) > LARGEST)
    if beyond.any():
        raise CheckpointError(
            f"weight '{name}' holds {masked[beyond].flat[0]:g}, expected at most {LARGEST:g} for fp16; leave fp16 out of --precision"
        )
    return masked.astype(np.float16)


def _halve_node(graph: ir.Graph, node: ir.Node) -> None:
    for name in ("to", "dtype"):
        if name in node.attributes and attribute(node, name, None) == FLOAT:
            node.attributes[name] = ir.AttrInt64(name, int(HALF))
    if node.op_type == "ConstantOfShape" and "value" in node.attributes and node.attributes["value"].value.dtype == FLOAT:
        filled = _halved(node.name or "ConstantOfShape", node.attributes["value"].value.numpy())
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(filled))
    elif node.op_type == "ConstantOfShape" and "value" not in node.attributes:  # float32 zeros by definition
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.zeros(1, np.float16)))
    floats = [v for v in node.outputs if v.dtype == FLOAT]
    for value in floats:
        value.type = ir.TensorType(HALF)
    place = FLOAT32_INPUTS.get(node.op_type)
    if node.op_type in FLOAT32_ONLY and floats:
        _float32(graph, node, range(len(node.inputs)))
        _cast_after(graph, node.outputs[0], node, HALF)
    elif place is not None and array_of(optional(node, place)) is None:
        _float32(graph, node, [place])


def _float32(graph: ir.Graph, node: ir.Node, places: Iterable[int]) -> None:
    """The node reads casts of these inputs."""
    for i in places:
        value = optional(node, i)
        if value is not None:
            like = ir.Value(name=f"{node.outputs[0].name}/float32_{i}", type=ir.TensorType(FLOAT), shape=value.shape)
            node.replace_input_with(i, new_node(graph, node, "Cast", [value], {"to": FLOAT}, [like], domain="").outputs[0])


def _cast_after(graph: ir.Graph, value: ir.Value, after: ir.Node, kind: ir.DataType) -> None:
    """Readers of `value` read a cast of it; the value itself keeps float32."""
    uses = list(value.uses())
    value.type = ir.TensorType(FLOAT)
    cast = ir.node("Cast", [value], {"to": kind}, name=f"{value.name}/Cast")
    cast.outputs[0].name, cast.outputs[0].type, cast.outputs[0].shape = f"{value.name}/half", ir.TensorType(kind), value.shape
    graph.insert_after(after, cast)
    for node, index in uses:
        node.replace_input_with(index, cast.outputs[0])


def _boundary(graph: ir.Graph) -> None:
    for value in graph.inputs:
        if value.dtype != FLOAT:
            continue
        if CACHES.match(value.name or ""):
            value.type = ir.TensorType(HALF)
        elif value.uses():
            like = ir.Value(name=f"{value.name}/half", type=ir.TensorType(HALF), shape=value.shape)
            uses = list(value.uses())
            inner = new_node(graph, graph[0], "Cast", [value], {"to": HALF}, [like], domain="").outputs[0]
            for node, index in uses:
                node.replace_input_with(index, inner)
    for i, value in enumerate(list(graph.outputs)):
        if value.dtype != HALF or CACHES.match(value.name or ""):
            continue
        name = value.name
        value.name = f"{name}/half"
        cast = ir.node("Cast", [value], {"to": FLOAT}, name=f"{name}/Cast")
        cast.outputs[0].name, cast.outputs[0].type, cast.outputs[0].shape = name, ir.TensorType(FLOAT), value.shape
        graph.append(cast)
        graph.outputs[i] = cast.outputs[0]
