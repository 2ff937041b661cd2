"""Mixtures of experts that are written out as a sum over all experts become ONNX Runtime's MoE, which computes the chosen ones.

The kernel makes the router's weights of logits itself, by a softmax; so it is given the logarithms of the weights, and its answer is
multiplied by their sum. On the CPU it knows SwiGLU (Shazeer 2020) with gates and values in turn. What a graph gates with is found by trying
SwiGLU with the graph's own constants on numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir

from onnxport.graph import edit
from onnxport.graph.edit import Miss, array_of, attribute, constant, dims, is_constant, is_op, only_use, optional, produced_by, source
from onnxport.graph.normalize import PARAMETER, parameter_of
from onnxport.quantize.fusion.rule import Rule

DEEPEST = 16  # nodes between the two products of an expert
ROWS = 3  # of numbers that a gate is tried on
CLOSE = 1e-5  # of the largest answer
LEAST = np.float32(1e-37)  # in the place of weights of 0, whose logarithm is no number


@dataclass(frozen=True)
class Gate:
    """SwiGLU: min(g, limit) * sigmoid(alpha * g) * (v + beta), v within ±limit. in_turn: gates and values alternate, else gates lead."""

    in_turn: bool
    alpha: float
    beta: float
    limit: float

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """x float [..., 2n] → float64 [..., n]."""
        wide = x.astype(np.float64)
        gate, value = (wide[..., 0::2], wide[..., 1::2]) if self.in_turn else np.split(wide, 2, -1)
        gate, value = np.minimum(gate, self.limit), value.clip(-self.limit, self.limit)
        found: np.ndarray = gate * (1 + np.tanh(self.alpha * gate / 2)) / 2 * (value + self.beta)
        return found


@dataclass(frozen=True)
class Product:
    """A product of every expert. weight: constant [experts, K, N]; bias: constant [experts, 1, N] or None; answer: with the bias."""

    x: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    answer: ir.Value


@dataclass(frozen=True)
class Match:
    """A mixture. x [tokens, hidden]; weights [tokens, experts], 0 but for `top` chosen ones of each row; answer [tokens, hidden]."""

    x: ir.Value
    weights: ir.Value
    top: int
    up: Product
    gate: Gate
    down: Product
    answer: ir.Value


class Experts(Rule):
    """Answers of all experts, weighed and added up."""

    name = "experts"
    anchor = "ReduceSum"
    kernel = "MoE"

    def pattern(self, node: ir.Node) -> Match:
        """As `Rule`."""
        weighed = produced_by(source(_over(node, 0)), "Mul", "what is added up")
        sides = [source(weighed, i) for i in (0, 1)]
        place = next((i for i, value in enumerate(sides) if is_op(value.producer(), "Unsqueeze")), None)
        if place is None:
            raise Miss("answers are not multiplied by a weight for each token")
        turned = produced_by(source(_over(produced_by(sides[place], "Unsqueeze", "weights"), 2)), "Transpose", "weights")
        down = _product(sides[1 - place])
        if down.answer is not sides[1 - place]:
            raise Miss("something is done to what experts answer")
        up = _product(down.x)
        x = source(_over(produced_by(up.x, "Unsqueeze", "what experts read"), 0))
        weights = source(turned)
        return Match(x, weights, _chosen(weights), up, _gate(up.answer, down.x), down, node.outputs[0])

    def rewrite(self, graph: ir.Graph, match: Match) -> None:
        """As `Rule`."""
        last = match.answer.producer()
        assert last is not None

        def step(op: str, inputs: list[ir.Value], like: ir.Value | str, **attributes: int) -> ir.Value:
            made = like if isinstance(like, ir.Value) else ir.Value(name=f"{match.answer.name}/{like}", type=match.answer.type)
            return edit.new_node(graph, last, op, inputs, attributes, [made], domain="").outputs[0]

        known = step("Max", [match.weights, constant(graph, "least_weight", LEAST)], "weights")
        inputs = [match.x, step("Log", [known], "logits"), *_parts(graph, match.up, match.gate.in_turn), *_parts(graph, match.down, True)]
        limit = {} if math.isinf(match.gate.limit) else {"swiglu_limit": match.gate.limit}
        attributes = {
            "k": match.top,
            "activation_type": "swiglu",
            "swiglu_fusion": 1,
            "activation_alpha": match.gate.alpha,
            "activation_beta": match.gate.beta,
            "normalize_routing_weights": 0,
        }
        like = ir.Value(name=f"{match.answer.name}/mean", type=match.answer.type, shape=match.answer.shape)
        mean = edit.new_node(graph, last, self.kernel, inputs, attributes | limit, [like]).outputs[0]
        total = step("ReduceSum", [match.weights, constant(graph, "axis_last", np.array([-1], np.int64))], "total", keepdims=1)
        edit.take_over(match.answer, step("Mul", [mean, total], match.answer))


def written_out(graph: ir.Graph) -> bool:
    """Whether a graph has products of all experts of a mixture."""
    return any(is_op(node, "MatMul") and _of_experts(optional(node, 1)) for node in graph)


def _of_experts(weight: ir.Value | None) -> bool:
    shape = () if weight is None else dims(weight) or ()
    return len(shape) == 3 and shape[0] != 1 and is_constant(weight)


def _over(node: ir.Node, axis: int) -> ir.Node:
    """The node, or a miss where it sums or adds another axis, or keeps what it sums."""
    axes = array_of(optional(node, 1))
    if axes is None or axes.tolist() != [axis] or (node.op_type == "ReduceSum" and attribute(node, "keepdims", 1)):
        raise Miss(f"{node.op_type} is over another axis than {axis}")
    return node


def _product(value: ir.Value) -> Product:
    """The nearest product with weights of several experts that a value is made of."""
    open_, seen = [value], 0
    while open_ and seen <= DEEPEST:
        node, seen = open_.pop().producer(), seen + 1
        if node is None:
            continue
        weight = optional(node, 1)
        if is_op(node, "MatMul") and weight is not None and _of_experts(weight):
            return _biased(node, weight)
        open_ += [other for other in node.inputs if other is not None and array_of(other) is None]
    raise Miss(f"'{value.name}' is not made by a product of several experts")


def _biased(node: ir.Node, weight: ir.Value) -> Product:
    answer, (experts, _, width) = node.outputs[0], dims(weight) or (0, 0, 0)
    if weight.dtype != ir.DataType.FLOAT or not only_use(weight):
        raise Miss(f"weights of experts are {weight.dtype}, expected float32 and no other use")
    if only_use(answer) and is_op(add := answer.uses()[0].node, "Add"):
        bias = source(add, 1 - answer.uses()[0].idx)
        if array_of(bias) is not None and dims(bias) == (experts, 1, width) and only_use(bias):
            return Product(source(node), weight, bias, add.outputs[0])
    return Product(source(node), weight, None, answer)


def _chosen(weights: ir.Value) -> int:
    """How many experts a token has: weights are sums over its chosen ones of 0 or 1 for each expert, times their weight."""
    spread = produced_by(source(_over(produced_by(weights, "ReduceSum", "weights"), 1)), "Mul", "weights")
    marks = next((node for i in (0, 1) if is_op(node := source(spread, i).producer(), "Cast")), None)
    if marks is None or not is_op(source(marks).producer(), "Equal"):
        raise Miss("weights are not those of chosen experts")
    shape = dims(spread.outputs[0]) or ()
    if len(shape) != 3 or not isinstance(shape[1], int):
        raise Miss(f"the number of chosen experts is not known, weights have shape {shape}")
    return shape[1]


def _gate(x: ir.Value, y: ir.Value) -> Gate:
    """What makes y [experts, tokens, n] of x [experts, tokens, 2n]. Miss: it is not SwiGLU."""
    shape = dims(x) or ()
    if len(shape) != 3 or not isinstance(shape[0], int) or not isinstance(shape[2], int) or shape[2] % 2:
        raise Miss(f"gates and values have shape {shape}")
    nodes, constants = _between(x, y)
    tried = np.random.default_rng(0).normal(0, 8, (shape[0], ROWS, shape[2])).astype(np.float32)
    answer = _evaluate(nodes, constants, x, y, tried)
    numbers = [float(array.item()) for value in constants if (array := array_of(value)) is not None and array.size == 1]
    for gate in _gates(numbers):
        wanted = gate(tried)
        if wanted.shape == answer.shape and np.abs(answer - wanted).max() <= CLOSE * np.abs(wanted).max():
            return gate
    raise Miss("what is between the products of an expert is not SwiGLU")


def _gates(numbers: list[float]) -> Iterator[Gate]:
    limits = sorted({abs(number) for number in numbers if number})
    for in_turn, alpha, beta, limit in product((False, True), {1.0, *numbers}, {0.0, *numbers}, (math.inf, *limits)):
        yield Gate(in_turn, alpha, beta, limit)


def _between(x: ir.Value, y: ir.Value) -> tuple[list[ir.Node], list[ir.Value]]:
    """The nodes that make y of x, in order, and the constants that they read. Miss: they read something else."""
    nodes, constants = dict[ir.Node, None](), dict[ir.Value, None]()

    def visit(value: ir.Value) -> None:
        node = value.producer()
        if value is x or node in nodes:
            return
        if array_of(value) is not None:
            constants[value] = None
            return
        if node is None or node.domain or len(nodes) > DEEPEST:
            raise Miss(f"'{value.name}' is not made of gates and values alone")
        for other in node.inputs:
            if other is not None:
                visit(other)
        nodes[node] = None

    visit(y)
    return list(nodes), list(constants)


def _evaluate(nodes: list[ir.Node], constants: list[ir.Value], x: ir.Value, y: ir.Value, tried: np.ndarray) -> np.ndarray:
    """y where x is `tried`, by ONNX's reference."""
    protos = [ir.to_proto(node) for node in nodes]
    for proto in protos:
        del proto.metadata_props[:]
    initializers = [onnx.numpy_helper.from_array(array, str(value.name)) for value in constants if (array := array_of(value)) is not None]
    given = onnx.helper.make_tensor_value_info(str(x.name), onnx.TensorProto.FLOAT, tried.shape)
    graph = onnx.helper.make_graph(protos, "gate", [given], [onnx.helper.make_empty_tensor_value_info(str(y.name))], initializers)
    assert nodes[0].graph is not None
    opset = onnx.helper.make_opsetid("", nodes[0].graph.opset_imports.get("", 23))
    model = onnx.helper.make_model(graph, opset_imports=[opset])
    answer: np.ndarray = onnx.reference.ReferenceEvaluator(model).run(None, {str(x.name): tried})[0]
    return answer


def _parts(graph: ir.Graph, product: Product, in_turn: bool) -> tuple[ir.Value, ir.Value | None]:
    """Weights [experts, N, K] and biases [experts, N] as the kernel reads them."""
    weight, bias = array_of(product.weight), array_of(product.bias)
    assert weight is not None
    weights = _placed(graph, product.weight, weight.transpose(0, 2, 1), in_turn)
    return weights, None if bias is None or product.bias is None else _placed(graph, product.bias, bias[:, 0], in_turn)


def _placed(graph: ir.Graph, origin: ir.Value, array: np.ndarray, in_turn: bool) -> ir.Value:
    if not in_turn:
        array = np.stack(np.split(array, 2, 1), 2).reshape(array.shape)
    value = constant(graph, f"{origin.name}/experts", np.ascontiguousarray(array))
    value.meta[PARAMETER] = parameter_of(origin)
    edit.take_over(origin, value)  # a stored graph knows a weight by its name
    return value
