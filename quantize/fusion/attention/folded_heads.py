"""Attention whose products have rows and heads in one axis, [batch * heads, length, size]: they get an axis each, as in other models.

So DeBERTa-v2 writes it. What is added to scores is laid out anew; the other rules find the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxport.graph.edit import Miss, attribute, constant, dims, is_op, new_node, only_use, produced_by, same_shape, source, take_over
from onnxport.quantize.fusion.factors import scaled
from onnxport.quantize.fusion.rule import Rule


@dataclass
class Match:
    """The two products and what lies between them and the Softmax; heads: values of four axes, [batch, heads, length, size]."""

    softmax: ir.Node
    unfolded: ir.Node  # Reshape of scores to four axes
    bias: ir.Value | None  # added to scores of three axes
    query: ir.Value
    key: ir.Value
    scale: float
    value: ir.Value
    answer: ir.Node  # Reshape of the answer to four axes


class FoldedHeads(Rule):
    """Products of [batch * heads, ...] become products of [batch, heads, ...]."""

    name = "folded_heads"
    anchor = "Softmax"
    kernel = ""

    def pattern(self, node: ir.Node) -> Match:
        """As `Rule`."""
        unfolded = _reshaped(source(node), 3, 4)
        folded, bias = source(unfolded), None
        if is_op(add := folded.producer(), "Add"):
            place = 0 if is_op(scaled(source(add, 0))[0].producer(), "MatMul") else 1
            folded, bias = source(add, place), source(add, 1 - place)
        folded, scale = scaled(folded)
        product = produced_by(folded, "MatMul", "the score")
        query, query_scale = scaled(source(product, 0))
        turned, turned_scale = scaled(source(product, 1))
        turn = produced_by(turned, "Transpose", "the key")
        if tuple(attribute(turn, "perm", ())) != (0, 2, 1):
            raise Miss(f"the key is transposed by {attribute(turn, 'perm', ())}, expected (0, 2, 1)")
        again = _only(node.outputs[0], "Reshape")
        values = _only(again.outputs[0], "MatMul")
        answer = _only(values.outputs[0], "Reshape")
        return Match(
            node,
            unfolded,
            bias,
            _unfolded(query),
            _unfolded(source(turn)),
            scale * query_scale * turned_scale,
            _unfolded(source(values, 1)),
            answer,
        )

    def check(self, graph: ir.Graph, match: Match) -> None:
        """As `Rule`."""
        scores, answer = dims(match.unfolded.outputs[0]) or (), dims(match.answer.outputs[0]) or ()
        heads = {(dims(value) or ())[1] for value in (match.query, match.key, match.value)} | {scores[1], answer[1:2] and answer[1]}
        if len(heads) != 1 or not isinstance(scores[1], int):
            raise Miss(f"query, key, value and scores have {heads} heads, expected one number")
        if len(answer) != 4 or not same_shape(answer[2:], (*scores[2:3], *(dims(match.value) or ())[3:])):
            raise Miss(f"the answer has shape {answer}")
        if match.bias is not None and not same_shape(dims(match.bias), dims(source(match.unfolded))):
            raise Miss(f"what is added to scores has shape {dims(match.bias)}")

    def rewrite(self, graph: ir.Graph, match: Match) -> None:
        """As `Rule`."""
        before, out = match.unfolded, match.unfolded.outputs[0]
        name, kind = out.name, out.type
        batch, heads, length, size = dims(match.key) or ()
        turned = ir.Value(name=f"{name}/turned", type=kind, shape=ir.Shape([batch, heads, size, length]))
        key = new_node(graph, before, "Transpose", [match.key], {"perm": [0, 1, 3, 2]}, [turned], domain="").outputs[0]
        product = ir.Value(name=f"{name}/product", type=kind, shape=out.shape)
        y = new_node(graph, before, "MatMul", [match.query, key], {}, [product], domain="").outputs[0]
        if match.scale != 1:
            factor = constant(graph, f"{name}/scale", np.float32(match.scale))
            like = ir.Value(name=f"{name}/scaled", type=kind, shape=out.shape)
            y = new_node(graph, before, "Mul", [y, factor], {}, [like], domain="").outputs[0]
        if match.bias is not None:
            like = ir.Value(name=f"{name}/wide_bias", type=kind, shape=out.shape)
            wide = new_node(graph, before, "Reshape", [match.bias, source(match.unfolded, 1)], {}, [like], domain="").outputs[0]
            like = ir.Value(name=f"{name}/sum", type=kind, shape=out.shape)
            y = new_node(graph, before, "Add", [y, wide], {}, [like], domain="").outputs[0]
        take_over(out, y)
        last = match.answer.outputs[0]
        like = ir.Value(name=f"{last.name}/heads", type=last.type, shape=last.shape)
        inputs = [match.softmax.outputs[0], match.value]
        take_over(last, new_node(graph, match.answer, "MatMul", inputs, {}, [like], domain="").outputs[0])


def _only(value: ir.Value, op_type: str) -> ir.Node:
    """The one node that reads a value, at its first place."""
    use = value.uses()[0] if only_use(value) else None
    if use is None or not is_op(use.node, op_type) or use.idx != 0:
        raise Miss(f"'{value.name}' is not read by one {op_type} alone")
    return use.node


def _unfolded(value: ir.Value) -> ir.Value:
    """[batch, heads, length, size] that a value of three axes was made of; equal last axes leave batch and heads for its first."""
    return source(_reshaped(value, 4, 3))


def _reshaped(value: ir.Value, before: int, after: int) -> ir.Node:
    """The Reshape from `before` to `after` axes that made a value and left its last two as they were, also under a choice of scores."""
    node = value.producer()
    if is_op(node, "Where") and after == 4:
        made = [one for one in node.inputs[1:] if one is not None and is_op(one.producer(), "Reshape")]
        node = made[0].producer() if made else node
    node = produced_by(node.outputs[0] if node is not None else value, "Reshape", "a product")
    old, new = dims(source(node)) or (), dims(node.outputs[0]) or ()
    if len(old) != before or len(new) != after or not same_shape(old[-2:], new[-2:]):
        raise Miss(f"a Reshape leads from {old} to {new}, expected {before} and {after} axes of which the last two are the same")
    return node
