"""Constant folding of the nodes that only rearrange weights, so that every weight a MatMul reads is an initializer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir

from onnxport.graph.edit import array_of, attribute, constant, take_over


def _split(node: ir.Node, x: np.ndarray, *rest: np.ndarray) -> list[np.ndarray]:
    axis = attribute(node, "axis", 0)
    count = attribute(node, "num_outputs", len(node.outputs))
    size = -(-x.shape[axis] // count)
    sizes = rest[0].tolist() if rest else [min(size, x.shape[axis] - i * size) for i in range(count)]
    return np.split(x, np.cumsum(sizes)[:-1], axis)


def _transpose(node: ir.Node, x: np.ndarray) -> list[np.ndarray]:
    return [np.ascontiguousarray(x.transpose(attribute(node, "perm", None)))]


def _reshape(node: ir.Node, x: np.ndarray, shape: np.ndarray) -> list[np.ndarray]:
    copied = [] if attribute(node, "allowzero", 0) else [i for i, d in enumerate(shape) if d == 0]
    return [x.reshape([x.shape[i] if i in copied else int(d) for i, d in enumerate(shape)])]


FOLDED: dict[str, Callable[..., list[np.ndarray]]] = {
    "Split": _split,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Identity": lambda node, x: [x],
    "Squeeze": lambda node, x, axes=None: [x.squeeze(None if axes is None else tuple(axes.tolist()))],
    "Unsqueeze": lambda node, x, axes: [np.expand_dims(x, tuple(axes.tolist()))],
    "Concat": lambda node, *parts: [np.concatenate(parts, attribute(node, "axis", 0))],
}
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
            results = None if tensor is None else [tensor.numpy()]
        else:
            arrays = [array_of(v) for v in node.inputs]
            fold = FOLDED.get(node.op_type)
            results = None if fold is None or not arrays or any(a is None for a in arrays) else fold(node, *arrays)
        if results is None:
            continue
        origin = parameter_of(node.inputs[0]) if node.inputs and node.inputs[0] is not None else None
        for i, (old, array) in enumerate(zip(node.outputs, results, strict=True)):
            new = constant(graph, f"{old.name}/folded", np.ascontiguousarray(array))
            if origin is not None:
                new.meta[PARAMETER] = f"{origin}[{i}]" if len(results) > 1 else origin
            take_over(old, new)
        graph.remove(node, safe=True)
        folded += 1
    return folded


def name_shapes(model: ir.Model) -> None:
    """Fill in shapes and types that are left out, by ONNX's own inference; shapes that are there stay, since theirs are better."""
    graph = model.graph
    if all(v.shape is not None for node in graph for v in node.outputs):
        return
    proto = ir.to_proto(model.clone())
    for weight in proto.graph.initializer:
        if len(weight.raw_data) > 4096:  # inference needs no weights, and a proto cannot hold 2 GB of them
            weight.ClearField("raw_data")
            weight.data_location = onnx.TensorProto.EXTERNAL
    inferred = ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))
    known = {v.name: v for node in inferred.graph for v in node.outputs}
    for node in graph:
        for value in node.outputs:
            found = known.get(value.name)
            if found is not None and value.shape is None:
                value.shape = found.shape
            if found is not None and value.type is None:
                value.type = found.type
