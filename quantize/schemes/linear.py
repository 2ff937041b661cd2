"""The products with a weight and the lookups of one in a graph: what every scheme starts from."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxport.graph.edit import array_of, attribute, dims, is_op, only_use, optional, source
from onnxport.graph.normalize import parameter_of

ROTATION = "hadamard_"  # begins the names of what rotates channels: no weight of the model


@dataclass(frozen=True)
class Linear:
    """x [..., K] times a weight, plus a bias: the nodes, and what they mean."""

    node: ir.Node  # MatMul or Gemm
    weight: np.ndarray  # float [K, N]
    parameter: str  # PyTorch's name of the weight
    bias: ir.Value | None  # [N]
    output: ir.Value  # of the Add if there is one
    transposed: bool = False  # stored as [N, K]

    @property
    def x(self) -> ir.Value:
        """The input as it is now: the node that made it may have been replaced since."""
        return source(self.node)

    @property
    def shape(self) -> tuple[int, int]:
        """(K, N)."""
        return self.weight.shape[0], self.weight.shape[1]


@dataclass(frozen=True)
class Lookup:
    """Rows of a table, chosen by token ids."""

    node: ir.Node  # Gather
    ids: ir.Value
    table: np.ndarray  # float [V, K]
    parameter: str


def linears(graph: Iterable[ir.Node]) -> Iterator[Linear]:
    """Every product with a constant float weight of two dimensions, in graph order; products of another form are left out."""
    for node in list(graph):
        weight = optional(node, 1)
        array = array_of(weight) if is_op(node, "MatMul") or is_op(node, "Gemm") else None
        if weight is None or array is None or array.ndim != 2 or array.dtype != np.float32 or str(weight.name).startswith(ROTATION):
            continue
        bias, transposed = None, node.op_type == "Gemm" and bool(attribute(node, "transB", 0))
        if node.op_type == "Gemm":
            bias = optional(node, 2)
            plain = attribute(node, "alpha", 1.0) == 1 and attribute(node, "transA", 0) == 0
            scaled = bias is not None and attribute(node, "beta", 1.0) != 1
            if not plain or scaled or (bias is not None and (array_of(bias) is None or len(dims(bias) or ()) != 1)):
                continue
            array = array.T if transposed else array
        output = node.outputs[0]
        if bias is None and only_use(output) and is_op(add := output.uses()[0].node, "Add"):
            other = source(add, 1 - output.uses()[0].idx)
            if array_of(other) is not None and dims(other) == (array.shape[1],):
                bias, output = other, add.outputs[0]
        yield Linear(node, array, _parameter(node, weight), bias, output, transposed)


def _parameter(node: ir.Node, weight: ir.Value) -> str:
    """The weight's PyTorch name; the exporter forgets it where it transposes a weight, but knows the module the product came from."""
    name = parameter_of(weight)
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
    if "." in name or not scopes:
        return name
    modules = [scope for scope in ast.literal_eval(scopes)[:-1] if scope]
    packed = "MultiheadAttention" in node.metadata_props.get("pkg.torch.onnx.class_hierarchy", "")
    return f"{modules[-1]}.{'in_proj_weight' if packed and not modules[-1].endswith('out_proj') else 'weight'}" if modules else name


def lookups(graph: ir.Graph) -> Iterator[Lookup]:
    """Every Gather of rows of a constant float table by ids that are a graph input other than positions."""
    for node in list(graph):
        table = optional(node, 0)
        array = array_of(table) if is_op(node, "Gather") and attribute(node, "axis", 0) == 0 else None
        if table is None or array is None or array.ndim != 2 or array.dtype != np.float32:
            continue
        ids = source(node, 1)
        origin = ids
        while (producer := origin.producer()) is not None and producer.op_type in ("Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape"):
            origin = source(producer)
        if origin.is_graph_input() and origin.name != "position_ids":
            yield Lookup(node, ids, array, parameter_of(table))
