"""What of a graph in half precision computes in float32: layers that a plan names, and what hangs on them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxport.quantize.fusion.constants import parameter_of
from onnxport.quantize.fusion.core import array_of
from onnxport.quantize.linear import linears
from onnxport.quantize.plan import Plan

LARGEST = float(np.finfo(np.float16).max)
MASKED = float(np.finfo(np.float32).max) / 2  # beyond: not a number that is computed with, but a mask's infinity
FLOAT = ir.DataType.FLOAT
NORMS = {
    "LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
    "GroupNormalization", "InstanceNormalization", "BatchNormalization",
}  # fmt: skip
ATTENTION = {"Attention", "MultiHeadAttention", "GroupQueryAttention"}  # in the type of their caches, always


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
    array = array_of(value)
    magnitude = np.abs(array) if array is not None else np.zeros(0)
    return bool((magnitude[magnitude < MASKED] > LARGEST).any())
