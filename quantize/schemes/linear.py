"""The products with a weight and the lookups of one in a graph: what every scheme starts from."""

from __future__ import annotations

import ast
import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar
from weakref import WeakKeyDictionary

import numpy as np
import onnx_ir as ir

from onnxport.graph.edit import array_of, attribute, dims, is_op, only_use, optional, sizes_of, source, tensor_of
from onnxport.graph.normalize import parameter_of

ROTATION = "hadamard_"  # begins the names of what rotates channels: no weight of the model


class _OfOneWeight:
    """What is called as its only weight."""

    parameter: str  # PyTorch's name of the weight

    @property
    def shape(self) -> tuple[int, int]:
        """That of the weight."""
        raise NotImplementedError

    @property
    def place(self) -> tuple[ir.TensorProtocol, bool]:
        """What tells its rows from others without reading them: the tensor, and whether they are its columns."""
        raise NotImplementedError

    @property
    def key(self) -> str:
        """`key_of` of its rows."""
        return _key(*self.place)

    @property
    def parameters(self) -> tuple[str, ...]:
        """PyTorch's names of all weights."""
        return (self.parameter,)

    @property
    def name(self) -> str:
        """What it is called: as its weight."""
        return self.parameter

    @property
    def values(self) -> int:
        """How many numbers the weight has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Linear(_OfOneWeight):
    """x [..., K] times a weight, plus a bias: the nodes, and what they mean."""

    node: ir.Node  # MatMul or Gemm
    tensor: ir.TensorProtocol  # the weight as it is stored
    parameter: str  # PyTorch's name of the weight
    bias: ir.Value | None  # [N]
    output: ir.Value  # of the Add if there is one
    transposed: bool = False  # stored as [N, K]
    places: ClassVar[tuple[int, ...]] = (1,)  # of the weights among the node's inputs

    @property
    def x(self) -> ir.Value:
        """The input as it is now: the node that made it may have been replaced since."""
        return source(self.node)

    @property
    def weight(self) -> np.ndarray:
        """float32 [K, N], read anew each time: of a large model it is made for the moment."""
        array: np.ndarray = self.tensor.numpy()
        return array.T if self.transposed else array

    @property
    def rows(self) -> np.ndarray:
        """float32 [N, K]: those of a table that is tied to the product."""
        return self.weight.T

    @property
    def place(self) -> tuple[ir.TensorProtocol, bool]:
        """The tensor, and whether rows are its columns."""
        return self.tensor, not self.transposed

    @property
    def shape(self) -> tuple[int, int]:
        """(K, N)."""
        rows, columns = sizes_of(self.tensor)
        return (columns, rows) if self.transposed else (rows, columns)


@dataclass(frozen=True)
class Lookup(_OfOneWeight):
    """Rows of a table, chosen by token ids."""

    node: ir.Node  # Gather
    ids: ir.Value
    tensor: ir.TensorProtocol  # the table
    parameter: str

    @property
    def rows(self) -> np.ndarray:
        """The table, float32 [V, K], read anew each time."""
        found: np.ndarray = self.tensor.numpy()
        return found

    @property
    def place(self) -> tuple[ir.TensorProtocol, bool]:
        """As of a product."""
        return self.tensor, False

    @property
    def shape(self) -> tuple[int, int]:
        """(V, K)."""
        rows, columns = sizes_of(self.tensor)
        return rows, columns


def key_of(rows: np.ndarray) -> str:
    """What tells a weight [N, K] from others: its shape and values."""
    return f"{rows.shape}{hashlib.sha256(np.ascontiguousarray(rows).data).hexdigest()}"


_KEYS: WeakKeyDictionary[ir.TensorProtocol, dict[bool, str]] = WeakKeyDictionary()


def _key(tensor: ir.TensorProtocol, turned: bool) -> str:
    """`key_of` of a tensor or of its transpose, found once."""
    known = _KEYS.setdefault(tensor, {})
    if turned not in known:
        array = tensor.numpy()
        known[turned] = key_of(array.T if turned else array)
    return known[turned]


def linears(graph: Iterable[ir.Node]) -> Iterator[Linear]:
    """Every product with a constant float weight of two dimensions, in graph order; products of another form are left out."""
    for node in list(graph):
        weight = optional(node, 1)
        tensor = float32_tensor(weight, 2) if is_op(node, "MatMul") or is_op(node, "Gemm") else None
        if weight is None or tensor is None or str(weight.name).startswith(ROTATION):
            continue
        bias, transposed = None, node.op_type == "Gemm" and bool(attribute(node, "transB", 0))
        width = sizes_of(tensor)[0 if transposed else 1]
        if node.op_type == "Gemm":
            bias = optional(node, 2)
            plain = attribute(node, "alpha", 1.0) == 1 and attribute(node, "transA", 0) == 0
            scaled = bias is not None and attribute(node, "beta", 1.0) != 1
            if not plain or scaled or (bias is not None and (array_of(bias) is None or dims(bias) != (width,))):
                continue
        output = node.outputs[0]
        if bias is None and only_use(output) and is_op(add := output.uses()[0].node, "Add"):
            other = source(add, 1 - output.uses()[0].idx)
            if array_of(other) is not None and dims(other) == (width,):
                bias, output = other, add.outputs[0]
        yield Linear(node, tensor, _parameter(node, weight), bias, output, transposed)


def float32_tensor(value: ir.Value | None, rank: int) -> ir.TensorProtocol | None:
    """The constant of `rank` dimensions in float32 behind a value, which is not read; None where there is none."""
    tensor = tensor_of(value)
    return tensor if tensor is not None and len(tensor.shape) == rank and tensor.dtype == ir.DataType.FLOAT else None


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
        tensor = float32_tensor(table, 2) if is_op(node, "Gather") and attribute(node, "axis", 0) == 0 else None
        if table is None or tensor is None:
            continue
        ids = source(node, 1)
        origin = ids
        while (producer := origin.producer()) is not None and producer.op_type in ("Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape"):
            origin = source(producer)
        if origin.is_graph_input() and origin.name != "position_ids":
            yield Lookup(node, ids, tensor, parameter_of(table))
