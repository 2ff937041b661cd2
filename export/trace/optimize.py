"""Folding and rewriting of a fresh trace, by onnxscript, in a way that every parameter keeps its name and its module."""

from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript import optimizer, rewriter

from onnxport.export.user_code import silence
from onnxport.graph.normalize import evaluated

LAYOUT = {"Transpose", "Split", "Slice", "Reshape", "Squeeze", "Unsqueeze", "Gather"}  # what tracers do to a weight on its way to a MatMul


def optimize(model: ir.Model, parameters: set[str]) -> None:
    """onnxscript's own folding and rewriting, except that equal parameters stay apart: each keeps its name, its plan and its module."""

    def own(node: ir.Node) -> bool | None:
        """Nodes over parameters are not onnxscript's to fold: their results must keep a name."""
        return False if any(value is not None and value.name in parameters for value in node.inputs) else None

    passes.InlinePass()(model)
    for _ in range(2):  # a rewrite can leave something to fold, and the other way round
        with silence():
            optimizer.fold_constants(model, onnx_shape_inference=True, should_fold=own)
            rewriter.rewrite(model)
    lift = passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)
    ir.passes.Sequential(
        passes.RemoveUnusedNodesPass(), passes.RemoveUnusedFunctionsPass(), lift, passes.LiftSubgraphInitializersToMainGraphPass()
    )(model)
    parameters |= fold_parameters(model.graph, parameters)
    _join_constants(model.graph, parameters)
    ir.passes.Sequential(
        passes.CommonSubexpressionEliminationPass(), passes.RemoveUnusedNodesPass(), passes.OutputFixPass(), passes.NameFixPass()
    )(model)
    passes.RemoveUnusedOpsetsPass()(model)


def _join_constants(graph: ir.Graph, parameters: set[str]) -> None:
    """Small equal constants become one; parameters never do."""
    kept: dict[tuple[Any, ...], ir.Value] = {}
    for name, value in list(graph.initializers.items()):
        if name in parameters or value.const_value.size > 16 or value.is_graph_output():
            continue
        array = value.const_value.numpy()
        first = kept.setdefault((str(value.dtype), array.shape, array.tobytes()), value)
        if first is not value:
            ir.convenience.replace_all_uses_with(value, first)
            del graph.initializers[name]


def fold_parameters(graph: ir.Graph, parameters: set[str]) -> set[str]:
    """Evaluates nodes that only lay a parameter out anew; the result takes the parameter's name. Returns the names that came to be."""
    made: set[str] = set()
    for node in list(graph):
        inputs = [value for value in node.inputs if value is not None]
        source = node.inputs[0] if node.inputs else None
        if node.op_type not in LAYOUT or source is None or source.name not in parameters | made:
            continue
        if any(value.const_value is None for value in inputs) or any(value.is_graph_output() for value in node.outputs):
            continue
        alone = len(list(source.uses())) == 1
        tensors = evaluated(node)
        for i, (value, tensor) in enumerate(zip(node.outputs, tensors, strict=True)):
            base = source.name if len(tensors) == 1 else f"{source.name}.{i}"
            if alone and len(tensors) == 1:
                source.name = f"{base}/before"
            name = unused(base, set(graph.initializers) | {v.name for v in graph.inputs})
            tensor.name = name
            folded = ir.Value(name=name, type=value.type, shape=ir.Shape(tensor.shape), const_value=tensor)
            graph.register_initializer(folded)
            ir.convenience.replace_all_uses_with(value, folded)
            made.add(name)
        graph.remove(node, safe=True)
        if not source.uses():
            del graph.initializers[source.name]
    return made


def unused(base: str, taken: set[Any]) -> str:
    """`base`, or base/2, base/3, ...; the name is taken from then on."""
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base}/{number}"
    taken.add(name)
    return name
