"""The recipe of a variant makes its graphs from fused graphs in float32, by a precision's own plan or by a given one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxport.errors import UsageError
from onnxport.graph import search_graphs
from onnxport.graph.edit import dims
from onnxport.quantize.calibration_inputs import FEWEST, GoldenText, golden_feeds, golden_texts
from onnxport.quantize.encoder_scales import EncoderScales, reads_texts
from onnxport.quantize.plan import FP32, Plan, Scheme, scheme
from onnxport.quantize.precisions import PRECISIONS, Bounds, Precision
from onnxport.quantize.safeguards import half_overflow, sensitive_weights, static_outliers
from onnxport.quantize.schemes import half, int8_cache
from onnxport.quantize.schemes.apply import quantize, solve
from onnxport.quantize.schemes.blocks import half_scales, stored
from onnxport.quantize.schemes.blocks.blockwise import Weights
from onnxport.quantize.schemes.channel_scales import ChannelScales
from onnxport.quantize.schemes.finished import Finished
from onnxport.quantize.schemes.linear import linears, lookups
from onnxport.quantize.schemes.mixtures import parameters, products
from onnxport.quantize.targets import float32_attention, retarget
from onnxport.runtime.bundle.interface import LOGITS
from onnxport.runtime.sessions import CPU, CUDA

Graphs = dict[str, Any]  # role → onnx_ir.Model
Feeds = Mapping[str, list[dict[str, np.ndarray]]]
ROOM = 0.8  # share of a variant's bound that may be used before its most sensitive weights become more precise
VOCABULARY = "int8-blocks"  # of what reads and gives tokens, where all else has 4 bits
SMALL_TABLE = "int4-blocks32-asym"  # of a table of tokens that nothing multiplies by, where it costs at most TABLE_ROOM of the bounds
TABLE_ROOM = 0.1


@dataclass(frozen=True)
class Solved:
    """What many plans of one language model share: its channels' scales, and weights that are solved by inputs of products."""

    scales: ChannelScales
    weights: Weights


@dataclass(frozen=True)
class Recipe:
    """How a variant is made.

    precision: its name. plan: carried out as it stands, in place of the precision's own; None lets safeguards leave parts more precise.
    feeds: gives calibration inputs of each graph; None where there is no data. texts: the same of the kit's own texts, for an encoder of
    texts and for a language model that knows their language. kv: what the key/value cache becomes where the plan does not say it, see
    `plan.CACHES`. positions: of the model's longest text; None: there is no end. target: what the graphs run on, "cpu", "cuda" or "web".
    solved: of a language model and these feeds, what is known already. finished: keeps what is fitted to inputs, for an export that goes
    on where this one may stop.
    """

    precision: str
    plan: Plan | None = None
    feeds: Callable[[], Feeds] | None = None
    texts: Callable[[], Feeds] | None = None
    kv: str | None = None
    positions: int | None = None
    target: str = CPU.name
    solved: Solved | None = None
    finished: Finished | None = None

    @property
    def cache(self) -> str | None:
        """What the key/value cache becomes."""
        return self.kv if self.plan is None or self.plan.kv is None else self.plan.kv

    @property
    def experts(self) -> bool:
        """Whether mixtures of experts get the kernel of few bits: CUDA's wants weights in its own order, which no CPU can check."""
        return self.target != CUDA.name

    @property
    def own_plan(self) -> Plan:
        """The plan to begin with: the given one, else the precision's."""
        plan = self.plan if self.plan is not None else PRECISIONS[self.precision].plan
        assert plan is not None, f"{self.precision} has no plan of its own"
        return plan


@dataclass(frozen=True)
class VariantGraphs:
    """A variant's graphs by role, and what each weight became: a plan that makes the same graphs again. undone: fusion rules whose kernels
    the target lacks in this precision, so that none is left."""

    models: Graphs
    plan: Plan
    undone: frozenset[str] = frozenset()


def make_graphs(recipe: Recipe, fused: Graphs, goldens: Path) -> VariantGraphs:
    """Makes new graphs by a recipe. fused: float32, by role; goldens: golden.npz, for inputs where there is no calibration data.

    Channels of text encoders, where activations are rounded, and of language models that know the kit's texts are scaled first. A cache of
    8 bits comes last: its scales are those of the keys and values that the variant itself has.

    Raises:
        UsageError, NotApplicable, DeviceError: see `schemes.apply.quantize`, `_half` and `schemes.int8_cache.check`.
    """
    if recipe.cache is not None:
        int8_cache.check(fused)
    models, schemes = _for_cuda(recipe, fused, goldens) if recipe.target == CUDA.name else _graphs(recipe, fused, goldens)
    if recipe.cache is not None:
        models = models | {"decoder": _with_int8_cache(recipe, fused, models["decoder"], goldens)}
    models = {role: retarget.settled(model, recipe.target) for role, model in models.items()}
    if recipe.target != CUDA.name and any(scheme(name).kind == "blocks" for name in schemes.values()):  # CUDA's are in float16 already
        for model in models.values():
            half_scales.store(model.graph)
    if "decoder" in models:
        models = models | {"decoder": search_graphs.add_choice(models["decoder"], by_blocks=recipe.target != CUDA.name)}
    single = recipe.target == CUDA.name and set(schemes.values()) == {"fp32"}
    return VariantGraphs(models, Plan(schemes, recipe.cache), frozenset({float32_attention.RULE} if single else ()))


def _with_int8_cache(recipe: Recipe, fused: Graphs, decoder: Any, goldens: Path) -> Any:
    """A decoder with a cache of 8 bits, by texts where there are some, else by the golden inputs."""
    given = recipe.feeds or recipe.texts
    feeds = given() if given is not None else golden_feeds(goldens, fused)
    room = int8_cache.ROOM if given is not None else int8_cache.ROOM_WITHOUT_TEXTS
    return int8_cache.quantized(decoder, int8_cache.turning(fused["decoder"]), feeds["decoder"], room, recipe.positions)


def _graphs(recipe: Recipe, fused: Graphs, goldens: Path) -> tuple[Graphs, dict[str, str]]:
    plan = recipe.own_plan
    if plan.half is not None:
        return _half(recipe, plan, PRECISIONS[plan.half], fused, goldens)
    if set(plan.schemes.values()) == {"fp32"}:
        return fused, dict(plan.schemes)
    if PRECISIONS[recipe.precision].searched:
        return _searched(recipe, fused, plan, goldens)
    if recipe.plan is None and PRECISIONS[recipe.precision].by_rule:
        plan = Plan(_by_rule(plan, fused).schemes | stored.own_plan(plan, fused).schemes)
        return quantize(fused, _without_experts(recipe, plan, fused))
    if recipe.texts is not None and set(fused) == {"decoder"} and not stored.carries(recipe.own_plan, fused):
        return _language_model(recipe, fused, recipe.texts() if recipe.feeds is None else recipe.feeds(), goldens)
    return _integers(recipe, plan, fused, goldens)


def _integers(recipe: Recipe, plan: Plan, fused: Graphs, goldens: Path) -> tuple[Graphs, dict[str, str]]:
    """Graphs with weights of 8 or 4 bits of a model that is not judged by texts it continues."""
    role, needs = reads_texts(fused), plan.needs
    kit = recipe.texts if role is not None and (recipe.plan is not None or not needs) else None
    given = recipe.feeds or kit
    if needs and given is None:
        raise UsageError(f"{recipe.precision} is calibrated on data, and there is none: give --calibrate FILE")
    feeds = given() if given is not None else None
    if recipe.plan is None:
        plan = stored.own_plan(plan, fused)
    plan = _without_experts(recipe, plan, fused)
    if role is not None and plan.rounds_activations:
        scales = EncoderScales(fused, feeds, goldens)
        if recipe.plan is None and feeds is not None and _rows(feeds[role]) >= FEWEST and not needs:
            plan = scales.with_static_norms(plan)
        fused = scales.graphs(plan)
    if role is not None and recipe.plan is None and not needs:
        most = ROOM * PRECISIONS[recipe.precision].relative_error
        seen = None if feeds is None else feeds[role]
        sensitive = sensitive_weights.of_an_encoder(fused[role], golden_feeds(goldens, fused)[role], plan, most, seen)
        plan = Plan(plan.schemes | sensitive)
    if recipe.plan is None and feeds is not None and "range" in needs:
        plan = static_outliers.settle(fused, plan, feeds)
    return quantize(fused, plan, feeds, Weights(recipe.finished))


def _rows(feeds: Sequence[Mapping[str, np.ndarray]]) -> int:
    """How many texts, or other items, calibration inputs hold."""
    return sum(len(next(iter(feed.values()))) for feed in feeds)


def _searched(recipe: Recipe, fused: Graphs, plan: Plan, goldens: Path) -> tuple[Graphs, dict[str, str]]:
    """Graphs of a plan that a search found, for the CPU alone."""
    feeds = recipe.feeds() if recipe.feeds is not None else None
    if feeds is not None and set(fused) == {"decoder"}:
        return _language_model(recipe, fused, feeds, goldens)
    return quantize(EncoderScales(fused, feeds, goldens).graphs(plan), plan, feeds)


def _for_cuda(recipe: Recipe, fused: Graphs, goldens: Path) -> tuple[Graphs, dict[str, str]]:
    """Graphs for CUDA: weights of few bits are read beside activations of 16, and a layer that these do not hold stays in float32.

    UsageError: the plan has schemes that multiply integers.
    """
    plan = recipe.own_plan
    if plan.half is not None:
        return _graphs(recipe, fused, goldens)
    if set(plan.schemes.values()) == {"fp32"}:
        return {role: float32_attention.written_out(model) for role, model in fused.items()}, dict(plan.schemes)
    if plan.rounds_activations:
        raise UsageError(f"{CUDA.name} has no kernels for {', '.join(sorted(set(plan.schemes.values())))}; give a plan of blocks and fp32")
    feeds = recipe.feeds() if recipe.feeds is not None else golden_feeds(goldens, fused)
    safe = half_overflow.safe(fused, Plan({"*": "fp16"}), feeds)
    models, schemes = _graphs(recipe, fused, goldens)
    return {role: half.to_half(model, safe, half.exact_values(fused[role], safe)) for role, model in models.items()}, schemes


def _language_model(recipe: Recipe, fused: Graphs, feeds: Feeds, goldens: Path) -> tuple[Graphs, dict[str, str]]:
    """A decoder that reads scaled channels, and whose most sensitive weights get a scheme that is nearer to them.

    Scales and fits are found on `feeds`; what is sensitive shows on the golden texts, which the variant is judged by.
    """
    precision, decoder, data = PRECISIONS[recipe.precision], fused["decoder"], feeds["decoder"]
    if recipe.plan is not None and recipe.solved is not None:
        scaled = recipe.solved.scales.scaled(_before_protection(recipe.plan, decoder))
        return quantize({"decoder": scaled}, recipe.plan, {"decoder": data}, recipe.solved.weights)
    plan = recipe.plan or _with_vocabulary(precision.on_texts or recipe.own_plan, decoder)
    if recipe.plan is None:
        codes = stored.own_plan(recipe.own_plan, fused).schemes  # of the few weights that have some
        plan = Plan(plan.schemes | {name: code for name, code in codes.items() if name != "*"})
        if "range" in plan.needs:
            plan = static_outliers.settle(fused, plan, feeds)
    plan = _without_experts(recipe, plan, fused)
    large = sum(product.values for product in products(decoder.graph)) > sensitive_weights.LARGE
    if recipe.plan is None and large:
        plan = _by_rule(plan, fused)
    texts = golden_texts(goldens, decoder) if recipe.plan is None and not large else None  # where weights are tried one by one
    if texts is not None:
        plan = _with_small_tables(plan, decoder, texts, precision.bounds)
    finished = recipe.finished
    scales, weights = ChannelScales(decoder, data, finished), Weights(finished)
    scaled = scales.scaled(even := _before_protection(plan, decoder))
    if texts is not None:
        solve({"decoder": scaled}, plan, feeds, weights)
        sensitive = sensitive_weights.of_a_decoder(scaled, texts, plan, precision.bounds, ROOM, weights)
        if sensitive:
            plan = Plan(plan.schemes | sensitive)
            if (again := _before_protection(plan, decoder)).schemes != even.schemes:
                # as a plan that is given has it
                scaled, weights = scales.scaled(again), Weights(finished.inside("again") if finished else None)
    return quantize({"decoder": scaled}, plan, {"decoder": data}, weights)


def _without_experts(recipe: Recipe, plan: Plan, fused: Graphs) -> Plan:
    """The plan with mixtures of experts in float32, where the target's kernel of few bits is not used."""
    return plan if recipe.experts else Plan(plan.schemes | dict.fromkeys(parameters(fused.values()), FP32.name))


def _by_rule(plan: Plan, fused: Graphs) -> Plan:
    """The plan of a language model with what is sensitive in most of them nearer; of other models as it is."""
    if set(fused) != {"decoder"}:
        return plan
    plan = _with_vocabulary(plan, fused["decoder"])
    return Plan(plan.schemes | sensitive_weights.by_rule(fused["decoder"], plan))


def _before_protection(plan: Plan, decoder: Any) -> Plan:
    """The schemes that channels are scaled for: a weight that was made nearer counts as one of those around it.

    So the variant's plan leads to the very graph that told which weights are sensitive.
    """
    found = {linear.parameter: plan.of(linear.parameter) for linear in linears(decoder.graph)}
    common = [one for one, _ in Counter(found.values()).most_common()]

    def before(chosen: Scheme) -> Scheme:
        coarser = (other for other in common if other != chosen and scheme(sensitive_weights.nearer(other)).is_like(chosen))
        return next(coarser, chosen) if chosen.kind == "blocks" else chosen

    return Plan({name: before(chosen).name for name, chosen in found.items()})


def spares_vocabulary(plan: Plan) -> bool:
    """Whether the recipe of a language model keeps `VOCABULARY` for what reads and gives tokens."""
    return {scheme(name).bits for name in plan.schemes.values()} == {4}


def _with_vocabulary(plan: Plan, decoder: Any) -> Plan:
    """A plan of 4 bits with 8 for the tables of tokens and the projection to the vocabulary, which every token depends on."""
    if not spares_vocabulary(plan):
        return plan
    names = {lookup.parameter for lookup in lookups(decoder.graph)}
    names |= {linear.parameter for linear in linears(decoder.graph) if linear.shape[1] == _vocabulary(decoder)}
    return Plan(plan.schemes | dict.fromkeys(sorted(names), VOCABULARY))


def _with_small_tables(plan: Plan, decoder: Any, texts: Sequence[GoldenText], bounds: Bounds) -> Plan:
    """A plan of 4 bits with as many for a table of tokens, where nothing multiplies by it and the model hardly loses by that."""
    multiplied = {linear.parameter for linear in linears(decoder.graph)}
    tables = {table.parameter for table in lookups(decoder.graph) if table.shape[0] >= _vocabulary(decoder)} - multiplied
    small = dict.fromkeys(sorted(name for name in tables if plan.of(name).name == VOCABULARY), SMALL_TABLE)
    if small and sensitive_weights.loss_of(decoder, texts, Plan(small), bounds) <= TABLE_ROOM:
        return Plan(plan.schemes | small)
    return plan


def _vocabulary(decoder: Any) -> int:
    """How many tokens a decoder scores."""
    return next(int(shape[-1]) for value in decoder.graph.outputs if value.name == LOGITS and (shape := dims(value)))


def _half(recipe: Recipe, plan: Plan, half_precision: Precision, fused: Graphs, goldens: Path) -> tuple[Graphs, dict[str, str]]:
    """Graphs in half precision but for the layers that do not fit it, which the plan names. A given plan is carried out as it stands.

    Raises:
        UsageError: the plan names weights that the model lacks, or the precision has no type for a model's cache.
        DeviceError: nothing here runs the precision.
        NotApplicable: something without a layer's name does not fit.
    """
    plan.check(name for graph in fused.values() for name in half.owners(half.prepared(graph).graph).values())
    half_precision.check_device()
    if not half_precision.generates and "decoder" in fused:
        raise UsageError(
            f"{half_precision.name} is made of encoders and plain modules: the cache of a model that generates has no such type; use fp16"
        )
    if recipe.plan is None and plan.half == "fp16":  # bfloat16 has the range of float32
        plan = half_overflow.safe(fused, plan, recipe.feeds() if recipe.feeds is not None else golden_feeds(goldens, fused))
    return {role: half.to_half(graph, plan) for role, graph in fused.items()}, dict(plan.schemes)
