"""A cached attention's products of integers with one input, for queries, keys and values, become one product whose result is split.

They are joined once weights are quantized, so that a plan names each of them. A step of a decoder takes 0.93 of the CPU time then. Other
products stay: of float32 and of blocks nothing is gained, and halves of a gated feed-forward cost a prompt more than they save a step
(docs/experiments.md).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxport.graph.edit import MICROSOFT, Miss, array_of, constant, dims, is_op, new_node, only_use, optional, source, take_over
from onnxport.quantize.fusion.rule import Rule

PRODUCT = "MatMulIntegerToFloat"
WEIGHT, COLUMN_SCALE = 1, 3  # places of the product's inputs that are its own; it shares the others
BETWEEN = {  # what may lie between a product and attention, and reads it first
    "Add", "Concat", "LayerNormalization", "Mul", "Pad", "RMSNormalization", "Reshape", "RotaryEmbedding", "SimplifiedLayerNormalization",
    "Slice", "Split", "Transpose",
}  # fmt: skip


@dataclass(frozen=True)
class Product:
    """x uint8 [..., K] times a weight int8 [K, N], and then the largest magnitudes of its rows [..., 1]."""

    node: ir.Node
    scaling: ir.Node  # Mul
    columns: int

    @property
    def reads(self) -> tuple[ir.Value | None, ...]:
        """What products must share to be one."""
        own = (value for place, value in enumerate(self.node.inputs) if place not in (WEIGHT, COLUMN_SCALE))
        return (*own, source(self.scaling, 1))


class JoinedProducts(Rule):
    """Products of 8 bits with the same rows become one, and a Split of its result."""

    name = "joined_products"
    anchor = "GroupQueryAttention"
    domain = MICROSOFT
    kernel = ""

    def __init__(self, shared: frozenset[str] = frozenset()) -> None:
        """shared: `digest` of weights that a variant's graphs hold more than once; only as they are they are stored once."""
        self.shared = shared

    def pattern(self, node: ir.Node) -> list[Product]:
        """As `Rule`."""
        found = [product for place in range(3) if (product := _made_by(optional(node, place))) is not None]
        alike = [product for product in dict.fromkeys(found) if product.reads == found[-1].reads] if found else []
        if len(alike) < 2:
            raise Miss(f"no two of its inputs are products of integers with the same rows, found {len(found)} such products")
        return alike

    def check(self, graph: ir.Graph, match: list[Product]) -> None:
        """As `Rule`."""
        for product in match:
            weight, scale = source(product.node, WEIGHT), source(product.node, COLUMN_SCALE)
            if len(weight.uses()) > 1 or (self.shared and digest(weight) in self.shared):
                raise Miss(f"'{weight.name}' has other uses")
            if dims(scale) != (product.columns,):
                raise Miss(f"scales of '{weight.name}' are {dims(scale)}, expected one for each of {product.columns} columns")

    def rewrite(self, graph: ir.Graph, match: list[Product]) -> None:
        """As `Rule`."""
        order = {node: place for place, node in enumerate(graph)}
        match = sorted(match, key=lambda product: order[product.node])
        first, name = match[0], f"{match[0].scaling.outputs[0].name}/joined"
        inputs = list(first.node.inputs)
        for place, suffix in ((WEIGHT, "int8"), (COLUMN_SCALE, "column_scale")):
            parts = [array_of(source(product.node, place)) for product in match]
            inputs[place] = constant(graph, f"{name}/{suffix}", np.concatenate([part for part in parts if part is not None], -1))
        like = [ir.Value(name=f"{name}/{part}", type=first.scaling.outputs[0].type) for part in ("product", "scaled")]
        y = new_node(graph, first.scaling, PRODUCT, inputs, {}, like[:1]).outputs[0]
        y = new_node(graph, first.scaling, "Mul", [y, source(first.scaling, 1)], {}, like[1:], domain="").outputs[0]
        sizes = [product.columns for product in match]
        split = constant(graph, f"sizes_{'_'.join(map(str, sizes))}", np.array(sizes, np.int64))
        outputs = [product.scaling.outputs[0] for product in match]
        parts_of = new_node(graph, first.scaling, "Split", [y, split], {"axis": -1}, outputs, domain="").outputs
        for old, new in zip(outputs, parts_of, strict=True):
            take_over(old, new)
        graph.remove([node for product in match for node in (product.scaling, product.node)], safe=True)


def digest(weight: ir.Value) -> str:
    """What tells a weight's bytes from others."""
    array = array_of(weight)
    return "" if array is None else f"{array.shape}{hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()}"


def shared_weights(graphs: Iterable[ir.Graph]) -> frozenset[str]:
    """`digest` of what more than one product of integers multiplies with."""
    counts = Counter(digest(source(node, WEIGHT)) for graph in graphs for node in graph if is_op(node, PRODUCT, MICROSOFT))
    return frozenset(found for found, count in counts.items() if count > 1)


def _made_by(value: ir.Value | None) -> Product | None:
    """The product behind what attention reads; between them may be norms, positions and shapes of heads."""
    scaling: ir.Node | None = None
    while value is not None and (node := value.producer()) is not None:
        if is_op(node, PRODUCT, MICROSOFT):
            weight = array_of(source(node, WEIGHT))
            alone = only_use(node.outputs[0]) and not any(value.is_graph_output() for value in node.outputs)
            if scaling is None or not is_op(scaling, "Mul") or weight is None or not alone or scaling.outputs[0].is_graph_output():
                return None
            return Product(node, scaling, weight.shape[-1])
        if node.op_type not in BETWEEN:
            return None
        scaling, value = node, optional(node, 0)
    return None
