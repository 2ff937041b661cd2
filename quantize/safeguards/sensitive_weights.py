"""The weights that a graph's answers are too sensitive about, by the loss that each one's scheme makes alone.

Losses of layers add up about as independent noise does: what a graph loses is near the sum of what its layers lose one by one, where a loss
is a divergence or the square of an error. So those that lose most for their size get a scheme that is nearer to them, until what is left is
small enough; of an encoder the graph as it would be is measured again. To try them all, one graph holds each product twice, with a switch
between the two. A mixture of experts is one product: both its weights share a kernel, and so a switch. (Mixed precision as in HAWQ, Dong et
al. 2019, with a measured loss in place of curvature.)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxport.graph.edit import constant, new_node
from onnxport.graph.lazy import derived
from onnxport.graph.logits_positions import every_position
from onnxport.graph.normalize import PARAMETER, fold_constants
from onnxport.graph.session import answers, opened, real
from onnxport.quantize.calibration_inputs import GoldenText
from onnxport.quantize.plan import FP32, Plan, Scheme
from onnxport.quantize.plan import scheme as plan_scheme
from onnxport.quantize.precisions import Bounds
from onnxport.quantize.schemes.apply import chosen, quantize
from onnxport.quantize.schemes.blocks.blockwise import Weights, block_size
from onnxport.quantize.schemes.channel_scales import ATTENTIONS
from onnxport.quantize.schemes.linear import Linear, Lookup, lookups
from onnxport.quantize.schemes.mixtures import Mixture, Product, products
from onnxport.runtime.arrays import relative_error
from onnxport.runtime.bundle.interface import LOGITS
from onnxport.runtime.bundle.kept import log_softmax

Feed = Mapping[str, np.ndarray]
Feeds = Sequence[Feed]
TWIN, SWITCHES = "@quantized", "switches"
ROLE = "graph"
FEWER = 5  # one of so many texts of a language model tells which weights are more sensitive than others
TAKEN_BACK = 6  # groups that are tried again once enough is protected
SPENT = 0.2  # of the weights of 4 bits that are made nearer in any case
# Bits of a weight in llama.cpp's Q4_K_M (`llama_tensor_get_type` and its fallbacks in llama-quant.cpp): whether 256 divides its inputs →
# those of most weights, and those of the projection to the vocabulary and of half of the products that narrow.
Q4_K_M = {True: (4.5, 6.5625), False: (5.5, 8.5)}
NEARLY = 0.982  # of its bytes: a bundle holds a graph besides
BETWEEN = {"Add", "Split", "Reshape", "RotaryEmbedding", "SimplifiedLayerNormalization", "RMSNormalization"}
LARGE = 2**30  # weights: more take hours to try
STRETCHES = 5  # of a model's layers: the first and the last are often more sensitive than those between
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


@dataclass(frozen=True)
class Measure:
    """How answers are judged.

    group: of a product's name, those that are tried together. better: of a product and its scheme, one that is nearer to it. loss: of
    the answers to the feeds at some places, which adds up over layers. large: what the twins lose is taken for what the graph as it would
    be loses, and weights are tried on one of FEWER feeds. spent: the share of weights of 4 bits that are made nearer in any case; most:
    the share that is not passed beyond that.
    """

    group: Callable[[str], str]
    better: Callable[[Product, Scheme], str]
    loss: Callable[[Iterator[Feed], Sequence[int]], float]
    large: bool = False
    spent: float = 0.0
    most: float = 0.0


def of_an_encoder(model: ir.Model, feeds: Feeds, plan: Plan, most: float, calibration: Feeds | None = None) -> dict[str, str]:
    """PyTorch names of weights → "fp32": what `plan` has to leave as it is for a relative error of the answers of at most `most`.

    Empty where the plan's own graph is within `most`, which two runs of the feeds tell. model: float32, fused; feeds: inputs by name;
    calibration: those that schemes of the plan are calibrated on. The error is the root mean square of the difference over that of the
    answers about their mean, of the worst output and feed; positions that an `attention_mask` leaves out do not count. Where nothing
    helps, every product is kept.
    """
    expected = answers(model, feeds)

    def squared(found: Iterator[Feed], places: Sequence[int]) -> float:
        return _error(list(found), expected, feeds) ** 2

    measure = Measure(lambda name: name, lambda *_: FP32.name, squared)
    return _to_protect(model, feeds, plan, most**2, measure, calibration=calibration)


def of_a_decoder(model: ir.Model, texts: Sequence[GoldenText], plan: Plan, bounds: Bounds, room: float, weights: Weights) -> dict[str, str]:
    """PyTorch names of weights → a scheme nearer to them, so that a language model loses at most the share `room` of its `bounds`.

    What is lost: see `_lost`. Weights of one kind in a fifth of the layers are tried together; see `nearer`. Of weights of 4 bits those
    that lose most are made nearer in any case, up to the share SPENT, and beyond it as far as llama.cpp's Q4_K_M has bytes left.
    model: float32, fused; texts: what the variant is judged by; weights: what the plan solves by inputs of products.
    """
    whole = logits_alone(model)
    every = list(products(whole.graph))
    spent = SPENT if any(chosen(plan, product).bits == 4 for product in every) else 0.0
    constants = sum(value.const_value.nbytes for value in whole.graph.initializers.values() if value.const_value is not None)
    most = _left_by_q4_k_m(every, list(lookups(whole.graph)), plan, constants) if spent else 0.0
    group = kinds([product.name for product in every]).__getitem__
    feeds = [text.feed for text in texts]
    measure = Measure(group, nearer_of, _lost(texts, bounds), large=True, spent=spent, most=most)
    return _to_protect(whole, feeds, plan, room, measure, weights)


def _left_by_q4_k_m(every: Sequence[Product], tables: Sequence[Lookup], plan: Plan, whole: int) -> float:
    """The share of weights of 4 bits that can be made nearer until a graph has the bytes of llama.cpp's Q4_K_M; 0 with experts.

    whole: bytes of all constants of the graph in float32; what is no weight, such as tables of rotary positions, keeps them.
    """
    if any(isinstance(part, Mixture) for part in every):
        return 0.0
    vocabulary = max((table.shape[0] for table in tables), default=0)
    parts: dict[str, Linear | Lookup] = {part.name: part for part in tables}
    parts |= {part.name: part for part in every if isinstance(part, Linear)}  # a tied table is a product
    room, more = -8.0 * (whole - 4 * sum(part.values for part in parts.values())), 0.0
    for part in parts.values():
        width, outputs = part.shape[::-1] if isinstance(part, Lookup) else part.shape
        usual, better = Q4_K_M[width % 256 == 0]
        theirs = usual
        if isinstance(part, Linear):
            narrowing = width > outputs and not _at_attention(part)
            theirs = better if outputs == vocabulary else (usual + better) / 2 if narrowing else usual
        found = chosen(plan, part)
        bits = _bits(found, width)
        room += part.values * (NEARLY * theirs - bits)
        if found.bits == 4 and isinstance(part, Linear):
            more += part.values * (_bits(plan_scheme(nearer(found)), width) - bits)
    return max(room, 0.0) / more if more else 0.0


def _bits(scheme: Scheme, width: int) -> float:
    """Bits of a weight with its share of its block's scale and zero point."""
    if scheme.kind != "blocks":
        return scheme.bits
    return scheme.bits + (16 + (0 if scheme.symmetric else scheme.bits)) / block_size(width, scheme.block)


def loss_of(model: ir.Model, texts: Sequence[GoldenText], plan: Plan, bounds: Bounds) -> float:
    """The share of its bounds that a language model loses by a plan, on one of FEWER texts; see `_lost`. The plan reads no data."""
    places = range(0, len(texts), FEWER)
    with opened({ROLE: quantize({ROLE: logits_alone(model)}, plan)[0][ROLE]}) as runners:
        return _lost(texts, bounds)(runners[ROLE].run(texts[place].feed for place in places), places)


def _lost(texts: Sequence[GoldenText], bounds: Bounds) -> Callable[[Iterator[Feed], Sequence[int]], float]:
    """What answers to texts at some places lose of a language model's bounds, where 1 is all.

    That is the mean divergence of next tokens from the original's over its bound, or the square of the share of other first choices over
    that of its bound: both grow alike. inf where an answer is not finite.
    """

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

    return lost


def by_rule(model: ir.Model, plan: Plan) -> dict[str, str]:
    """PyTorch names of weights → a scheme nearer to them, of a language model that is too large to try each weight.

    Of 4 bits: products with more inputs than outputs, of a feed-forward network's inner units, in the first and the last eighth of the
    layers and in every third layer between; llama.cpp's mixed types of 4 bits give more bits to these, too (`use_more_bits` in its
    llama-quant.cpp). Where activations are rounded by rows: the products around attentions, and those with more inputs than outputs in the
    first fifth of the layers, which is what measurements chose for SmolLM2 (docs/precisions.md). Mixtures of experts are most of a model,
    and have one scheme for all their weights: of 4 bits those in the first and the last eighth, of 8 bits in the first fifth, but none in
    float32.
    """
    every = list(products(model.graph))
    layers = {product.name: int(numbers[0]) for product in every if (numbers := _NUMBER.findall(product.name))}
    count = max(layers.values(), default=0) + 1
    protected = dict[str, str]()
    for product in every:
        found, layer = chosen(plan, product), layers.get(product.name)
        if layer is None or found.kind == FP32.kind:
            continue
        better = nearer_of(product, found)
        if isinstance(product, Mixture):
            meant = better != FP32.name and (_at_an_end(layer, count) if found.bits == 4 else layer < count / STRETCHES)
        else:
            narrowing = product.shape[0] > product.shape[1]
            by_rows = _at_attention(product) or (narrowing and layer < count / STRETCHES)
            meant = by_rows if found.kind == "rows" else narrowing and _gets_more(layer, count)
        if meant:
            protected |= dict.fromkeys(product.parameters, better)
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
    return _at_an_end(layer, count) or (layer - count // 8) % 3 == 2


def _at_an_end(layer: int, count: int) -> bool:
    return layer < count // 8 or layer >= 7 * count // 8


def nearer(scheme: Scheme) -> str:
    """The next scheme that is nearer to a weight of a language model."""
    if scheme.kind == "rows":
        return "int8-blocks32"
    if scheme.kind == "blocks" and scheme.bits == 4:
        return "int8-blocks"
    return FP32.name


def nearer_of(product: Product, found: Scheme) -> str:
    """`nearer` to a product than the scheme that it has; a mixture of 8 bits in larger blocks, which it has for rows, gets blocks of 32."""
    larger = isinstance(product, Mixture) and found.bits == 8 and found.block is not None and found.block > 32
    return "int8-blocks32" if larger else nearer(found)


def _to_protect(
    model: ir.Model,
    feeds: Feeds,
    plan: Plan,
    most: float,
    measure: Measure,
    weights: Weights | None = None,
    calibration: Feeds | None = None,
) -> dict[str, str]:
    every = range(len(feeds))
    given = None if calibration is None else {ROLE: calibration}

    def whole(kept: Mapping[str, str]) -> float:
        with opened({ROLE: quantize({ROLE: model}, Plan({**plan.schemes, **kept}), given)[0][ROLE]}) as runners:
            return measure.loss(runners[ROLE].run(feeds), every)

    if not measure.large and whole({}) <= most:
        return {}
    both, groups = twins(model, plan, measure, weights, calibration)
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
            _spend(on, order, np.array([group.size if group.bits == 4 else 0 for group in groups.values()]), measure)
            kept = _joined(groups[name] for at, name in enumerate(names) if not on[at])
            if measure.large or whole(kept) <= most:
                return kept
            count += 1
    return _joined(groups.values())


def _spend(on: np.ndarray, order: np.ndarray, sizes: np.ndarray, measure: Measure) -> None:
    """Switches off further groups, in their order, until those that are off have the share `spent` of all sizes, then those that fit into
    the share `most`. Groups of size 0 stay as they are."""
    for i in order:
        if sizes[~on].sum() + sizes[i] <= measure.most * sizes.sum() or sizes[~on].sum() < measure.spent * sizes.sum():
            on[i] &= not sizes[i]


def _least(first: int, last: int, enough: Callable[[int], bool]) -> int:
    """The least number from `first` to `last` that is enough, by halves; `last` where none is."""
    while first < last:
        middle = (first + last) // 2
        first, last = (first, middle) if enough(middle) else (middle + 1, last)
    return last


@dataclass
class Twins:
    """Weights that one switch is for.

    bits: of their scheme. nearer: their names → the scheme that is nearer to them. size: how many numbers they are.
    """

    bits: int
    nearer: dict[str, str] = field(default_factory=dict)
    size: int = 0


def _joined(groups: Iterable[Twins]) -> dict[str, str]:
    """The nearer schemes of the weights of all groups."""
    return {parameter: better for group in groups for parameter, better in group.nearer.items()}


def twins(
    model: ir.Model, plan: Plan, measure: Measure, weights: Weights | None, calibration: Feeds | None = None
) -> tuple[ir.Model, dict[str, Twins]]:
    """A graph with an input `switches` bool [groups]: true where products are the plan's, else by the nearer scheme; and the groups."""
    both = model.clone()
    graph = both.graph
    fold_constants(graph)
    uses: dict[tuple[str, ...], list[Product]] = {}
    for product in products(graph):
        if chosen(plan, product).kind != FP32.kind:
            uses.setdefault(product.parameters, []).append(product)
    groups: dict[str, Twins] = {}
    schemes, places = dict(plan.schemes), dict[tuple[str, ...], str]()
    for parameters, (first, *_) in uses.items():
        found, places[parameters] = chosen(plan, first), measure.group(first.name)
        group = groups.setdefault(places[parameters], Twins(found.bits))
        group.nearer |= dict.fromkeys(parameters, measure.better(first, found))
        group.size += first.values
        schemes |= {parameter + TWIN: found.name for parameter in parameters}
    schemes |= _joined(groups.values())
    switches = ir.Value(name=SWITCHES, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([len(groups)]))
    graph.inputs.append(switches)
    for parameters, some in uses.items():
        for use, product in enumerate(some):
            _twin(graph, product, switches, list(groups).index(places[parameters]), f"/{use}" if use else "")
    off = np.zeros(len(groups), bool)
    given = None if calibration is None else {ROLE: [{**feed, SWITCHES: off} for feed in calibration]}
    return quantize({ROLE: both}, Plan(schemes), given, weights)[0][ROLE], groups


def _twin(graph: ir.Graph, product: Product, switches: ir.Value, place: int, use: str) -> None:
    """Adds a product like this one with weights of its own, and lets its switch choose between the two. use: tells it from others."""
    node, inputs = product.node, list(product.node.inputs)
    label = product.parameters[0] + TWIN + use
    for name, at in zip(product.parameters, product.places, strict=True):
        weight = inputs[at]
        assert weight is not None and weight.const_value is not None
        inputs[at] = copy = constant(graph, name + TWIN + use, derived(weight.const_value, lambda array: array))
        copy.meta[PARAMETER] = name + TWIN
    out = node.outputs[0]
    uses = list(out.uses())
    other = ir.Value(name=f"{label}/product", type=out.type, shape=out.shape)
    twin = new_node(graph, node, node.op_type, inputs, dict(node.attributes), [other], domain=node.domain).outputs[0]
    switch = constant(graph, f"switch/{place}", np.array(place, np.int64))
    choice = ir.Value(name=f"{label}/on", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
    on = new_node(graph, node, "Gather", [switches, switch], {"axis": 0}, [choice], domain="").outputs[0]
    either = ir.Value(name=f"{label}/chosen", type=out.type, shape=out.shape)
    where = ir.Node("", "Where", [on, twin, out], outputs=[either])
    graph.insert_after(node, where)
    for reader, index in uses:
        reader.replace_input_with(index, either)
    if out.is_graph_output():
        place_of = list(graph.outputs).index(out)
        either.name, out.name = out.name, f"{label}/other"
        graph.outputs[place_of] = either


def _error(found: Sequence[Feed], expected: Sequence[Feed], feeds: Feeds) -> float:
    worst = 0.0
    for ours, theirs, feed in zip(found, expected, feeds, strict=True):
        for name, answer in theirs.items():
            golden, values = (real(array, feed).astype(np.float64) for array in (answer, ours[name]))
            worst = max(worst, relative_error(golden, values))
    return worst


def kinds(names: Sequence[str]) -> dict[str, str]:
    """Product → its kind, with the stretch of the layers that it is in."""
    layers = {name: int(found[0]) for name in names if (found := _NUMBER.findall(name))}
    count = max(layers.values(), default=0) + 1
    return {name: f"{_NUMBER.sub('*', name)} {layers[name] * STRETCHES // count}" if name in layers else name for name in names}


def logits_alone(model: ir.Model) -> ir.Model:
    """A copy that gives the logits of every position and nothing else."""
    copy = every_position(model)
    for value in [v for v in copy.graph.outputs if v.name != LOGITS]:
        copy.graph.outputs.remove(value)
    return copy
