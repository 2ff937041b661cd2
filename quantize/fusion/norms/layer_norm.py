"""Norms written out, (x - mean) / sqrt(mean of squares + eps) * weight + bias, become LayerNormalization (Ba et al. 2016).

So exporters write them before opset 17. ONNX Runtime finds them in float32 as well, but not in half precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnxport.graph.edit import Miss, array_of, dims, is_op, new_node, only_use, produced_by, source, take_over
from onnxport.quantize.fusion.norms.norm_parts import mean_of, no_weight, squared, with_scalar
from onnxport.quantize.fusion.rule import Rule


@dataclass
class Match:
    """A norm over the last axis. answer: the value that it gives; weight and bias: initializers, None where it has none."""

    x: ir.Value
    weight: ir.Value | None
    bias: ir.Value | None
    answer: ir.Value
    epsilon: float


class LayerNorm(Rule):
    """ReduceMean, Sub, Pow, ReduceMean, Add, Sqrt and Div, then the weight and the bias."""

    name = "layer_norm"
    anchor = "Sqrt"
    since = 17
    kernel = "LayerNormalization"

    def pattern(self, node: ir.Node) -> Match:
        """As `Rule`."""
        variance, epsilon = with_scalar(produced_by(source(node), "Add", "what is rooted"))
        centred = squared(mean_of(variance))
        sub = _through_cast(centred).producer()
        if sub is None or not is_op(sub, "Sub") or mean_of(source(sub, 1)) is not source(sub):
            raise Miss("what is squared is no difference to a mean")
        x = source(sub)
        divided = _divided(node, centred, x)
        weight, answer = _with_vector(divided, "Mul", x)
        bias, answer = _with_vector(answer, "Add", x) if weight is not None else (None, answer)
        return Match(x, weight, bias, answer, epsilon)

    def check(self, graph: ir.Graph, match: Match) -> None:
        """As `Rule`."""
        size = (dims(match.x) or ("?",))[-1]
        if match.weight is None and not isinstance(size, int):
            raise Miss(f"what is normed has {size} values, expected a known number where there is no weight")
        if match.x.dtype not in (None, ir.DataType.FLOAT):
            raise Miss(f"what is normed is {match.x.dtype}, expected float32")

    def rewrite(self, graph: ir.Graph, match: Match) -> None:
        """As `Rule`."""
        last, weight = match.answer.producer(), match.weight
        assert last is not None
        if weight is None:
            weight = no_weight(graph, match.x)
        inputs = [match.x, weight] + ([match.bias] if match.bias is not None else [])
        made = new_node(graph, last, self.kernel, inputs, {"axis": -1, "epsilon": match.epsilon}, [match.answer], domain="")
        take_over(match.answer, made.outputs[0])


def _through_cast(value: ir.Value) -> ir.Value:
    node = value.producer()
    return source(node) if node is not None and is_op(node, "Cast") and source(node).dtype == value.dtype else value


def _divided(root: ir.Node, centred: ir.Value, x: ir.Value) -> ir.Value:
    """(x - mean) over the root; some graphs subtract the mean twice."""
    for use in root.outputs[0].uses():
        if is_op(use.node, "Div") and use.idx == 1:
            top = source(use.node)
            again = top.producer()
            same = again is not None and is_op(again, "Sub") and source(again) is x and mean_of(source(again, 1)) is x
            if _through_cast(top) is _through_cast(centred) or same:
                return use.node.outputs[0]
    raise Miss("the root divides nothing that was centred")


def _with_vector(value: ir.Value, op_type: str, x: ir.Value) -> tuple[ir.Value | None, ir.Value]:
    """An initializer as long as the last axis that the next node takes, and what comes of it; None and the value where there is none."""
    node = value.uses()[0].node if only_use(value) else None
    if node is None or not is_op(node, op_type):
        return None, value
    other = source(node, 1 - value.uses()[0].idx)
    size = (dims(x) or ("?",))[-1]
    known = array_of(other) is not None and len(dims(other) or ()) == 1 and (not isinstance(size, int) or dims(other) == (size,))
    return (other, node.outputs[0]) if known and dims(other) != (1,) else (None, value)
