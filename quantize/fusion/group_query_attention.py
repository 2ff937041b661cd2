"""Cached self-attention: packed qkv -> Split -> heads -> Concat with the past -> Attention becomes GroupQueryAttention.

The kernel writes new keys and values into the cache in place, when past and present are bound to one buffer [batch, kv_heads, capacity,
head_size]. Which entries count is told by `seqlens_k` and `total_sequence_length` instead of a mask: the graph input `self_mask` goes.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnxport.quantize.fusion.core import (
    Miss,
    Rule,
    attribute,
    dims,
    is_op,
    known_dims,
    new_node,
    optional,
    produced_by,
    source,
    take_over,
)

MASK = "self_mask"


@dataclass
class Match:
    attention: ir.Node
    split: ir.Node
    heads: tuple[ir.Value, ir.Value, ir.Value]  # query, key, value as [batch, heads, length, head_size]
    past: tuple[ir.Value, ir.Value]
    present: tuple[ir.Value, ir.Value]
    merged: ir.Node  # Reshape of the answer to [batch, length, hidden]


def _heads(value: ir.Value, what: str) -> tuple[ir.Value, ir.Value]:
    """[B, H, T, D] back to the Split output [B, T, H*D] it was made from."""
    transpose = produced_by(value, "Transpose", what)
    if tuple(attribute(transpose, "perm", ())) != (0, 2, 1, 3):
        raise Miss(f"{what} is transposed by {attribute(transpose, 'perm', ())}, expected (0, 2, 1, 3)")
    reshape = produced_by(source(transpose), "Reshape", what)
    return value, source(reshape)


def _joined(value: ir.Value, what: str) -> tuple[ir.Value, ir.Value]:
    concat = produced_by(value, "Concat", what)
    if len(concat.inputs) != 2 or attribute(concat, "axis", None) not in (2, -2):
        raise Miss(f"{what} is not Concat(past, new) on axis 2")
    past = source(concat, 0)
    if not past.is_graph_input():
        raise Miss(f"the past of {what} is '{past.name}', which is not a graph input")
    return past, source(concat, 1)


class GroupQueryAttention(Rule):
    name = "group_query_attention"
    anchor = "Attention"
    kernel = "GroupQueryAttention"

    def pattern(self, node: ir.Node) -> Match:
        mask = optional(node, 3)
        if mask is None or not mask.is_graph_input() or mask.name != MASK:
            raise Miss(f"the mask is {mask.name if mask else 'absent'}, not the graph input '{MASK}'")
        past_key, new_key = _joined(source(node, 1), "key")
        past_value, new_value = _joined(source(node, 2), "value")
        found = [_heads(v, what) for v, what in ((source(node, 0), "query"), (new_key, "key"), (new_value, "value"))]
        split = produced_by(found[0][1], "Split", "query")
        for (_, flat), output in zip(found, split.outputs, strict=False):
            if flat is not output:
                raise Miss("query, key and value are not the outputs of one Split in that order")
        if len(split.outputs) != 3 or attribute(split, "axis", 0) not in (-1, 2):
            raise Miss("query, key and value are not split on the last axis")
        uses = node.outputs[0].uses()
        if len(uses) != 1 or not is_op(uses[0].node, "Transpose"):
            raise Miss("the answer is not transposed back to [batch, length, heads, head_size]")
        back = uses[0].node.outputs[0].uses()
        if len(back) != 1 or not is_op(back[0].node, "Reshape"):
            raise Miss("the answer's heads are not merged by a Reshape")
        heads = (found[0][0], found[1][0], found[2][0])
        return Match(node, split, heads, (past_key, past_value), (source(node, 1), source(node, 2)), back[0].node)

    def check(self, graph: ir.Graph, match: Match) -> None:
        (batch, heads, length, size), key, value = (known_dims(v, 4, "heads") for v in match.heads)
        if not isinstance(heads, int) or not isinstance(size, int) or not isinstance(key[1], int):
            raise Miss(f"heads and head size are not known: {heads}, {size}")
        if key != value or key[3] != size or heads % key[1]:
            raise Miss(f"{heads} query heads of size {size} do not fit keys {key} and values {value}")
        if size % 8:
            raise Miss(f"head size {size} is not a multiple of 8, as GroupQueryAttention demands")
        packed = known_dims(source(match.split), 3, "the packed projection")
        if packed != (batch, length, (heads + 2 * key[1]) * size):
            raise Miss(f"the packed projection is {packed}, expected {(batch, length, (heads + 2 * key[1]) * size)}")
        merged = dims(match.merged.outputs[0])
        if merged != (batch, length, heads * size):
            raise Miss(f"the merged answer is {merged}, expected {(batch, length, heads * size)}")
        if attribute(match.attention, "is_causal", 0) or attribute(match.attention, "softcap", 0.0):
            raise Miss("Attention with is_causal or softcap beside a mask")
        if len(match.attention.outputs) > 1 and any(v.uses() for v in match.attention.outputs[1:]):
            raise Miss("further outputs of Attention are used")

    def rewrite(self, graph: ir.Graph, match: Match) -> None:
        _, heads, _, _ = known_dims(match.heads[0], 4, "query")
        _, kv_heads, _, size = known_dims(match.heads[1], 4, "key")
        batch = match.past[0].shape[0]  # check() has seen four dimensions
        lengths = _input(graph, "seqlens_k", [batch])
        total = _input(graph, "total_sequence_length", [])
        attributes: dict[str, object] = {"num_heads": heads, "kv_num_heads": kv_heads}
        if "scale" in match.attention.attributes:
            attributes["scale"] = float(match.attention.attributes["scale"].value)
        inputs = [source(match.split), None, None, *match.past, lengths, total]
        node = new_node(graph, match.merged, self.kernel, inputs, attributes, [match.merged.outputs[0], *match.present])
        for past, present, new in zip(match.past, match.present, node.outputs[1:], strict=True):
            past.shape = new.shape = ir.Shape([batch, kv_heads, "capacity", size])
            take_over(present, new)
        take_over(match.merged.outputs[0], node.outputs[0])


def _input(graph: ir.Graph, name: str, shape: list[object]) -> ir.Value:
    for value in graph.inputs:
        if value.name == name:
            return value
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.INT32))
    graph.inputs.append(value)
    return value
