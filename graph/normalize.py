"""The normal form of graphs: nodes over weights are folded, so that a MatMul reads initializers, and all shapes are filled in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir

from onnxport.graph.edit import MICROSOFT, constant, dims, is_constant, take_over

FOLDED = {"Split", "Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Concat"}  # what only lays weights out anew
# Kernels of ONNX Runtime whose first result has the shape of what they read first.
LIKE_FIRST_INPUT = (
    "BiasGelu", "Gelu", "FastGelu", "QuickGelu", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "RotaryEmbedding",
)  # fmt: skip
SUM = 3  # the place of the sum among the outputs of SkipLayerNormalization
REFERENCE_SINCE = {"DequantizeLinear": 19}  # the oldest opset that ONNX's reference has, whose meaning is that of older ones

PARAMETER = "parameter"  # key in Value.meta: the PyTorch weight a folded initializer was made from


def parameter_of(value: ir.Value) -> str:
    """The PyTorch name of the weight behind an initializer."""
    return str(value.meta.get(PARAMETER) or value.name)


def fold_constants(graph: ir.Graph) -> int:
    """Replace foldable nodes over constants by initializers, and Constant nodes too; edits `graph`, returns how many went."""
    folded = 0
    for node in list(graph):
        if node.domain or any(v is None for v in node.inputs) or any(v.is_graph_output() for v in node.outputs):
            continue
        if node.op_type == "Constant":
            tensor = ir.convenience.get_const_tensor(node.outputs[0])
            results = None if tensor is None else [ir.tensor(np.asarray(tensor.numpy(), order="C"))]
        else:
            foldable = node.op_type in FOLDED and bool(node.inputs) and all(is_constant(v) for v in node.inputs)
            results = evaluated(node) if foldable else None
        if results is None:
            continue
        origin = parameter_of(node.inputs[0]) if node.inputs and node.inputs[0] is not None else None
        for i, (old, found) in enumerate(zip(node.outputs, results, strict=True)):
            new = constant(graph, f"{old.name}/folded", found)
            if origin is not None:
                new.meta[PARAMETER] = f"{origin}[{i}]" if len(results) > 1 else origin
            take_over(old, new)
        graph.remove(node, safe=True)
        folded += 1
    return folded


def evaluated(node: ir.Node) -> list[ir.TensorProtocol]:
    """The outputs of a node of a graph whose inputs are all constant, by ONNX's own reference; what is made of lazy tensors is lazy too."""
    run = _reference(node)
    tensors = [ir.convenience.get_const_tensor(value) for value in node.inputs if value is not None]
    shapes = [dims(value) for value in node.outputs]
    if not any(isinstance(tensor, ir.LazyTensor) for tensor in tensors) or not all(map(_is_known, shapes)):
        return [ir.tensor(array) for array in run()]
    types = [value.dtype or tensors[0].dtype for value in node.outputs]
    return [
        ir.LazyTensor(partial(_one, run, i), dtype, ir.Shape(shape)) for i, (dtype, shape) in enumerate(zip(types, shapes, strict=True))
    ]


def _is_known(shape: Sequence[int | str] | None) -> bool:
    return shape is not None and all(isinstance(size, int) for size in shape)


def _one(run: Callable[[], list[np.ndarray]], index: int) -> ir.TensorProtocol:
    return ir.tensor(run()[index])


def _reference(node: ir.Node) -> Callable[[], list[np.ndarray]]:
    """What computes the outputs of a node, whatever becomes of it in its graph."""
    assert node.graph is not None
    proto = ir.to_proto(node)
    del proto.metadata_props[:]
    tensors = {str(value.name): ir.convenience.get_const_tensor(value) for value in node.inputs if value is not None}
    inputs = [onnx.helper.make_tensor_value_info(name, t.dtype.value, list(t.shape)) for name, t in tensors.items()]
    outputs = [onnx.helper.make_empty_tensor_value_info(value.name) for value in node.outputs]
    since = max(node.graph.opset_imports.get("", 23), REFERENCE_SINCE.get(node.op_type, 0))
    opset = onnx.helper.make_opsetid("", since)
    model = onnx.helper.make_model(onnx.helper.make_graph([proto], "fold", inputs, outputs), opset_imports=[opset])

    def run() -> list[np.ndarray]:
        found = onnx.reference.ReferenceEvaluator(model).run(None, {name: tensor.numpy() for name, tensor in tensors.items()})
        return [np.asarray(array, order="C") for array in found]

    return run


def _stand_in(graph: onnx.GraphProto) -> None:
    """Puts ONNX's own operators in the place of kernels of ONNX Runtime, which its inference does not know; their results have the shapes
    of the kernels' first results, as the sums have that a kernel of a norm gives beside them."""
    sums: list[tuple[int, onnx.NodeProto]] = []
    for place, node in enumerate(graph.node):
        if node.domain != MICROSOFT or node.op_type not in (*LIKE_FIRST_INPUT, "MatMulNBits"):
            continue
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        inputs = [node.input[0]]
        if node.op_type == "MatMulNBits":
            weight = f"{node.output[0]}/weight"
            shape = [attributes["K"], attributes["N"]]
            graph.input.append(onnx.helper.make_tensor_value_info(weight, onnx.TensorProto.FLOAT, shape))
            inputs.append(weight)
        sums += [(place, onnx.helper.make_node("Identity", inputs, [name])) for name in node.output[SUM:]]
        made = onnx.helper.make_node("MatMul" if len(inputs) == 2 else "Identity", inputs, [node.output[0]], name=node.name)
        node.CopyFrom(made)
    for place, node in reversed(sums):
        graph.node.insert(place, node)


def without_weights(model: ir.Model, most: int) -> ir.Model:
    """A copy in which weights of more than `most` bytes are inputs."""
    light = model.clone()
    for name, value in list(light.graph.initializers.items()):
        assert value.const_value is not None
        if value.const_value.nbytes > most:
            del light.graph.initializers[name]
            value.shape, value.type = value.const_value.shape, ir.TensorType(value.const_value.dtype)
            value.const_value = None
            if not value.is_graph_input():
                light.graph.inputs.append(value)
    return light


def name_shapes(model: ir.Model) -> None:
    """Fill in shapes and types that are left out, by ONNX's own inference; shapes that are there stay, since theirs are better."""
    graph = model.graph
    if all(v.shape is not None for node in graph for v in node.outputs):
        return
    proto = ir.to_proto(without_weights(model, 4096))  # inference needs none
    _stand_in(proto.graph)
    inferred = ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))
    known = {v.name: v for node in inferred.graph for v in node.outputs}
    for node in graph:
        for value in node.outputs:
            found = known.get(value.name)
            if found is not None and value.shape is None:
                value.shape = found.shape
            if found is not None and value.type is None:
                value.type = found.type
