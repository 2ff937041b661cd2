"""RMS norms written out, x / sqrt(mean(x²) + eps) * weight, become RMSNormalization (Zhang and Sennrich 2019)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxport.graph.edit import Miss, array_of, attribute, constant, dims, is_op, known_dims, new_node, only_use, source, take_over
from onnxport.quantize.fusion.rule import Rule


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
    since = 23
    kernel = "RMSNormalization"

    def pattern(self, node: ir.Node) -> Match:
        """As `Rule`."""
        add = source(node).producer()
        if not is_op(add, "Add"):
            raise Miss("what is rooted is no sum with a small number")
        assert add is not None
        mean, epsilon = _with_scalar(add)
        reduced = mean.producer()
        if reduced is None or not is_op(reduced, "ReduceMean") or attribute(reduced, "keepdims", 1) != 1:
            raise Miss("what is rooted is no mean that keeps its dimension")
        x = _squared(source(reduced))
        rank = len(dims(x) or ())
        axes = array_of(reduced.inputs[1]) if len(reduced.inputs) > 1 else np.array(attribute(reduced, "axes", ()))
        if axes is None or axes.size != 1 or int(axes.item()) not in (-1, rank - 1):
            raise Miss("the mean is not over the last axis alone")
        divided = _divided(node, x)
        weight, answer = _weighted(divided, known_dims(x, rank, "what is normed")[-1])
        return Match(x, weight, answer, epsilon)

    def rewrite(self, graph: ir.Graph, match: Match) -> None:
        """As `Rule`."""
        last = match.answer.producer()
        assert last is not None
        size = known_dims(match.x, len(dims(match.x) or ()), "x")[-1]
        weight = match.weight
        if weight is None:
            assert isinstance(size, int)
            weight = constant(graph, f"ones_{size}", np.ones(size, np.float32))
        elif array_of(weight) is None:  # 1 + weight, as Gemma has it
            parts = _constant_sum(weight)
            assert parts is not None, "pattern() has seen the sum"
            node = weight.producer()
            assert node is not None
            named = next(value.name for value in node.inputs if value is not None and value.name in graph.initializers)
            weight = constant(graph, f"{named}/with_one", parts)
        like = [match.answer]
        made = new_node(graph, last, self.kernel, [match.x, weight], {"axis": -1, "epsilon": match.epsilon}, like, domain="")
        take_over(match.answer, made.outputs[0])


def _with_scalar(add: ir.Node) -> tuple[ir.Value, float]:
    for value, other in ((source(add), source(add, 1)), (source(add, 1), source(add))):
        array = array_of(other)
        if array is not None and array.size == 1 and array.dtype == np.float32:
            return value, float(array.item())
    raise Miss("no small number is added to the mean")


def _squared(value: ir.Value) -> ir.Value:
    node = value.producer()
    if node is not None and is_op(node, "Pow"):
        power = array_of(source(node, 1))
        if power is not None and power.size == 1 and float(power.item()) == 2:
            return source(node)
    if node is not None and is_op(node, "Mul") and node.inputs[0] is node.inputs[1]:
        return source(node)
    raise Miss("the mean is not of squares")


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
