"""Graphs in half precision (fp16, bf16), but for what computes in float32: layers that a plan names, and what follows them."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onnxport.errors import NotApplicable
from onnxport.graph.edit import array_of, attribute, constant, tensor_of
from onnxport.graph.normalize import fold_constants, name_shapes, parameter_of
from onnxport.quantize.plan import Plan
from onnxport.quantize.schemes.linear import linears
from onnxport.runtime.bundle.interface import is_cache

LARGEST = float(np.finfo(np.float16).max)
MASKED = float(np.finfo(np.float32).max) / 2  # beyond: not a number that is computed with, but a mask's infinity
FLOAT = ir.DataType.FLOAT
NORMS = {
    "LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
    "GroupNormalization", "InstanceNormalization", "BatchNormalization",
}  # fmt: skip
ATTENTION = {"Attention", "MultiHeadAttention", "GroupQueryAttention"}  # in the type of their caches, always
FLOAT32_ONLY = {"Range", "DequantizeLinear"}  # ONNX defines them without float16, or did up to opset 18
INTEGERS = {
    "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "ConvInteger", "QLinearMatMul",
    "QLinearConv", "QGemm", "QAttention", "QEmbedLayerNormalization", "QuantizeLinear",
}  # fmt: skip
FLOAT32_INPUTS = {"Resize": 2}  # the same for one input: scales
INTEGER_OUTPUTS = {"EmbedLayerNormalization": 1}  # of kernels of ONNX Runtime that read floats: the place of an int32 result
KINDS = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}


def owners(graph: ir.Graph) -> dict[ir.Node, str]:
    """Nodes with a weight of their own, and its name: products, tables, norms. Others follow what they read."""
    found = {linear.node: linear.parameter for linear in linears(graph)}
    for node in graph:
        weights = [value for value in node.inputs if value is not None and value.dtype == FLOAT and array_of(value) is not None]
        norm = [value for value in weights if len(value.shape or ()) == 1] if node.op_type in NORMS else []
        wide = [value for value in weights if len(value.shape or ()) >= 2] if node.op_type in ("Gather", "MatMul", "Gemm", "Conv") else []
        if node not in found and (norm or wide):
            found[node] = parameter_of([*norm, *wide][0])
    return found


def exact_nodes(graph: ir.Graph, plan: Plan) -> set[ir.Node]:
    """Nodes that compute in float32.

    A node with a weight of its own does as the plan says. One without computes in float32 as soon as something that it reads is float32:
    the sum that a float32 layer is added to, the activation after it. Attention takes the type of its caches.
    """
    named, exact = owners(graph), set[ir.Node]()
    beyond = {v for v in graph.initializers.values() if plan.half == "fp16" and v.dtype == FLOAT and _beyond(v)}
    for node in graph:  # in topological order
        if node.op_type in ATTENTION:
            continue
        follows = node not in named and any(v is not None and v.dtype == FLOAT and v.producer() in exact for v in node.inputs)
        chosen = node in named and plan.of(named[node]).kind == "fp32"
        if follows or chosen or any(v in beyond for v in node.inputs):
            exact.add(node)
    return exact


def _beyond(value: ir.Value) -> bool:
    """Whether a weight holds more than float16 does; what stands for infinity in masks does not count."""
    tensor = tensor_of(value)
    if tensor is None:
        return False
    if tensor not in _known_beyond:  # a plan is tried many times, and weights take long to read
        _known_beyond[tensor] = _reaches_beyond(tensor.numpy())
    return _known_beyond[tensor]


_known_beyond: WeakKeyDictionary[ir.TensorProtocol, bool] = WeakKeyDictionary()


def _reaches_beyond(array: np.ndarray) -> bool:
    if max(array.max(initial=0), -array.min(initial=0)) <= LARGEST:
        return False
    magnitude = np.abs(array)
    return bool((magnitude[magnitude < MASKED] > LARGEST).any())


def exact_values(model: ir.Model, plan: Plan) -> set[str]:
    """Names of what `exact_nodes` of a float32 graph give; they are the same where its products read weights of few bits."""
    return {str(value.name) for node in exact_nodes(prepared(model).graph, plan) for value in node.outputs}


def to_half(model: ir.Model, plan: Plan, exact_names: set[str] | None = None) -> ir.Model:
    """A copy of a float32 graph, standard or fused, in the half precision of `plan`; layers that are fp32 in it compute in float32.

    exact_names: what computes in float32 by the names of its results, where the graph does not tell layers any more.

    Caches by the names of our decoders (`past_*`, `present_*`, `cross_*`) become half; a foreign graph's and every other float input or
    output keep float32 at the boundary. A weight beyond float16's range stays as it is, with what is computed from it. Raises
    `NotApplicable` for a graph with control flow.
    """
    assert plan.half is not None
    copy = prepared(model)
    graph, kind = copy.graph, KINDS[plan.half]
    exact = exact_nodes(graph, plan)
    if exact_names is not None:
        exact = {node for node in graph if any(value.name in exact_names for value in node.outputs)}
    _weights(graph, exact, kind)
    for node in graph:
        if node not in exact:
            _halve_node(node, kind)
    for value in graph.inputs:
        if value.dtype == FLOAT and is_cache(value.name):
            value.type = ir.TensorType(kind)
    _cast(graph, exact, kind)
    _outputs(graph, kind)
    graph.sort()
    return copy


def prepared(model: ir.Model) -> ir.Model:
    """A copy whose weights are initializers and whose values have types. NotApplicable for control flow."""
    copy = model.clone()
    for node in copy.graph:
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values() if isinstance(a, ir.Attr)):
            raise NotApplicable(
                f"{node.op_type} '{node.name}' holds a graph of its own, which fp16 does not support; leave fp16 out of --precision"
            )
    if stored := next((node.op_type for node in copy.graph if node.op_type in INTEGERS), None):
        raise NotApplicable(
            f"the model computes in integers already ({stored}), whose sums fp16 does not hold; leave fp16 out of --precision"
        )
    fold_constants(copy.graph)
    name_shapes(copy)  # types too: a stored graph has none inside
    for node in copy.graph:  # ONNX's inference knows no kernels of ONNX Runtime, whose results have the type of what they read
        types = [value.type for value in node.inputs if value is not None and value.type is not None]
        for place, value in enumerate(node.outputs):
            if value.type is None and INTEGER_OUTPUTS.get(node.op_type) == place:
                value.type = ir.TensorType(ir.DataType.INT32)
            elif value.type is None and types:
                value.type = next((t for t in types if t.dtype == FLOAT), types[0])
    return copy


def _weights(graph: ir.Graph, exact: set[ir.Node], kind: ir.DataType) -> None:
    """Constants become half, but for nodes that compute in float32: these read float32, of their own where others read it too."""
    for name, value in list(graph.initializers.items()):
        if value.dtype != FLOAT:
            continue
        uses = [use for use in value.uses() if use.node in exact or FLOAT32_INPUTS.get(use.node.op_type) == use.idx]
        if len(uses) == len(list(value.uses())) and uses and not value.is_graph_output():
            continue
        array = array_of(value)
        assert array is not None
        if uses:
            own = constant(graph, f"{name}/float32", array)
            own.metadata_props.update(value.metadata_props)
            own.meta.update(value.meta)
            for node, index in uses:
                node.replace_input_with(index, own)
        value.const_value = _halved(value.const_value, kind, name)
        value.type = ir.TensorType(kind)


def _halved(tensor: ir.TensorProtocol, kind: ir.DataType, name: str) -> ir.TensorProtocol:
    """In half precision; what is read from elsewhere whenever it is asked for, such as a file, is halved then."""
    if isinstance(tensor, ir.ExternalTensor | ir.LazyTensor):
        return ir.LazyTensor(lambda: ir.tensor(halved(tensor.numpy(), kind)), kind, ir.Shape(tensor.shape), name=name)
    return ir.tensor(halved(tensor.numpy(), kind), name=name)


def halved(array: np.ndarray, kind: ir.DataType) -> np.ndarray:
    """In half precision. The lowest number of float32 stands for minus infinity in masks; the lowest of the half does the same."""
    half, lowest = np.dtype(kind.numpy()), np.finfo(np.float32).min / 2
    largest = float(ml_dtypes.finfo(half).max)  # type: ignore[no-untyped-call]
    masked = np.where(array <= lowest, -largest, array) if array.size and array.min() <= lowest else array
    return masked.astype(half)


def _halve_node(node: ir.Node, kind: ir.DataType) -> None:
    for name in ("to", "dtype"):
        if name in node.attributes and attribute(node, name, None) == FLOAT:
            node.attributes[name] = ir.AttrInt64(name, int(kind))
    if node.op_type == "ConstantOfShape" and "value" in node.attributes and node.attributes["value"].value.dtype == FLOAT:
        filled = halved(node.attributes["value"].value.numpy(), kind)
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(filled))
    elif node.op_type == "ConstantOfShape" and "value" not in node.attributes:  # float32 zeros by definition
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.zeros(1, kind.numpy())))
    if node.op_type not in FLOAT32_ONLY:
        for value in node.outputs:
            if value.dtype == FLOAT:
                value.type = ir.TensorType(kind)


def _cast(graph: ir.Graph, exact: set[ir.Node], kind: ir.DataType) -> None:
    """Every node reads floats of the type that it computes in; each value is cast once."""
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    for node in list(graph):
        if node.op_type == "Cast":
            continue
        for i, value in enumerate(node.inputs):
            single = node in exact or node.op_type in FLOAT32_ONLY or FLOAT32_INPUTS.get(node.op_type) == i
            wanted = FLOAT if single else kind
            if value is None or value.dtype not in (FLOAT, kind) or value.dtype == wanted:
                continue
            if (value, wanted) not in casts:
                suffix = "float32" if wanted == FLOAT else "half"
                casts[value, wanted] = _casted(graph, value, wanted, _fresh(graph, f"{value.name}/{suffix}"))
            node.replace_input_with(i, casts[value, wanted])


def _fresh(graph: ir.Graph, name: str) -> str:
    """The name, or one like it where the graph has it already: one that was made half before does."""
    taken = {one for node in graph for one in (node.name, *(value.name for value in node.outputs))}
    while name in taken:
        name += "_"
    return name


def _casted(graph: ir.Graph, value: ir.Value, kind: ir.DataType, name: str) -> ir.Value:
    cast = ir.node("Cast", [value], {"to": int(kind)}, name=_fresh(graph, f"{name}/Cast"))
    cast.outputs[0].name, cast.outputs[0].type, cast.outputs[0].shape = name, ir.TensorType(kind), value.shape
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], cast)
    else:
        graph.insert_after(producer, cast)
    return cast.outputs[0]


def _outputs(graph: ir.Graph, kind: ir.DataType) -> None:
    for i, value in enumerate(list(graph.outputs)):
        wanted = kind if is_cache(value.name) else FLOAT
        if value.dtype not in (FLOAT, kind) or value.dtype == wanted:
            continue
        name = str(value.name)
        value.name = _fresh(graph, f"{name}/half" if wanted == FLOAT else f"{name}/single")
        graph.outputs[i] = _casted(graph, value, wanted, name)
