"""A foreign graph as the stages after it expect one: functions inlined, weights as initializers, float32, an opset they can write in."""

from __future__ import annotations

import contextlib

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript import version_converter

from onnxport.errors import CheckpointError, UsageError
from onnxport.export.onnx_source import OnnxFile
from onnxport.export.quiet import silence

OLDEST = 18  # reductions take their axes as an input from here on, as the nodes of int8 do
HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
FLOAT = ir.DataType.FLOAT


def load(file: OnnxFile, opset: int | None) -> ir.Model:
    """The standard graph; its weights stay in their files until they are read. CheckpointError, UsageError (opset)."""
    try:
        model = ir.load(str(file.path))
        with silence():
            _plain(model)
            _convert(model, file, opset)
            passes.ShapeInferencePass()(model)
    except (CheckpointError, UsageError):
        raise
    except Exception as error:
        raise CheckpointError(
            f"{file.path} holds a graph that cannot be read ({_first(error)}); export it with another exporter"
        ) from error
    widen(model)
    return model


def _plain(model: ir.Model) -> None:
    """No functions, no constants as nodes, no weights that are inputs too, no names twice."""
    for value in [value for value in model.graph.inputs if value.name in model.graph.initializers]:
        model.graph.inputs.remove(value)
    ir.passes.Sequential(
        passes.InlinePass(),
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedFunctionsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.LiftSubgraphInitializersToMainGraphPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
        passes.RemoveUnusedOpsetsPass(),
    )(model)


def _convert(model: ir.Model, file: OnnxFile, opset: int | None) -> None:
    found = model.opset_imports.get("", file.opset)
    wanted = opset if opset is not None else max(found, OLDEST)
    if wanted < found:
        raise UsageError(f"opset {wanted}: {file.path} is written in {found} already; leave --opset out")
    if wanted == found:
        return
    reason = f"its nodes are still of opset {found}"
    with contextlib.suppress(RuntimeError, ValueError, NotImplementedError):
        version_converter.convert_version(model, wanted, fallback=True)
    if model.opset_imports.get("") != wanted:
        raise CheckpointError(
            f"{file.path} cannot be brought from opset {found} to {wanted} ({reason}); export it with opset {OLDEST} or newer"
        )


def widen(model: ir.Model) -> None:
    """float16 and bfloat16 become float32, inputs and outputs too; edits the model."""
    graphs = [model.graph, *(graph for node in model.graph.all_nodes() for graph in _inner(node))]
    for graph in graphs:
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype in HALF:
                value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
                value.type = ir.TensorType(FLOAT)
        for value in [*graph.inputs, *graph.outputs, *(value for node in graph for value in node.outputs)]:
            if value.dtype in HALF:
                value.type = ir.TensorType(FLOAT)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.type == ir.AttributeType.INT and name in ("to", "dtype") and attribute.value in (*map(int, HALF),):
                    node.attributes[name] = ir.AttrInt64(name, int(FLOAT))
                elif attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype in HALF:
                    node.attributes[name] = ir.AttrTensor(name, ir.tensor(attribute.value.numpy().astype(np.float32)))


def _inner(node: ir.Node) -> list[ir.Graph]:
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.value)
        elif attribute.type == ir.AttributeType.GRAPHS:
            found += attribute.value
    return found


def is_half(proto: onnx.ModelProto) -> bool:
    """Whether a model computes in half precision somewhere."""
    from onnxport.export.onnx_source import tensors

    halves = {int(kind) for kind in HALF}
    return any(v.type.tensor_type.elem_type in halves for v in proto.graph.input) or any(t.data_type in halves for t in tensors(proto))


def _first(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
