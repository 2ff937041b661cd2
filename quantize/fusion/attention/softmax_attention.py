"""Attention written out in a foreign graph: product, scale, mask, Softmax and product become MultiHeadAttention.

It reads keys and values as [batch, source, heads, head_size] before their Transpose, or as [batch, heads, source, head_size] where a
cache was put in front of them. A mask is taken as the bias of scores that it is, whatever it was made of. Where the graph makes zeros of
rows that see nothing (0/0 in their Softmax), the kernel's NaN become zeros behind it.
"""

from __future__ import annotations

import math
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
    new_node,
    only_use,
    produced_by,
    source,
    take_over,
)
from onnxport.quantize.fusion.attention.multi_head_attention import LOW, MASKED_SCORE
from onnxport.quantize.fusion.factors import number_of, scaled
from onnxport.quantize.fusion.rule import Rule

HEADS_BEHIND = (0, 2, 1, 3)  # the Transpose between [batch, length, heads, size] and [batch, heads, length, size]
KEY_TURNED = (0, 2, 3, 1)  # the same and that of the product in one


@dataclass
class Choice:
    """Scores or a low number, as a condition says. first: the low number stands where the condition is true."""

    condition: ir.Value
    low: ir.Value
    first: bool


@dataclass
class Match:
    """An attention that is written out. Heads: a value, and whether its heads are behind its length, as projections leave them."""

    softmax: ir.Node
    query: tuple[ir.Value, bool]  # with True [batch, length, heads, size], else [batch, heads, length, size]
    key: tuple[ir.Value, bool]
    value: tuple[ir.Value, bool]
    scale: float
    biases: list[ir.Value]  # added to scores
    choice: Choice | None
    guard: bool  # rows that see nothing are zeros
    answer: ir.Node  # product of probabilities and values
    front: ir.Value  # the query as [batch, heads, length, size]
    back: ir.Node  # Transpose of the answer


def _heads(value: ir.Value, what: str) -> tuple[ir.Value, bool]:
    """The value before its heads were put in front, or itself."""
    node = value.producer()
    if is_op(node, "Transpose") and tuple(attribute(node, "perm", ())) == HEADS_BEHIND:
        return source(node), True
    if len(dims(value) or ()) != 4:
        raise Miss(f"{what} has shape {dims(value)}, expected 4 dimensions")
    return value, False


def _sizes(value: tuple[ir.Value, bool]) -> tuple[int | str, int | str]:
    """Heads and head size, as far as they are known; a Reshape that leaves the number of heads open has it in what it splits."""
    shape = dims(value[0])
    if shape is None or len(shape) != 4:
        raise Miss(f"heads have shape {shape}, expected 4 dimensions")
    heads, size = (shape[2] if value[1] else shape[1]), shape[3]
    if value[1] and not isinstance(heads, int) and isinstance(size, int) and is_op(node := value[0].producer(), "Reshape"):
        whole = dims(source(node)) or ()
        if len(whole) == 3 and isinstance(whole[-1], int) and whole[-1] % size == 0:
            heads = whole[-1] // size
    return heads, size


class SoftmaxAttention(Rule):
    """Products around a Softmax become MultiHeadAttention."""

    name = "softmax_attention"
    anchor = "Softmax"
    kernel = "MultiHeadAttention"

    def pattern(self, node: ir.Node) -> Match:
        """As `Rule`."""
        scores, choice = _chosen(source(node))
        product, scale, biases = _terms(scores)
        query, query_scale = scaled(source(product, 0))
        turned, turned_scale = scaled(source(product, 1))
        key, behind, key_scale = _turned_key(turned)
        key, more = scaled(key)
        front = query
        query, query_behind = _heads(query, "the query")
        query, last = scaled(query)
        probabilities = _unguarded(node.outputs[0])
        uses = probabilities.uses()
        if len(uses) != 1 or not is_op(uses[0].node, "MatMul") or uses[0].idx != 0:
            raise Miss("the probabilities are not multiplied with values")
        answer = uses[0].node
        infinite = any(not _finite(bias) for bias in biases) or (choice is not None and number_of(choice.low) == -math.inf)
        scale *= query_scale * turned_scale * key_scale * more * last
        return Match(
            node,
            (query, query_behind),
            (key, behind),
            _heads(source(answer, 1), "the value") if behind else (source(answer, 1), False),  # in the layout of the key
            scale,
            biases,
            choice,
            probabilities is not node.outputs[0] and infinite,
            answer,
            front,
            _back(answer.outputs[0], front),
        )

    def check(self, graph: ir.Graph, match: Match) -> None:
        """As `Rule`."""
        if attribute(match.softmax, "axis", -1) not in (-1, 3):
            raise Miss("the Softmax is not over the last axis")
        sizes = [_sizes(found) for found in (match.query, match.key, match.value)]
        heads = {size[0] for size in sizes}
        if len(heads) != 1 or not all(isinstance(part, int) for size in sizes for part in size) or sizes[0][1] != sizes[1][1]:
            raise Miss(f"heads and sizes of query, key and value are {sizes}, expected equal numbers")
        if match.key[1] != match.value[1]:
            raise Miss("key and value come in two layouts")
        for value in (*match.biases, *([match.choice.condition] if match.choice else [])):
            if len(dims(value) or (0,) * 5) > 4:
                raise Miss(f"the mask has shape {dims(value)}, expected 4 dimensions at most")
        if not only_use(source(match.softmax)) or (match.softmax.outputs[0].is_graph_output()):
            raise Miss("scores or probabilities are used elsewhere too")
        shapes = sum(is_op(use.node, "Shape") for use in match.answer.outputs[0].uses())
        for use in match.back.outputs[0].uses():
            shapes += is_op(use.node, "Shape")
            if not is_op(use.node, "Shape") and not (is_op(use.node, "Reshape") and use.idx == 0):
                raise Miss("the answer's heads are not merged by a Reshape")
        if shapes and sizes[0][1] != sizes[2][1]:
            raise Miss("the answer's shape is asked for, and values are wider or narrower than queries")

    def rewrite(self, graph: ir.Graph, match: Match) -> None:
        """As `Rule`."""
        heads, size = _sizes(match.query)
        value_size = _sizes(match.value)[1]
        assert isinstance(heads, int) and isinstance(size, int) and isinstance(value_size, int)
        behind = _behind(graph, match.softmax, match.query)
        query = _flat(graph, match.softmax, behind, heads * size)
        key, value = (
            _flat(graph, match.softmax, found, heads * width) if split else found
            for (found, split), width in ((match.key, size), (match.value, value_size))
        )
        inputs: list[ir.Value | None] = [query, key, value]
        if (bias := self._bias(graph, match)) is not None:
            inputs += [None, None, bias]
        out = match.back.outputs[0]
        like = ir.Value(name=out.name, type=out.type, shape=None)
        attributes = {"num_heads": heads, "scale": float(match.scale)}
        for use in list(out.uses()):
            if is_op(use.node, "Shape"):
                use.node.replace_input_with(0, behind)  # [batch, length, heads, size] too
        for use in list(match.answer.outputs[0].uses()):
            if is_op(use.node, "Shape"):
                use.node.replace_input_with(0, match.front)
        node = new_node(graph, match.back, self.kernel, inputs, attributes, [like])
        if match.guard:
            node = _guarded(graph, match.back, node)
        # The Reshapes behind it see the same numbers in the same order, so they stay right where they name the last dimension's size.
        take_over(out, node.outputs[0])

    def _bias(self, graph: ir.Graph, match: Match) -> ir.Value | None:
        """What is added to scores, as long as the queries and the keys: the kernel broadcasts over rows and heads only."""
        before, name = match.softmax, match.softmax.outputs[0].name
        kind = ir.TensorType(ir.DataType.FLOAT)
        bias: ir.Value | None = None
        for i, term in enumerate(match.biases):
            like = ir.Value(name=f"{name}/sum{i}", type=kind)
            bias = term if bias is None else new_node(graph, before, "Add", [bias, term], {}, [like], "").outputs[0]
        if match.choice is not None:
            nothing = bias if bias is not None else constant(graph, "zero_score", np.float32(0))
            like = ir.Value(name=f"{name}/bias", type=kind)
            # the graph puts its low number in the score's place, the kernel adds it: only the lowest hides every score
            infinite = number_of(match.choice.low) == -math.inf
            low = match.choice.low if infinite else constant(graph, "masked_score", np.float32(MASKED_SCORE))
            either = (low, nothing) if match.choice.first else (nothing, low)
            bias = new_node(graph, before, "Where", [match.choice.condition, *either], {}, [like], "").outputs[0]
        if bias is None:
            return None
        int64 = ir.TensorType(ir.DataType.INT64)

        def size(of: ir.Value, axis: int, what: str) -> ir.Value:
            like = ir.Value(name=f"{name}/{what}", type=int64, shape=ir.Shape([1]))
            return new_node(graph, before, "Shape", [of], {"start": axis, "end": axis + 1}, [like], domain="").outputs[0]

        ones = constant(graph, "dims_1_1", np.array([1, 1], np.int64))
        key, behind = match.key
        query, query_behind = match.query
        sizes = [ones, size(query, 1 if query_behind else 2, "length"), size(key, 1 if behind else 2, "source")]
        target = ir.Value(name=f"{name}/bias_shape", type=int64, shape=ir.Shape([4]))
        wanted = new_node(graph, before, "Concat", sizes, {"axis": 0}, [target], domain="").outputs[0]
        like = ir.Value(name=f"{name}/wide_bias", type=bias.type)
        return new_node(graph, before, "Expand", [bias, wanted], {}, [like], domain="").outputs[0]


def _turned_key(turned: ir.Value) -> tuple[ir.Value, bool, float]:
    """The key before it was turned for the product, whether its heads are behind its length, and the factor on the way."""
    if is_op(last := turned.producer(), "Reshape"):  # heads and rows are one axis while two others are exchanged
        turn = produced_by(source(last), "Transpose", "the key")
        first = produced_by(source(turn), "Reshape", "the key")
        whole, factor = scaled(source(first))
        if tuple(attribute(turn, "perm", ())) != (0, 2, 1) or not _exchanges(whole, first, last):
            raise Miss("the key is laid out anew before its product, and not only transposed")
        return (*_heads(whole, "the key"), factor)
    turn = produced_by(turned, "Transpose", "the key")
    if tuple(attribute(turn, "perm", ())) == KEY_TURNED:
        key, factor = scaled(source(turn))
        return key, True, factor
    if tuple(attribute(turn, "perm", ())) == (0, 1, 3, 2):
        inner, factor = scaled(source(turn))
        return (*_heads(inner, "the key"), factor)
    raise Miss(f"the key is transposed by {attribute(turn, 'perm', ())}")


def _back(answer: ir.Value, query: ir.Value) -> ir.Node:
    """The Transpose that puts the answer's heads behind; TorchScript's exporter lays the answer out as it is before."""
    readers = [use.node for use in answer.uses() if not is_op(use.node, "Shape")]
    if len(readers) == 1 and is_op(same := readers[0], "Reshape") and _is_whole(extents(source(same, 1)), answer, query):
        readers = [use.node for use in same.outputs[0].uses()]
    if len(readers) != 1 or not is_op(readers[0], "Transpose") or tuple(attribute(readers[0], "perm", ())) != HEADS_BEHIND:
        raise Miss("the answer's heads are not put behind by a Transpose")
    return readers[0]


def _is_whole(shape: list[int | tuple[ir.Value, int]] | None, answer: ir.Value, query: ir.Value) -> bool:
    """Whether a shape is that of the answer [batch, heads, length, size], with one entry left open at most."""
    known = dims(answer)
    if shape is None or known is None or len(shape) != 4 or len(known) != 4 or shape.count(-1) > 1:
        return False
    return all(entry == -1 or entry == known[i] or entry == (answer, i) or (i < 3 and entry == (query, i)) for i, entry in enumerate(shape))


def _exchanges(key: ir.Value, first: ir.Node, last: ir.Node) -> bool:
    """Whether [batch, heads, source, size] → `first` [.., source, size] → exchanged → `last` exchanges the last two axes only."""
    shape = dims(key)
    if shape is None or len(shape) != 4:
        return False
    batch, heads, length, size = (extent if isinstance(extent, int) else (key, i) for i, extent in enumerate(shape))
    folded, unfolded = extents(source(first, 1)), extents(source(last, 1))
    return (
        folded is not None
        and unfolded is not None
        and folded[1:] == [length, size]
        and len(folded) == 3
        and unfolded in ([batch, heads, size, length], [-1, heads, size, length], [batch, heads, size, -1])
    )


def extents(shape: ir.Value) -> list[int | tuple[ir.Value, int]] | None:
    """A shape's entries: numbers, or axes of values of which they are read; None where it is made otherwise."""
    array, node = array_of(shape), shape.producer()
    if array is not None:
        return [int(number) for number in array.ravel()]
    if is_op(node, "Concat"):
        parts = [extents(part) for part in node.inputs if part is not None]
        return None if any(part is None for part in parts) else [entry for part in parts for entry in part or []]
    if is_op(node, "Unsqueeze") or is_op(node, "Squeeze") or is_op(node, "Cast"):
        return extents(source(node))
    if is_op(node, "Shape"):
        read = dims(source(node)) or ()
        begin, end = attribute(node, "start", 0), attribute(node, "end", len(read))
        entries = [extent if isinstance(extent, int) else (source(node), i) for i, extent in enumerate(read)]
        return entries[begin:end]
    if is_op(node, "Slice") or is_op(node, "Gather"):
        return _taken(node)
    return None


def _taken(node: ir.Node) -> list[int | tuple[ir.Value, int]] | None:
    """What a Slice with a step of 1, or a Gather of one place, takes out of a shape."""
    whole, places = extents(source(node)), [array_of(value) for value in node.inputs[1:]]
    if whole is None or any(place is None or place.size != 1 for place in places):
        return None
    numbers = [int(place.item()) for place in places if place is not None]
    if node.op_type == "Gather":
        return [whole[numbers[0]]] if -len(whole) <= numbers[0] < len(whole) else None
    if len(numbers) > 3 and numbers[3] != 1:
        return None
    return whole[numbers[0] : numbers[1]]


def _unguarded(probabilities: ir.Value) -> ir.Value:
    """The probabilities with zeros where they are not numbers, if the graph makes these; else themselves."""
    uses = probabilities.uses()
    asked = next((use.node for use in uses if is_op(use.node, "IsNaN")), None)
    chosen = next((use.node for use in uses if is_op(use.node, "Where") and use.idx == 2), None)
    if asked is None or chosen is None or len(uses) != 2:
        return probabilities
    fits = source(chosen) is asked.outputs[0] and only_use(asked.outputs[0]) and number_of(source(chosen, 1)) == 0
    return chosen.outputs[0] if fits else probabilities


def _finite(bias: ir.Value | None) -> bool:
    """Whether a bias is a choice between finite constants, so that no row of scores is infinite as a whole."""
    if bias is None:
        return True
    node = bias.producer()
    numbers = [number_of(value) for value in node.inputs[1:]] if node is not None and is_op(node, "Where") else [None]
    return all(number is not None and math.isfinite(number) for number in numbers)


def _guarded(graph: ir.Graph, before: ir.Node, node: ir.Node) -> ir.Node:
    """The kernel's answer with zeros where it is not a number; returns the node that makes it."""
    answer = node.outputs[0]
    name = str(answer.name)
    answer.name = f"{name}/seen"
    asked = ir.Value(name=f"{name}/unseen", type=ir.TensorType(ir.DataType.BOOL))
    unseen = new_node(graph, before, "IsNaN", [answer], {}, [asked], domain="").outputs[0]
    zero = constant(graph, "zero_score", np.float32(0))
    like = ir.Value(name=name, type=answer.type, shape=answer.shape)
    return new_node(graph, before, "Where", [unseen, zero, answer], {}, [like], domain="")


def _chosen(scores: ir.Value) -> tuple[ir.Value, Choice | None]:
    """The scores without a choice between them and a low constant, and that choice."""
    node = scores.producer()
    if node is None or not is_op(node, "Where"):
        return scores, None
    for place in (2, 1):
        low = number_of(source(node, place))
        if low is not None and low <= LOW:
            condition = source(node)
            if is_op(wide := condition.producer(), "Expand") and len(dims(source(wide)) or ()) == 4:
                condition = source(wide)  # the choice spreads it as well
            return source(node, 3 - place), Choice(condition, source(node, place), place == 1)
    raise Miss("scores are chosen by a Where without a low constant")


def _terms(scores: ir.Value) -> tuple[ir.Node, float, list[ir.Value]]:
    """The product of queries and keys that scores are made of, its factor, and what is added to it."""
    biases: list[ir.Value] = []
    while is_op(add := scores.producer(), "Add"):
        place = 0 if _has_product(source(add, 0)) else 1
        biases.append(source(add, 1 - place))
        scores = source(add, place)
    scores, scale = scaled(scores)
    return produced_by(scores, "MatMul", "the score"), scale, biases[::-1]


def _has_product(value: ir.Value) -> bool:
    """Whether a term of scores is the product, or a sum that has it."""
    value, node = scaled(value)[0], scaled(value)[0].producer()
    if is_op(node, "Add"):
        return _has_product(source(node, 0)) or _has_product(source(node, 1))
    return is_op(node, "MatMul") and len(dims(value) or ()) == 4


def _behind(graph: ir.Graph, before: ir.Node, heads: tuple[ir.Value, bool]) -> ir.Value:
    """[batch, length, heads, size]."""
    value, behind = heads
    if behind:
        return value
    like = ir.Value(name=f"{value.name}/{before.outputs[0].name}/behind", type=value.type)
    return new_node(graph, before, "Transpose", [value], {"perm": list(HEADS_BEHIND)}, [like], domain="").outputs[0]


def _flat(graph: ir.Graph, before: ir.Node, value: ir.Value, width: int) -> ir.Value:
    """[batch, length, heads, size] as [batch, length, heads * size]."""
    shape = constant(graph, f"shape_0_0_{width}", np.array([0, 0, width], np.int64))
    name = f"{value.name}/{before.outputs[0].name}/flat"
    like = ir.Value(name=name, type=value.type)
    return new_node(graph, before, "Reshape", [value, shape], {}, [like], domain="").outputs[0]
