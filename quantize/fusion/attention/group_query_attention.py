"""Cached self-attention: packed qkv -> Split -> heads -> Concat with the past -> Attention becomes GroupQueryAttention.

The kernel writes new keys and values into the cache in place, when past and present are bound to one buffer [batch, kv_heads, capacity,
head_size]. Which entries count is told by `seqlens_k` and `total_sequence_length` instead of a mask: the graph input `self_mask` goes.
Rotary positions, a sliding window and a bias of the scores go into the kernel; norms of single heads stay before it. A decoder without a
memory also takes `query_seqlens`, how many ids of each row are real: so long prompts come in chunks. Where every layer has the same window,
cache buffers hold no more than it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxport.graph.edit import (
    Miss,
    array_of,
    attribute,
    constant,
    dims,
    is_op,
    known_dims,
    new_node,
    optional,
    produced_by,
    source,
    take_over,
)
from onnxport.quantize.fusion.attention.multi_head_attention import LOW
from onnxport.quantize.fusion.rule import Rule
from onnxport.runtime.bundle.interface import QUERY_LENGTHS, SELF_MASK, SEQLENS, SOURCE_MASK, TOTAL_LENGTH

BIAS, LENGTHS = 10, 16  # places of the kernel's inputs attention_bias and query_seqlens
WAYS = ("interleaved", "rotary_embedding_dim")  # of RotaryEmbedding, by which this kernel does not turn


@dataclass
class Head:
    """Queries, keys or values on their way from the packed projection."""

    value: ir.Value  # [batch, heads, length, head_size], as it is before positions turn it
    flat: ir.Value  # the output of Split it was made from, [batch, length, heads * head_size]
    norm: ir.Node | None  # RMSNormalization of each head
    rotary: ir.Node | None  # RotaryEmbedding


@dataclass
class Match:
    """A layer's cached attention, from the packed projection to the merged answer."""

    attention: ir.Node
    split: ir.Node
    heads: tuple[Head, Head, Head]
    past: tuple[ir.Value, ir.Value]
    present: tuple[ir.Value, ir.Value]
    merged: ir.Node  # Reshape of the answer to [batch, length, hidden]
    window: int  # -1 for none
    bias: ir.Value | None  # of scores, [batch, heads, length, total]


def _heads(value: ir.Value, what: str) -> Head:
    """[B, H, T, D] back to the Split output [B, T, H*D] it was made from."""
    rotary = value.producer() if is_op(value.producer(), "RotaryEmbedding") else None
    turned = value if rotary is None else source(rotary)
    norm = turned.producer() if is_op(turned.producer(), "RMSNormalization") else None
    if norm is not None and attribute(norm, "axis", -1) not in (-1, 3):
        raise Miss(f"{what} is normed over axis {attribute(norm, 'axis', -1)}, expected the last")
    transpose = produced_by(turned if norm is None else source(norm), "Transpose", what)
    if tuple(attribute(transpose, "perm", ())) != (0, 2, 1, 3):
        raise Miss(f"{what} is transposed by {attribute(transpose, 'perm', ())}, expected (0, 2, 1, 3)")
    reshape = produced_by(source(transpose), "Reshape", what)
    return Head(turned, source(reshape), norm, rotary)


def _seen(value: ir.Value) -> tuple[int, ir.Value | None]:
    """The window and the bias that a mask is made of, beside the graph input; (-1, None) for the input itself."""
    if value.is_graph_input() and value.name == SELF_MASK:
        return -1, None
    node = value.producer()
    if is_op(node, "Where"):
        lowest = array_of(source(node, 2))
        if lowest is None or lowest.size != 1 or lowest.item() > LOW:
            raise Miss("the mask is no choice between a bias and a low constant")
        return _seen(source(node))[0], source(node, 1)
    if is_op(node, "And"):
        for mask, other in ((source(node), source(node, 1)), (source(node, 1), source(node))):
            width = array_of(source(other.producer(), 1)) if is_op(other.producer(), "Less") else None
            if width is not None and width.size == 1:
                return int(width.item()), _seen(mask)[1]
    raise Miss(f"the mask is '{value.name}', which is not made of the graph input '{SELF_MASK}' as a window or a bias would be")


def _joined(value: ir.Value, what: str) -> tuple[ir.Value, ir.Value]:
    concat = produced_by(value, "Concat", what)
    if len(concat.inputs) != 2 or attribute(concat, "axis", None) not in (2, -2):
        raise Miss(f"{what} is not Concat(past, new) on axis 2")
    past = source(concat, 0)
    if not past.is_graph_input():
        raise Miss(f"the past of {what} is '{past.name}', which is not a graph input")
    return past, source(concat, 1)


class GroupQueryAttention(Rule):
    """Attention over a cache and the new keys and values becomes one kernel that keeps the cache itself."""

    name = "group_query_attention"
    anchor = "Attention"
    kernel = "GroupQueryAttention"

    def pattern(self, node: ir.Node) -> Match:
        """As `Rule`."""
        mask = optional(node, 3)
        if mask is None:
            raise Miss(f"the mask is absent, expected the graph input '{SELF_MASK}'")
        window, bias = _seen(mask)
        past_key, new_key = _joined(source(node, 1), "key")
        past_value, new_value = _joined(source(node, 2), "value")
        found = [_heads(v, what) for v, what in ((source(node, 0), "query"), (new_key, "key"), (new_value, "value"))]
        split = produced_by(found[0].flat, "Split", "query")
        for head, output in zip(found, split.outputs, strict=False):
            if head.flat is not output:
                raise Miss("query, key and value are not the outputs of one Split in that order")
        if len(split.outputs) != 3 or attribute(split, "axis", 0) not in (-1, 2):
            raise Miss("query, key and value are not split on the last axis")
        uses = node.outputs[0].uses()
        if len(uses) != 1 or not is_op(uses[0].node, "Transpose"):
            raise Miss("the answer is not transposed back to [batch, length, heads, head_size]")
        back = uses[0].node.outputs[0].uses()
        if len(back) != 1 or not is_op(back[0].node, "Reshape"):
            raise Miss("the answer's heads are not merged by a Reshape")
        past, present = (past_key, past_value), (source(node, 1), source(node, 2))
        return Match(node, split, (found[0], found[1], found[2]), past, present, back[0].node, window, bias)

    def check(self, graph: ir.Graph, match: Match) -> None:
        """As `Rule`."""
        _check_sizes(match)
        _check_positions(match.heads)
        if match.bias is not None and dims(match.bias) is not None and len(dims(match.bias) or ()) != 4:
            raise Miss(f"the bias of scores has shape {dims(match.bias)}, expected 4 dimensions")
        if match.heads[2].norm is not None:
            raise Miss("values are normed")
        if attribute(match.attention, "is_causal", 0) or attribute(match.attention, "softcap", 0.0):
            raise Miss("Attention with is_causal or softcap beside a mask")
        if any(v.uses() for v in match.attention.outputs[1:]):
            raise Miss("further outputs of Attention are used")

    def rewrite(self, graph: ir.Graph, match: Match) -> None:
        """As `Rule`."""
        _, heads, _, _ = known_dims(match.heads[0].value, 4, "query")
        _, kv_heads, _, size = known_dims(match.heads[1].value, 4, "key")
        batch = match.past[0].shape[0]  # check() has seen four dimensions
        lengths = _input(graph, SEQLENS, [batch])
        total = _input(graph, TOTAL_LENGTH, [])
        attributes: dict[str, object] = {"num_heads": heads, "kv_num_heads": kv_heads}
        if "scale" in match.attention.attributes:
            attributes["scale"] = float(match.attention.attributes["scale"].value)
        if match.window > 0:
            attributes["local_window_size"] = match.window
        if any(head.norm is not None for head in match.heads):
            inputs = [_flat_norm(graph, match.attention, head) for head in match.heads]
        else:
            inputs = [source(match.split), None, None]
        inputs += [*match.past, lengths, total]
        if (rotary := match.heads[0].rotary) is not None:
            attributes["do_rotary"] = 1
            inputs += [rotary.inputs[1], rotary.inputs[2]]
        if match.bias is not None:
            inputs += [None] * (BIAS - len(inputs)) + [match.bias]
        if not any(value.name == SOURCE_MASK for value in graph.inputs):
            inputs += [None] * (LENGTHS - len(inputs)) + [_input(graph, QUERY_LENGTHS, [batch])]
        node = new_node(graph, match.merged, self.kernel, inputs, attributes, [match.merged.outputs[0], *match.present])
        for past, present, new in zip(match.past, match.present, node.outputs[1:], strict=True):
            past.shape = new.shape = ir.Shape([batch, kv_heads, "capacity", size])
            take_over(present, new)
        take_over(match.merged.outputs[0], node.outputs[0])


def _check_sizes(match: Match) -> None:
    """Heads, head size, the packed projection and the merged answer fit each other and the kernel."""
    (batch, heads, length, size), key, value = (known_dims(head.value, 4, "heads") for head in match.heads)
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


def _check_positions(heads: tuple[Head, Head, Head]) -> None:
    """Queries and keys are turned alike, by tables that the kernel can read, or not at all."""
    query, key, value = (head.rotary for head in heads)
    if value is not None or (query is None) != (key is None):
        raise Miss("positions turn other heads than those of queries and keys")
    if query is None or key is None:
        return
    tables = [[turn.inputs[i] for i in (1, 2, 3)] for turn in (query, key)]
    if tables[0] != tables[1] or any(attribute(turn, how, 0) for turn in (query, key) for how in WAYS):
        raise Miss("queries and keys are not turned alike by halves of whole heads")
    if len(dims(source(query, 1)) or ()) != 2 or not source(query, 3).is_graph_input():
        raise Miss("positions are turned by tables that the kernel cannot read")


def bound_cache(graph: ir.Graph) -> None:
    """Where all layers see the same window, buffers hold the newest entries only, moved up by the kernel."""
    nodes = [node for node in graph if node.op_type == GroupQueryAttention.kernel]
    windows = {attribute(node, "local_window_size", -1) for node in nodes}
    if len(windows) == 1 and windows != {-1} and all(len(node.inputs) > LENGTHS for node in nodes):
        for node in nodes:
            node.attributes["sliding_window_cache"] = ir.AttrInt64("sliding_window_cache", 1)


def _flat_norm(graph: ir.Graph, before: ir.Node, head: Head) -> ir.Value:
    """Heads normed as [batch, length, heads, head_size], and flat again: no transpose is left."""
    if head.norm is None:
        return head.flat
    split = source(source(head.norm).producer())  # pattern() has seen the Transpose
    batch, length, heads, size = known_dims(split, 4, "heads")
    assert isinstance(heads, int) and isinstance(size, int)
    kind = head.flat.type
    like = ir.Value(name=f"{head.flat.name}/normed", type=kind, shape=split.shape)
    given = {name: found.value for name, found in head.norm.attributes.items()}
    normed = new_node(graph, before, "RMSNormalization", [split, head.norm.inputs[1]], given, [like], domain="").outputs[0]
    shape = constant(graph, f"shape_0_0_{heads * size}", np.array([0, 0, heads * size], np.int64))
    flat = ir.Value(name=f"{head.flat.name}/flat", type=kind, shape=ir.Shape([batch, length, heads * size]))
    return new_node(graph, before, "Reshape", [normed, shape], {}, [flat], domain="").outputs[0]


def _input(graph: ir.Graph, name: str, shape: list[object]) -> ir.Value:
    for value in graph.inputs:
        if value.name == name:
            return value
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.INT32))
    graph.inputs.append(value)
    return value
