"""GELU written out (Hendrycks and Gimpel 2016), by erf or by tanh, becomes one kernel.

ONNX Runtime finds some of its spellings when it loads a graph, in float32 alone. Here the arithmetic is read as a polynomial, so that the
spelling does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from onnxport.graph.edit import Miss, dims, is_op, new_node, only_use, source, take_over
from onnxport.quantize.fusion.factors import number_of, scalings
from onnxport.quantize.fusion.rule import Rule

Polynomial = dict[int, float]  # power of x → its coefficient
STEPS = ("Add", "Mul", "Div", "Pow")
DEPTH = 8  # of nodes between x and what is made of it
CLOSE = 1e-4  # relative: exporters write constants with 4 to 16 digits
TANH = math.sqrt(2 / math.pi)
TANH_CUBE = 0.044715  # of x³ beside x


@dataclass
class Match:
    """x and the answer of an activation."""

    x: ir.Value
    answer: ir.Value


def polynomial(value: ir.Value, x: ir.Value, depth: int = DEPTH) -> Polynomial | None:
    """A value as a polynomial of x; None where it is none, or too deep."""
    if value is x:
        return {1: 1.0}
    number, node = number_of(value), value.producer()
    if number is not None:
        return {0: number}
    if node is None or node.domain or node.op_type not in STEPS or not depth:
        return None
    left, right = (polynomial(source(node, i), x, depth - 1) for i in (0, 1))
    if left is None or right is None:
        return None
    return _combined(node.op_type, left, right)


def _combined(op_type: str, left: Polynomial, right: Polynomial) -> Polynomial | None:
    if op_type == "Add":
        return {power: left.get(power, 0.0) + right.get(power, 0.0) for power in {*left, *right}}
    if op_type == "Mul":
        return _product(left, right)
    if set(right) != {0} or not right[0]:
        return None
    if op_type == "Div":
        return _product(left, {0: 1 / right[0]})
    square = _product(left, left)
    return {2.0: square, 3.0: _product(square, left)}.get(right[0])


def _product(left: Polynomial, right: Polynomial) -> Polynomial:
    found: Polynomial = {}
    for one, by in left.items():
        for other, more in right.items():
            found[one + other] = found.get(one + other, 0.0) + by * more
    return found


def _is(found: Polynomial | None, wanted: Mapping[int, float]) -> bool:
    return found is not None and all(
        math.isclose(found.get(power, 0.0), wanted.get(power, 0.0), rel_tol=CLOSE, abs_tol=1e-9) for power in {*found, *wanted}
    )


def _gated(gate: ir.Value, factor: float, fits: Callable[[ir.Value], bool]) -> tuple[ir.Value, ir.Value]:
    """x and the answer of x * gate * factor, in whatever order these are multiplied. fits: whether a value is x."""
    value, rest, x = gate, factor, None
    while x is None or not math.isclose(rest, 1, rel_tol=CLOSE):
        if not only_use(value):
            raise Miss("what is gated is used elsewhere too")
        node, place = value.uses()[0].node, value.uses()[0].idx
        if not is_op(node, "Mul") and not (is_op(node, "Div") and place == 0):
            raise Miss(f"what is gated goes into {node.op_type}")
        other = source(node, 1 - place)
        number = number_of(other)
        if number:
            rest = rest / number if node.op_type == "Mul" else rest * number
        elif x is None and node.op_type == "Mul":
            x, by = next(((found, by) for found, by in scalings(other) if fits(found)), (None, 1.0))
            rest /= by
        else:
            raise Miss("the gate is multiplied with more than its input")
        if x is None and not number:
            raise Miss("the gate is multiplied with something else than what it is made of")
        value = node.outputs[0]
    return x, value


class Gelu(Rule):
    """x / 2 * (1 + erf(x / √2))."""

    name = "gelu"
    anchor = "Erf"
    kernel = "Gelu"
    inner: Mapping[int, float] = {1: math.sqrt(0.5)}

    def pattern(self, node: ir.Node) -> Match:
        """As `Rule`."""
        value = node.outputs[0]
        add = value.uses()[0].node if only_use(value) else None
        if add is None or not is_op(add, "Add") or number_of(source(add, 1 - value.uses()[0].idx)) != 1:
            raise Miss(f"1 is not added to {node.op_type}")
        x, answer = _gated(add.outputs[0], 0.5, lambda found: _is(polynomial(source(node), found), self.inner))
        return Match(x, answer)

    def check(self, graph: ir.Graph, match: Match) -> None:
        """As `Rule`."""
        if match.x.dtype not in (None, ir.DataType.FLOAT):
            raise Miss(f"the activation is {match.x.dtype}, expected float32")
        if len(dims(match.x) or ()) != len(dims(match.answer) or ()):
            raise Miss("a constant gives the answer more axes")

    def rewrite(self, graph: ir.Graph, match: Match) -> None:
        """As `Rule`."""
        last = match.answer.producer()
        assert last is not None
        take_over(match.answer, new_node(graph, last, self.kernel, [match.x], {}, [match.answer]).outputs[0])


class TanhGelu(Gelu):
    """x / 2 * (1 + tanh(√(2 / π) * (x + 0.044715 x³)))."""

    name = "tanh_gelu"
    anchor = "Tanh"
    kernel = "FastGelu"
    inner: Mapping[int, float] = {1: TANH, 3: TANH * TANH_CUBE}
