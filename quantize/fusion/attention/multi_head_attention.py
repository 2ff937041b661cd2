"""Attention without a cache of its own: encoder self-attention and cross-attention become MultiHeadAttention.

Keys and values are taken as they are: three dimensions [batch, source, hidden] where a projection made them, four [batch, heads, source,
head_size] where they come from outside (computed once per source) or were turned by rotary positions. The key padding mask is read straight
from the integer graph input where it is nothing else; any other mask becomes a bias of the scores, once for all layers that share it.
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
    same_shape,
    source,
    take_over,
)
from onnxport.quantize.fusion.rule import Rule
from onnxport.runtime.bundle.interface import SELF_MASK

# The kernels add it in float32 to the scores of padding, also where they read half precision. No finite score brings padding back into
# view, and a row of nothing but padding stays finite.
MASKED_SCORE = float(np.finfo(np.float32).min)
LOW = -1e4  # a score from here down is what graphs write for "not seen"
BIAS = 5  # the place of the kernel's input attention_bias


@dataclass
class Match:
    """An attention without a cache of its own."""

    attention: ir.Node
    query: ir.Value  # [batch, heads, length, head_size]
    flat: tuple[ir.Value, ir.Value, ir.Value]  # query as [.., hidden] or 4-D if it must be reshaped; key and value as 3-D or 4-D
    mask: ir.Value | None  # integer graph input [batch, source], 0 = padding
    bias: ir.Value | None  # of scores, [batch or 1, heads or 1, length or 1, source]; bool: true is seen
    back: ir.Node  # Transpose of the answer to [batch, length, heads, head_size]


def _flat(value: ir.Value) -> ir.Value | None:
    """[B, H, T, D] back to the [B, T, H*D] it was made from, if it was."""
    transpose = value.producer()
    if not is_op(transpose, "Transpose") or tuple(attribute(transpose, "perm", ())) != (0, 2, 1, 3):
        return None
    reshape = source(transpose).producer()
    if not is_op(reshape, "Reshape"):
        return None
    flat, split = dims(source(reshape)), dims(source(transpose))
    if flat is None or split is None or len(flat) != 3 or len(split) != 4 or not same_shape(flat[:2], split[:2]):
        return None
    return source(reshape)


def _padding(mask: ir.Value) -> ir.Value:
    """Walk a boolean mask [batch, 1, 1, source] back to the integer graph input that it is made of by `!= 0`."""
    value, found = mask, dims(mask)
    if found is None or len(found) != 4 or found[1] != 1:
        raise Miss(f"the mask has shape {found}, expected [batch, 1, 1, source]")
    while True:
        node = value.producer()
        if is_op(node, "Expand") or is_op(node, "Unsqueeze"):
            value = source(node)
        elif is_op(node, "Cast") and source(node).dtype in (ir.DataType.INT32, ir.DataType.INT64) and value.dtype == ir.DataType.BOOL:
            value = source(node)
            break
        elif is_op(node, "Not") and is_op(equal := source(node).producer(), "Equal"):
            zero = array_of(source(equal, 1))
            if zero is None or zero.size != 1 or zero.item() != 0:
                raise Miss("the mask does not compare its input with 0")
            value = source(equal)
            break
        else:
            raise Miss(f"the mask comes from {node.op_type if node else value.name}, not from an integer input compared with 0")
    if not value.is_graph_input() or value.dtype not in (ir.DataType.INT32, ir.DataType.INT64):
        raise Miss(f"the mask is made from '{value.name}', which is not an integer graph input")
    if not same_shape(known_dims(value, 2, "the mask's input"), (found[0], found[3])):
        raise Miss(f"the mask {found} is not [batch, 1, 1, source] of '{value.name}'")
    return value


class MultiHeadAttention(Rule):
    """Attention of an encoder, or over what an encoder made, becomes one kernel that reads projections as they are."""

    name = "multi_head_attention"
    anchor = "Attention"
    kernel = "MultiHeadAttention"

    def pattern(self, node: ir.Node) -> Match:
        """As `Rule`."""
        if optional(node, 4) is not None:
            raise Miss("Attention has a past of its own")
        query, key, value = (source(node, i) for i in range(3))
        flat_key, flat_value = _flat(key), _flat(value)
        if flat_key is None or flat_value is None:
            flat_key, flat_value = key, value
        mask, bias = _mask(node)
        uses = node.outputs[0].uses()
        if len(uses) != 1 or not is_op(uses[0].node, "Transpose"):
            raise Miss("the answer is not transposed back to [batch, length, heads, head_size]")
        return Match(node, query, (_flat(query) or query, flat_key, flat_value), mask, bias, uses[0].node)

    def check(self, graph: ir.Graph, match: Match) -> None:
        """As `Rule`."""
        key = _check_heads(match.attention)
        if match.mask is not None and not same_shape(known_dims(match.mask, 2, "mask"), (key[0], key[2])):
            raise Miss(f"the mask is {dims(match.mask)}, the keys are {key}")
        if match.bias is not None:
            _check_bias(match.bias, key)
        if tuple(attribute(match.back, "perm", ())) != (0, 2, 1, 3):
            raise Miss("the answer is not transposed by (0, 2, 1, 3)")
        if not all(is_op(use.node, "Reshape") and use.idx == 0 for use in match.back.outputs[0].uses()):
            raise Miss("the answer's heads are not merged by a Reshape")
        if attribute(match.attention, "is_causal", 0) or attribute(match.attention, "softcap", 0.0):
            raise Miss("Attention with is_causal or softcap")
        if any(v.uses() for v in match.attention.outputs[1:]):
            raise Miss("further outputs of Attention are used")

    def rewrite(self, graph: ir.Graph, match: Match) -> None:
        """As `Rule`."""
        batch, heads, length, size = known_dims(match.query, 4, "query")
        _, _, _, value_size = known_dims(source(match.attention, 2), 4, "value")
        assert isinstance(heads, int) and isinstance(size, int) and isinstance(value_size, int)
        query = match.flat[0]
        if query is match.query:
            split = _heads_behind(graph, match)
            shape = constant(graph, f"shape_0_0_{heads * size}", np.array([0, 0, heads * size], np.int64))
            like = ir.Value(name=f"{split.name}/flat", type=split.type, shape=ir.Shape([batch, length, heads * size]))
            query = new_node(graph, match.attention, "Reshape", [split, shape], {}, [like], domain="").outputs[0]
        attributes: dict[str, object] = {"num_heads": heads, "mask_filter_value": MASKED_SCORE}
        if "scale" in match.attention.attributes:
            attributes["scale"] = float(match.attention.attributes["scale"].value)
        inputs = [query, match.flat[1], match.flat[2]]
        if match.mask is not None:
            inputs += [None, _int32(graph, match.mask)]
        if match.bias is not None:
            inputs += [None] * (BIAS - len(inputs)) + [_scores(graph, match)]
        like = ir.Value(
            name=match.back.outputs[0].name, type=match.back.outputs[0].type, shape=ir.Shape([batch, length, heads * value_size])
        )
        node = new_node(graph, match.attention, self.kernel, inputs, attributes, [like])
        # The Reshapes behind it see the same numbers in the same order, so they stay right whatever shape they ask for.
        take_over(match.back.outputs[0], node.outputs[0])


def _mask(attention: ir.Node) -> tuple[ir.Value | None, ir.Value | None]:
    """The padding mask and the bias of scores that a mask is made of; whatever it is made of otherwise, it is a bias itself.

    Miss for another mask of a cached decoder: its layers keep one cache in one way.
    """
    mask = optional(attention, 3)
    if mask is None:
        return None, None
    try:
        if is_op(where := mask.producer(), "Where"):
            lowest = array_of(source(where, 2))
            if lowest is None or lowest.size != 1 or lowest.item() > LOW:
                raise Miss("the mask is no choice between a bias and a low constant")
            return _padding(source(where)), source(where, 1)
        return _padding(mask), None
    except Miss:
        graph = attention.graph
        if isinstance(graph, ir.Graph) and any(value.name == SELF_MASK for value in graph.inputs):
            raise
        return None, mask


def _check_bias(bias: ir.Value, key: tuple[int | str, ...]) -> None:
    """Miss unless the kernel can add it to scores of keys of the shape `key`."""
    shape = known_dims(bias, 4, "the bias of scores")
    if bias.dtype not in (ir.DataType.BOOL, ir.DataType.FLOAT):
        raise Miss(f"the mask is {bias.dtype}, expected bool or float32")
    if shape[3] == 1 and key[2] != 1:
        raise Miss(f"the bias of scores is one for all keys: {shape}")


def _heads_behind(graph: ir.Graph, match: Match) -> ir.Value:
    """The query as [batch, length, heads, head_size]."""
    made = match.query.producer()
    if made is not None and is_op(made, "Transpose") and tuple(attribute(made, "perm", ())) == (0, 2, 1, 3):
        return source(made)
    batch, heads, length, size = known_dims(match.query, 4, "query")
    name = f"{match.query.name}/{match.attention.outputs[0].name}/behind"
    like = ir.Value(name=name, type=match.query.type, shape=ir.Shape([batch, length, heads, size]))
    return new_node(graph, match.attention, "Transpose", [match.query], {"perm": [0, 2, 1, 3]}, [like], domain="").outputs[0]


def _scores(graph: ir.Graph, match: Match) -> ir.Value:
    """The bias in float32, as long as the queries: the kernel broadcasts over rows and heads only. Made once for queries of one length."""
    bias = match.bias
    assert bias is not None
    before, shape, length = match.attention, known_dims(bias, 4, "bias"), known_dims(match.query, 4, "query")[2]
    if bias.dtype == ir.DataType.BOOL:
        name = f"{bias.name}/scores"
        made = next((use.node.outputs[0] for use in bias.uses() if use.node.outputs[0].name == name), None)
        if made is None:
            seen, hidden = constant(graph, "zero_score", np.float32(0)), constant(graph, "masked_score", np.float32(MASKED_SCORE))
            like = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=bias.shape)
            made = new_node(graph, before, "Where", [bias, seen, hidden], {}, [like], domain="").outputs[0]
        bias = made
    if shape[2] != 1 or length == 1:
        return bias
    label = length if isinstance(length, int) or length != "?" else before.outputs[0].name
    name = f"{bias.name}/{label}"
    wide = next((use.node.outputs[0] for use in bias.uses() if use.node.outputs[0].name == name), None)
    if wide is None:
        int64 = ir.TensorType(ir.DataType.INT64)
        count = ir.Value(name=f"{name}/length", type=int64, shape=ir.Shape([1]))
        asked = new_node(graph, before, "Shape", [match.query], {"start": 2, "end": 3}, [count], domain="").outputs[0]
        target = ir.Value(name=f"{name}/shape", type=int64, shape=ir.Shape([2]))
        parts = [asked, constant(graph, "dim_1", np.array([1], np.int64))]
        wanted = new_node(graph, before, "Concat", parts, {"axis": 0}, [target], domain="").outputs[0]
        like = ir.Value(name=name, type=bias.type, shape=ir.Shape([shape[0], shape[1], length, shape[3]]))
        wide = new_node(graph, before, "Expand", [bias, wanted], {}, [like], domain="").outputs[0]
    return wide


def _check_heads(attention: ir.Node) -> tuple[int | str, ...]:
    """Heads of queries, keys and values fit each other; the dimensions of the keys."""
    query, key, value = (known_dims(source(attention, i), 4, "heads") for i in range(3))
    if not isinstance(query[1], int) or not isinstance(query[3], int):
        raise Miss(f"heads and head size are not known: {query}")
    if query[1] != key[1] or key[1] != value[1] or query[3] != key[3] or key[:3] != value[:3]:
        raise Miss(f"query {query}, key {key} and value {value} differ in heads or size")
    if not same_shape(query[:1], key[:1]):
        raise Miss(f"query {query} and key {key} differ in batch")
    return key


def _int32(graph: ir.Graph, mask: ir.Value) -> ir.Value:
    """The mask as the kernel wants it; the Cast of an int64 mask is made once for all layers."""
    if mask.dtype == ir.DataType.INT32:
        return mask
    for use in mask.uses():
        if is_op(use.node, "Cast") and attribute(use.node, "to", None) == ir.DataType.INT32:
            return use.node.outputs[0]
    like = ir.Value(name=f"{mask.name}/int32", type=ir.TensorType(ir.DataType.INT32), shape=mask.shape)
    return new_node(graph, graph[0], "Cast", [mask], {"to": ir.DataType.INT32}, [like], domain="").outputs[0]
