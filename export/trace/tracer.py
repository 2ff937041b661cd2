"""Tracing of a module to a checked standard ONNX graph whose nodes and initializers are named after PyTorch's modules and parameters."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import onnx
import onnx_ir as ir
import torch
from torch import nn

from onnxport.errors import CheckpointError, UsageError, one_line
from onnxport.export.deferred import Values, deferred, unread
from onnxport.export.trace.optimize import optimize, unused
from onnxport.export.user_code import silence
from onnxport.graph.edit import remove_metadata
from onnxport.graph.normalize import without_weights

OPSETS = (23, 24, 25)  # the default first; 23 is the first with Attention, later ones come through torch's own conversion
KERNELS = "com.microsoft"  # ONNX Runtime's own operators
Shapes = dict[str, tuple[int | str, ...]]


@dataclass
class Names:
    """Names for one graph: traced parameter → PyTorch's, traced module → PyTorch's; of modules the longest prefix counts."""

    parameters: dict[str, str] = field(default_factory=dict)
    modules: dict[str, str] = field(default_factory=dict)


def check_opset(opset: int | None) -> int:
    """The opset to write; UsageError for one that cannot be written."""
    if opset is None:
        return OPSETS[0]
    if opset not in OPSETS:
        known = ", ".join(map(str, OPSETS))
        raise UsageError(
            f"opset {opset} cannot be written: this torch ({torch.__version__}) writes {known}, which have the Attention operator"
        )
    return opset


def trace(
    module: nn.Module,
    inputs: dict[str, Any],
    dynamic: Any,
    input_names: list[str],
    outputs: Shapes,
    names: Names,
    opset: int,
    graph_name: str,
) -> ir.Model:
    """Standard ONNX of `module(**inputs)`, or of `module(*inputs)` for the one key "" (a tuple).

    `dynamic` mirrors `inputs` with {axis: name}; `outputs` gives names and shapes ("" as a dimension keeps what the tracer found).
    Errors: CheckpointError when torch cannot trace it, with torch's own first line.
    """
    args = tuple(inputs.get("", ()))
    named = {name: value for name, value in inputs.items() if name}
    try:
        with silence(), unread(module):
            program = torch.onnx.export(
                module,
                args,
                kwargs=named or None,
                dynamo=True,
                dynamic_shapes=dynamic,
                input_names=input_names,
                output_names=list(outputs),
                opset_version=opset,
                optimize=False,
                verbose=False,
                report=False,
            )
    except Exception as error:
        raise CheckpointError(f"torch could not trace {graph_name}: {one_line(error, deepest=True)}") from error
    _bind(program.model.graph, module)
    return clean(program.model, outputs, names, opset, graph_name)


def _bind(graph: ir.Graph, module: nn.Module) -> None:
    """Initializers of deferred parameters get their values, made whenever somebody reads them."""
    for name, parameter in module.named_parameters(remove_duplicate=False):
        make, value = deferred(parameter), graph.initializers.get(name)
        if make is not None and value is not None:
            read = partial(_tensor, make, name)
            value.const_value = ir.LazyTensor(read, ir.DataType.FLOAT, ir.Shape(parameter.shape), name=name)


def _tensor(make: Values, name: str) -> ir.TensorProtocol:
    return ir.tensor(make().numpy(), name=name)


def clean(model: ir.Model, outputs: Shapes, names: Names, opset: int, graph_name: str) -> ir.Model:
    """Names nodes and initializers after PyTorch's, types the outputs, drops every path of this machine, and checks the result."""
    graph = model.graph
    graph.name = graph_name
    # names are final before anything is folded, so that what is folded can take them over
    clash = {value.name for value in [*graph.inputs, *graph.outputs]}
    parameters = set()
    for old, new in names.parameters.items():
        if (value := graph.initializers.get(old)) is not None:
            value.name = f"{new}.parameter" if new in clash else new
            parameters.add(value.name)
    optimize(model, parameters)
    _name_nodes(graph, names.modules)
    _name_constants(graph, parameters)
    for value, (_, shape) in zip(graph.outputs, outputs.items(), strict=True):
        if shape:
            value.shape = ir.Shape(shape)
    remove_metadata(model)
    for domain in [domain for domain in model.opset_imports if domain not in ("", KERNELS)]:
        del model.opset_imports[domain]
    model.opset_imports[""] = opset
    check(model, graph_name)
    return model


def _name_nodes(graph: ir.Graph, modules: dict[str, str]) -> None:
    """`module.path/Op`, with a number from the second one on; what a node gives is named after it."""
    counts: dict[str, int] = {}
    prefixes = sorted(modules, key=len, reverse=True)
    scope = ""
    for node in graph:
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
        path = [part for part in ast.literal_eval(scopes)[:-1] if part and not part.startswith("_empty")] if scopes else None
        if path is not None:  # nodes made by an optimization have no scope of their own: they keep their neighbour's
            scope = path[-1] if path else ""
        name = scope
        for prefix in prefixes:
            if scope == prefix or scope.startswith(prefix + "."):
                name = modules[prefix] + scope[len(prefix) :]
                break
        label = f"{name}/{node.op_type}" if name else node.op_type
        counts[label] = counts.get(label, 0) + 1
        node.name = label if counts[label] == 1 else f"{label}_{counts[label]}"
        for i, value in enumerate(node.outputs):
            if not value.is_graph_output():
                value.name = f"{node.name}_output_{i}"


def _name_constants(graph: ir.Graph, parameters: set[str]) -> None:
    """Constants that the tracer numbered are named by what they hold; whatever nobody reads goes."""
    taken = {value.name for value in [*graph.inputs, *graph.outputs]} | parameters
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
        elif name not in parameters:
            array = value.const_value.numpy()
            words = "_".join(map(str, array.ravel().tolist())) if array.size <= 4 else "x".join(map(str, array.shape))
            value.name = unused(f"constant/{str(value.dtype).lower()}/{words or 'empty'}{'' if array.ndim else '/scalar'}", taken)


def check(model: ir.Model, graph_name: str) -> None:
    """onnx.checker and strict shape inference over the graph, its large weights standing in as inputs so that size does not matter."""
    light = without_weights(model, 4096)
    try:
        onnx.checker.check_model(ir.to_proto(light), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CheckpointError(f"the traced {graph_name} is not valid ONNX: {one_line(error)}") from error
