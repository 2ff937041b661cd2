"""The weights that a graph's answers are too sensitive about, by the loss that each one's scheme makes alone.

Losses of layers add up about as independent noise does: what a graph loses is near the sum of what its layers lose one by one, where a loss
is a divergence or the square of an error. So those that lose most for their size get a scheme that is nearer to them, until what is left is
small enough; of an encoder the graph as it would be is measured again. To try them all, one graph holds each product twice, with a switch
between the two. (Mixed precision as in HAWQ, Dong et al. 2019, with a measured loss in place of curvature.)
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxport.graph.edit import constant, new_node
from onnxport.graph.lazy import derived
from onnxport.graph.logits_positions import every_position
from onnxport.graph.normalize import PARAMETER, fold_constants
from onnxport.graph.session import answers, opened, real
from onnxport.quantize.calibration_inputs import GoldenText
from onnxport.quantize.plan import FP32, Plan, Scheme
from onnxport.quantize.precisions import Bounds
from onnxport.quantize.schemes.apply import quantize
from onnxport.quantize.schemes.blockwise import Weights
from onnxport.quantize.schemes.channel_scales import ATTENTIONS
from onnxport.quantize.schemes.linear import Linear, linears
from onnxport.runtime.arrays import relative_error
from onnxport.runtime.bundle.interface import LOGITS
from onnxport.runtime.bundle.kept import log_softmax

Feed = Mapping[str, np.ndarray]
Feeds = Sequence[Feed]
TWIN, SWITCHES = "@quantized", "switches"
ROLE = "graph"
FEWER = 5  # one of so many texts of a language model tells which weights are more sensitive than others
TAKEN_BACK = 6  # groups that are tried again once enough is protected
SPENT = 0.2  # of the weights of 4 bits: the bytes of llama.cpp's Q4_K_M, which has 6 bits for half of its most sensitive kinds
BETWEEN = {"Add", "Split", "Reshape", "RotaryEmbedding", "SimplifiedLayerNormalization", "RMSNormalization"}
LARGE = 2**30  # weights: more take hours to try
STRETCHES = 5  # of a model's layers: the first and the last are often more sensitive than those between
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True)
class Measure:
    """How answers are judged.

    group: of a weight, those that are tried together. better: of a scheme, what is nearer to a weight. loss: of the answers to the
    feeds at some places, which adds up over layers. large: what the twins lose is taken for what the graph as it would be loses, and
    weights are tried on one of FEWER feeds. spent: the share of weights of 4 bits that are made nearer in any case.
    """

    group: Callable[[str], str]
    better: Callable[[Scheme], str]
    loss: Callable[[Iterator[Feed], Sequence[int]], float]
    large: bool = False
    spent: float = 0.0


def of_an_encoder(model: ir.Model, feeds: Feeds, plan: Plan, most: float) -> dict[str, str]:
    """PyTorch names of weights → "fp32": what `plan` has to leave as it is for a relative error of the answers of at most `most`.

    Empty where the plan's own graph is within `most`, which two runs of the feeds tell. model: float32, fused; feeds: inputs by name. The
    error is the root mean square of the difference over that of the answers about their mean, of the worst output and feed; positions that
    an `attention_mask` leaves out do not count. Where nothing helps, every product is kept.
    """
    expected = answers(model, feeds)

    def squared(found: Iterator[Feed], places: Sequence[int]) -> float:
        return _error(list(found), expected, feeds) ** 2

    return _to_protect(model, feeds, plan, most**2, Measure(lambda name: name, lambda _: FP32.name, squared))


def of_a_decoder(model: ir.Model, texts: Sequence[GoldenText], plan: Plan, bounds: Bounds, room: float, weights: Weights) -> dict[str, str]:
    """PyTorch names of weights → a scheme nearer to them, so that a language model loses at most the share `room` of its `bounds`.

    What is lost is the mean divergence of next tokens from the original's over its bound, or the square of the share of other first choices
    over that of its bound: both grow alike. Weights of one kind in a fifth of the layers are tried together; see `nearer`. Of weights of 4
    bits those that lose most are made nearer in any case, up to the share SPENT. model: float32, fused; texts: what the variant is judged
    by; weights: what the plan solves by inputs of products.
    """
    whole = logits_alone(model)

    def lost(found: Iterator[Feed], places: Sequence[int]) -> float:
        divergence, others, count = 0.0, 0, 0
        for feed, place in zip(found, places, strict=True):
            kept = texts[place].kept
            logprobs = log_softmax(feed[LOGITS][-len(kept) :])
            divergence += float(kept.divergence(logprobs).sum())
            others += int((logprobs.argmax(-1) != kept.top_ids[:, 0]).sum())
            count += len(kept)
        share = max(divergence / count / bounds.kl, (others / count / (1 - bounds.top1_agreement)) ** 2)
        return share if np.isfinite(divergence) else float("inf")

    names = [linear.parameter for linear in linears(whole.graph)]
    spent = SPENT if any(plan.of(name).bits == 4 for name in names) else 0.0
    feeds = [text.feed for text in texts]
    return _to_protect(whole, feeds, plan, room, Measure(kinds(names).__getitem__, nearer, lost, large=True, spent=spent), weights)


def by_rule(model: ir.Model, plan: Plan) -> dict[str, str]:
    """PyTorch names of weights → a scheme nearer to them, of a language model that is too large to try each weight.

    Of 4 bits: products with more inputs than outputs, of a feed-forward network's inner units, in the first and the last eighth of the
    layers and in every third layer between; llama.cpp's mixed types of 4 bits give more bits to these, too (`use_more_bits` in its
    llama-quant.cpp). Where activations are rounded by rows: the products around attentions, and those with more inputs than outputs in the
    first fifth of the layers, which is what measurements chose for SmolLM2 (docs/precisions.md).
    """
    products = list(linears(model.graph))
    layers = {linear.parameter: int(found[0]) for linear in products if (found := _NUMBER.findall(linear.parameter))}
    count = max(layers.values(), default=0) + 1
    protected = dict[str, str]()
    for linear in products:
        scheme, layer = plan.of(linear.parameter), layers.get(linear.parameter)
        if layer is None or scheme.kind == FP32.kind:
            continue
        narrowing = linear.shape[0] > linear.shape[1]
        by_rows = _at_attention(linear) or (narrowing and layer < count / STRETCHES)
        if by_rows if scheme.kind == "rows" else narrowing and _gets_more(layer, count):
            protected[linear.parameter] = nearer(scheme)
    return protected


def _at_attention(linear: Linear) -> bool:
    """Whether a product reads what an attention gives, or gives what one reads."""
    maker = linear.x.producer()
    if maker is not None and maker.op_type in ATTENTIONS:
        return True
    readers = {use.node for use in linear.output.uses()}
    for _ in range(3):  # a bias, parts, and turns by positions may lie between
        readers |= {use.node for node in readers if node.op_type in BETWEEN for value in node.outputs for use in value.uses()}
    return any(node.op_type in ATTENTIONS for node in readers)


def _gets_more(layer: int, count: int) -> bool:
    eighth = count // 8
    return layer < eighth or layer >= 7 * count // 8 or (layer - eighth) % 3 == 2


def nearer(scheme: Scheme) -> str:
    """The next scheme that is nearer to a weight of a language model."""
    if scheme.kind == "rows":
        return "int8-blocks32"
    if scheme.kind == "blocks" and scheme.bits == 4:
        return "int8-blocks"
    return FP32.name


def _to_protect(model: ir.Model, feeds: Feeds, plan: Plan, most: float, measure: Measure, weights: Weights | None = None) -> dict[str, str]:
    every = range(len(feeds))

    def whole(kept: Mapping[str, str]) -> float:
        with opened({ROLE: quantize({ROLE: model}, Plan({**plan.schemes, **kept}))[0][ROLE]}) as runners:
            return measure.loss(runners[ROLE].run(feeds), every)

    if not measure.large and whole({}) <= most:
        return {}
    both, groups = twins(model, plan, measure, weights)
    names, sizes = list(groups), np.array([group.size for group in groups.values()])
    few = every[::FEWER] if measure.large else every
    with opened({ROLE: both}) as runners:

        def loss(on: np.ndarray, some: Sequence[int]) -> float:
            return measure.loss(runners[ROLE].run({**feeds[i], SWITCHES: on} for i in some), some)

        def switched(count: int) -> np.ndarray:
            on = np.ones(len(names), bool)
            on[order[:count]] = False
            return on

        enough = measure.large and loss(np.ones(len(names), bool), every) <= most
        if enough and not measure.spent:
            return {}
        none = loss(np.zeros(len(names), bool), few)  # what the nearer schemes lose
        alone = np.array([loss(one, few) - none for one in np.eye(len(names), dtype=bool)])
        order = np.argsort(-alone / sizes, kind="stable")
        count = 0 if enough else _least(1, len(names), lambda count: loss(switched(count), every) <= most)
        while count < len(names):
            on = switched(count)
            for i in order[: max(count - 1, 0)][::-1][:TAKEN_BACK]:  # the last step may have gone far
                on[i] = True
                on[i] = loss(on, every) <= most
            _spend(on, order, np.array([group.size if group.bits == 4 else 0 for group in groups.values()]), measure.spent)
            kept = {p: measure.better(plan.of(p)) for at, name in enumerate(names) if not on[at] for p in groups[name].parameters}
            if measure.large or whole(kept) <= most:
                return kept
            count += 1
    return {parameter: measure.better(plan.of(parameter)) for group in groups.values() for parameter in group.parameters}


def _spend(on: np.ndarray, order: np.ndarray, sizes: np.ndarray, share: float) -> None:
    """Switches off further groups, in their order, until those that are off have a share of all sizes. Sizes of 0 stay as they are."""
    for i in order:
        if sizes[~on].sum() >= share * sizes.sum():
            return
        on[i] &= not sizes[i]


def _least(first: int, last: int, enough: Callable[[int], bool]) -> int:
    """The least number from `first` to `last` that is enough, by halves; `last` where none is."""
    while first < last:
        middle = (first + last) // 2
        first, last = (first, middle) if enough(middle) else (middle + 1, last)
    return last


@dataclass
class Twins:
    """Weights that one switch is for. bits: of their scheme. size: how many numbers they are."""

    parameters: list[str]
    bits: int
    size: int = 0


def twins(model: ir.Model, plan: Plan, measure: Measure, weights: Weights | None) -> tuple[ir.Model, dict[str, Twins]]:
    """A graph with an input `switches` bool [groups]: true where products are the plan's, else by the nearer scheme; and the groups."""
    both = model.clone()
    graph = both.graph
    fold_constants(graph)
    products: dict[str, list[Linear]] = {}
    for linear in linears(graph):
        if plan.of(linear.parameter).kind != "fp32":
            products.setdefault(linear.parameter, []).append(linear)
    groups: dict[str, Twins] = {}
    for parameter, uses in products.items():
        group = groups.setdefault(measure.group(parameter), Twins([], plan.of(parameter).bits))
        group.parameters.append(parameter)
        group.size += math.prod(uses[0].shape)
    places = {parameter: i for i, group in enumerate(groups.values()) for parameter in group.parameters}
    switches = ir.Value(name=SWITCHES, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([len(groups)]))
    graph.inputs.append(switches)
    schemes = dict(plan.schemes)
    for parameter, uses in products.items():
        schemes[parameter] = measure.better(plan.of(parameter))
        schemes[parameter + TWIN] = plan.of(parameter).name
        for use, linear in enumerate(uses):
            _twin(graph, linear, switches, places[parameter], use)
    return quantize({ROLE: both}, Plan(schemes), weights=weights)[0][ROLE], groups


def _twin(graph: ir.Graph, linear: Linear, switches: ir.Value, place: int, use: int) -> None:
    """Adds a product like `linear` with a weight of its own, and lets its switch choose between the two."""
    node, weight = linear.node, linear.node.inputs[1]
    assert weight is not None and weight.const_value is not None
    name = linear.parameter + TWIN
    label = f"{name}/{use}" if use else name
    copy = constant(graph, label, derived(weight.const_value, lambda array: array))
    copy.meta[PARAMETER] = name
    out = node.outputs[0]
    uses = list(out.uses())
    product = ir.Value(name=f"{label}/product", type=out.type, shape=out.shape)
    inputs = [node.inputs[0], copy, *node.inputs[2:]]
    twin = new_node(graph, node, node.op_type, inputs, dict(node.attributes), [product], domain="").outputs[0]
    at = constant(graph, f"switch/{place}", np.array(place, np.int64))
    choice = ir.Value(name=f"{label}/on", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
    on = new_node(graph, node, "Gather", [switches, at], {"axis": 0}, [choice], domain="").outputs[0]
    chosen = ir.Value(name=f"{label}/chosen", type=out.type, shape=out.shape)
    where = ir.Node("", "Where", [on, twin, out], outputs=[chosen])
    graph.insert_after(node, where)
    for reader, index in uses:
        reader.replace_input_with(index, chosen)
    if out.is_graph_output():
        place_of = list(graph.outputs).index(out)
        chosen.name, out.name = out.name, f"{label}/other"
        graph.outputs[place_of] = chosen


def _error(found: Sequence[Feed], expected: Sequence[Feed], feeds: Feeds) -> float:
    worst = 0.0
    for ours, theirs, feed in zip(found, expected, feeds, strict=True):
        for name, answer in theirs.items():
            golden, values = (real(array, feed).astype(np.float64) for array in (answer, ours[name]))
            worst = max(worst, relative_error(golden, values))
    return worst


def kinds(parameters: Sequence[str]) -> dict[str, str]:
    """Weight → its kind, with the stretch of the layers that it is in."""
    layers = {name: int(found[0]) for name in parameters if (found := _NUMBER.findall(name))}
    count = max(layers.values(), default=0) + 1
    return {name: f"{_NUMBER.sub('*', name)} {layers[name] * STRETCHES // count}" if name in layers else name for name in parameters}


def logits_alone(model: ir.Model) -> ir.Model:
    """A copy that gives the logits of every position and nothing else."""
    copy = every_position(model)
    for value in [v for v in copy.graph.outputs if v.name != LOGITS]:
        copy.graph.outputs.remove(value)
    return copy
