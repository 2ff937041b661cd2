"""RMS norms written out, x / sqrt(mean(x²) + eps) * weight, become RMSNormalization (Zhang and Sennrich 2019), or what ONNX Runtime had
for it before opset 23."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxport.graph.edit import Miss, array_of, constant, dims, is_op, known_dims, new_node, only_use, produced_by, source, take_over
from onnxport.quantize.fusion.norms.norm_parts import mean_of, no_weight, squared, with_scalar
from onnxport.quantize.fusion.rule import Rule

SINCE = 23  # the first opset with RMSNormalization
OLDER = "SimplifiedLayerNormalization"  # of ONNX Runtime, which has it in ONNX's own domain


@dataclass
class Match:
    """A norm. answer: the value that it gives; weight: an initializer, or a sum of it and a constant; None where it has none."""

    x: ir.Value
    weight: ir.Value | None
    answer: ir.Value
    epsilon: float


class RmsNorm(Rule):
    """Pow, ReduceMean, Add, Sqrt, then a division of x, and the weight."""

    name = "rms_norm"
    anchor = "Sqrt"
    kernel = "RMSNormalization"

    def pattern(self, node: ir.Node) -> Match:
        """As `Rule`."""
        mean, epsilon = with_scalar(produced_by(source(node), "Add", "what is rooted"))
        x = squared(mean_of(mean))
        divided = _divided(node, x)
        weight, answer = _weighted(divided, known_dims(x, len(dims(x) or ()), "what is normed")[-1])
        return Match(x, weight, answer, epsilon)

    def rewrite(self, graph: ir.Graph, match: Match) -> None:
        """As `Rule`."""
        last = match.answer.producer()
        assert last is not None
        weight = match.weight
        if weight is None:
            weight = no_weight(graph, match.x)
        elif array_of(weight) is None:  # 1 + weight, as Gemma has it
            parts = _constant_sum(weight)
            assert parts is not None, "pattern() has seen the sum"
            node = weight.producer()
            assert node is not None
            named = next(value.name for value in node.inputs if value is not None and value.name in graph.initializers)
            weight = constant(graph, f"{named}/with_one", parts)
        like = [match.answer]
        kernel = self.kernel if graph.opset_imports.get("", SINCE) >= SINCE else OLDER
        made = new_node(graph, last, kernel, [match.x, weight], {"axis": -1, "epsilon": match.epsilon}, like, domain="")
        take_over(match.answer, made.outputs[0])


def _divided(root: ir.Node, x: ir.Value) -> ir.Value:
    """x over the root."""
    for use in root.outputs[0].uses():
        if is_op(use.node, "Div") and use.idx == 1 and use.node.inputs[0] is x:
            return use.node.outputs[0]
        if is_op(use.node, "Reciprocal"):
            for product in use.node.outputs[0].uses():
                if is_op(product.node, "Mul") and product.node.inputs[1 - product.idx] is x:
                    return product.node.outputs[0]
    raise Miss("what is normed is not divided by its root")


def _weighted(divided: ir.Value, size: int | str) -> tuple[ir.Value | None, ir.Value]:
    """The weight [size] that the quotient is multiplied with, and the product; None and the quotient where there is none."""
    if only_use(divided):
        (use,) = divided.uses()
        if is_op(use.node, "Mul"):
            weight = use.node.inputs[1 - use.idx]
            known = weight is not None and (array_of(weight) is not None or _constant_sum(weight) is not None)
            if known and dims(weight) == (size,):
                return weight, use.node.outputs[0]
    if not isinstance(size, int):
        raise Miss("the size of what is normed is not known")
    return None, divided


def _constant_sum(value: ir.Value) -> np.ndarray | None:
    """The sum of two constants; None for anything else."""
    node = value.producer()
    if node is None or not is_op(node, "Add"):
        return None
    first, second = (array_of(part) for part in node.inputs)
    return None if first is None or second is None else first + second
