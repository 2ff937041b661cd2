"""Measurements of a model for a search: what each module loses under each scheme, what each scheme costs here, and whole plans."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from onnxport import __version__
from onnxport.compare.workload import Workload
from onnxport.graph import search_graphs, store
from onnxport.progress import Progress, counted
from onnxport.quantize.auto import kernel_times, module_loss, plan_quality
from onnxport.quantize.auto.decoding import KindLosses, kind_of
from onnxport.quantize.auto.journal import Journal
from onnxport.quantize.auto.knapsack import Picks
from onnxport.quantize.calibration_inputs import Feeds
from onnxport.quantize.encoder_scales import EncoderScales
from onnxport.quantize.modules import Group, groups, plan_of
from onnxport.quantize.plan import FP32, Plan, scheme
from onnxport.quantize.precisions import Bounds
from onnxport.quantize.recipe import Graphs, Recipe, Solved, VariantGraphs, make_graphs
from onnxport.quantize.safeguards.static_norms import ROWS, STATIC, after_norms, instead
from onnxport.quantize.schemes.apply import quantize
from onnxport.quantize.schemes.blocks.blockwise import Weights, block_size, named
from onnxport.quantize.schemes.channel_scales import ChannelScales
from onnxport.quantize.schemes.experts import fitting
from onnxport.runtime.bundle.reader import Bundle, sha256
from onnxport.runtime.bundle.writer import Staging
from onnxport.runtime.model import Model
from onnxport.runtime.processor import cores
from onnxport.runtime.sessions import CPU, Sessions

# What a plan may hold, by kind of model; int4 with the solver that needs no data and loses less than rounding does.
GENERATING = ("int8-rows", "int8-blocks128", "int8-blocks32", "int4-blocks128-asym-hqq", "int4-blocks32-asym-hqq")
# Of language models: what the recipes of int8, int8-weight and int4 are made of; blocks without a size are the largest that fit.
DECODING = (
    "int8-rows-rotated",
    "int8-blocks32",
    "int8-blocks",
    "int4-blocks32-asym-rotated-gptq",
    "int4-blocks-asym-rotated-gptq",
)
TABLE = ROWS  # of a table that nothing multiplies by
ANSWERING = (ROWS, STATIC, "int8-static")
BATCH = 8  # of models that answer in one pass; answers are generated one by one
ROUNDS, SECONDS = 40, 6.0  # of the last check of speed, a plan
TRIAL = "auto-trial"  # name of the variant that is measured
Make = Callable[[Plan], VariantGraphs]


@dataclass(frozen=True)
class SearchOptions:
    """What a search is asked for.

    budget: a gate; None for the task's own. calibrate: the file that was calibrated on. data: what plans are measured on; None for the rest
    of `calibrate`. threads: None for all. folder: where an interrupted search finds its measurements. bounds: of the parity of any plan,
    whatever the budget.
    """

    budget: str | None
    calibrate: Path
    data: Path | None
    threads: int | None
    folder: Path
    bounds: Bounds


@dataclass(frozen=True)
class PlanInputs:
    """What a variant of any plan is made of.

    recipe: of the searched variant, without a plan. fused: its graphs in float32, by role. feeds: calibration inputs. goldens: golden.npz.
    """

    recipe: Recipe
    fused: Graphs
    feeds: Feeds
    goldens: Path


class Measurements:
    """Measurements that are kept in a journal, for plans that are picks: the number of a scheme among the options of each group.

    staging: the bundle in the making, with its fp32 variant. work: what plans are measured on. path: of the metric that the budget is
    about. release_weights: called when a variant is a file, before ONNX Runtime loads it.
    """

    def __init__(
        self,
        options: SearchOptions,
        staging: Staging,
        inputs: PlanInputs,
        work: Workload,
        path: str,
        release_weights: Callable[[], None],
        progress: Progress,
    ) -> None:
        recipe, fused, feeds, goldens = inputs.recipe, inputs.fused, inputs.feeds, inputs.goldens
        self.feeds, self.progress, self.work, self.path = feeds, progress, work, path
        self.release_weights, self.threads = release_weights, options.threads
        self.bundle = staging.preview()
        self.sessions = Sessions.on(CPU.name, options.threads)
        self.decodes = set(fused) == {"decoder"}
        if self.decodes:
            self.graphs = fused
            self.solved = Solved(ChannelScales(fused["decoder"], feeds["decoder"]), Weights())
            recipe = replace(recipe, solved=self.solved)
            make: Make = lambda plan: make_graphs(replace(recipe, plan=plan), fused, goldens)  # noqa: E731
        else:
            self.graphs, self.scales = fused, EncoderScales(fused, feeds, goldens)
            make = lambda plan: _quantized(self.scales.graphs(plan), plan, feeds)  # noqa: E731
        self.trials = TrialVariants(staging, make, release_weights)
        self.groups = groups(fused, kind_of(fused["decoder"])) if self.decodes else groups(fused)
        self.schemes: tuple[str, ...] = ANSWERING if self.bundle.generation is None else DECODING if self.decodes else GENERATING
        self.after_norms = set[str]() if self.decodes else {name for model in fused.values() for name in after_norms(model.graph)}
        self.options = [
            (FP32.name, *(name for name in _options(self.schemes, group) if name != STATIC or group.parameters & self.after_norms))
            for group in self.groups
        ]
        offered = {name for names in self.options for name in names}
        self.schemes = tuple(name for name in self.schemes if name != STATIC or name in offered)
        self.journal = Journal(options.folder, self._key(options, recipe.cache))
        self.batch = 1 if work.generates else BATCH

    @cached_property
    def quality(self) -> plan_quality.Quality:
        """The quality of plans, against the answers of fp32; they are computed when this is first read."""
        return plan_quality.Quality(self.bundle, self.work, self.sessions, self.path)

    @cached_property
    def sensitivities(self) -> dict[str, dict[str, float]]:
        """What each option of each group loses alone: group → scheme → loss, see `module_loss`."""
        every = [(group, name) for group, names in zip(self.groups, self.options, strict=True) for name in names[1:]]
        if self.decodes:
            every.sort(key=lambda one: self._unsized(*one), reverse=True)  # a graph of each scheme; 8 bits first, which need no GPTQ
        left = sum(not self.journal.has("sensitivity", f"{group.name} {name}") for group, name in every)
        losses: dict[str, dict[str, float]] = {group.name: {} for group in self.groups}
        number, told = 0, counted(self.progress, "measure modules one by one")
        with self._meter() as loss:
            for group, name in every:
                if not self.journal.has("sensitivity", f"{group.name} {name}"):
                    told(number, left)
                    number += 1
                losses[group.name][name] = self.journal.get("sensitivity", f"{group.name} {name}", partial(_bounded, loss, group, name))
        self.release_weights()
        return losses

    def losses(self) -> list[list[float]]:
        """The sensitivities as a table by group and option."""
        return [[0.0, *(self.sensitivities[g.name][n] for n in names[1:])] for g, names in zip(self.groups, self.options, strict=True)]

    @contextmanager
    def _meter(self) -> Iterator[Callable[[Group, str], float]]:
        """What measures the loss of a group's scheme; it is made when the first loss is measured."""
        if self.decodes:
            with KindLosses(self.graphs["decoder"], self.feeds["decoder"], self.solved) as losses:
                yield lambda group, name: losses.loss(group, self._unsized(group, name))
            return
        meter = cache(self._graph_meter)

        def loss(group: Group, scheme: str) -> float:
            plan, few = self._carried(plan_of({group.name: scheme}, [group])), {role: feeds[:4] for role, feeds in self.feeds.items()}
            scaled = self.scales.graphs(plan)
            return meter().loss(quantize({role: scaled[role] for role in sorted(group.roles)}, plan, few)[0])

        yield loss

    def _unsized(self, group: Group, name: str) -> str:
        """The scheme that a group's option is made of: one name for blocks of the size that fits each weight."""
        return next((one for one in self.schemes if _sized(one, group) == name), name)

    def _graph_meter(self) -> module_loss.Meter:
        if self.bundle.generation is None:
            return module_loss.OutputLoss(self.graphs, next(iter(self.feeds.values()))[:4], self.sessions)
        model = Model(self.bundle, FP32.name, self.sessions)
        assert model.engine is not None
        sources = [list(feed["input_ids"][0]) for feed in self.feeds["encoder"]][: module_loss.ROWS]
        answers = model.generate(
            sources, beam=1, temperature=0.0, max_new_tokens=min(module_loss.STEPS, self.work.natural["max_new_tokens"])
        )
        return module_loss.DivergenceLoss(model.engine, sources, [answer.tokens for answer in answers], self.sessions)

    def costs(self) -> list[list[float]]:
        """Seconds of each option of each group in one answer."""
        stage = "time every scheme on this machine"
        self.progress(stage)
        if hasattr(os, "getloadavg") and os.getloadavg()[0] > cores() + 0.5:
            self.progress("note: the machine is busy, so that times are rough; search again on a quiet one")
        loads, values = self._loads(), sum(group.values for group in self.groups)
        timed: dict[str, tuple[kernel_times.Shape, set[str]]] = {}
        for group, names in zip(self.groups, self.options, strict=True):
            for _, shape, _ in kernel_times.shapes_of(group, loads):
                timed.setdefault(shape.key, (shape, set()))[1].update(names)
        times, told = {}, counted(self.progress, stage)
        for number, (key, (shape, schemes)) in enumerate(timed.items()):
            told(number, len(timed))
            times[key] = self.journal.get("times", key, partial(kernel_times.measure, shape, schemes, values, self.threads))
        return [[kernel_times.seconds(g, name, loads, times) for name in names] for g, names in zip(self.groups, self.options, strict=True)]

    def _loads(self) -> list[kernel_times.Load]:
        generation = self.bundle.generation
        if generation is None:
            ((role, feeds),) = self.feeds.items()
            rows = statistics.fmean(map(_rows, feeds))
            return [kernel_times.Load(role, max(1, round(rows * self.batch)), 1 / self.batch)]
        beams, new = self.work.fixed["beam"], self.work.fixed["max_new_tokens"]
        vocabulary = generation.vocab_size
        if generation.kind == "seq2seq":
            tokens = statistics.fmean(feed["input_ids"].size for feed in self.feeds["encoder"])
            return [kernel_times.Load("encoder", max(1, round(tokens)), 1), kernel_times.Load("decoder", beams, new)]
        tokens = statistics.fmean(feed["input_ids"].size for feed in self.feeds["decoder"])
        return [
            kernel_times.Load("decoder", max(1, round(tokens)), 1, vocabulary, beams),
            kernel_times.Load("decoder", beams, new - 1, vocabulary, beams),
        ]

    def seconds_of_fp32(self) -> float:
        """Measured seconds of a whole answer."""
        return float(self.journal.get("times", FP32.name, lambda: statistics.median(self.seconds_of({})[FP32.name])))

    def seconds_of(self, plans: Mapping[str, Plan]) -> dict[str, list[float]]:
        """Measured seconds of a whole answer by each plan and by fp32, in turn, in every round."""
        names = [FP32.name, *plans]
        with self.trials.made(plans) as bundle:
            budget = SECONDS * len(names)
            return plan_quality.seconds(bundle, names, self.work, self.batch, self.sessions, ROUNDS, budget)

    def quality_of(self, plan: Plan) -> dict[str, Any]:
        """Measured metrics of a plan: see `plan_quality.Quality`. They are in the journal afterwards."""

        def measured() -> dict[str, Any]:
            with self.trials.made({TRIAL: plan}) as bundle:
                return self.quality.values(bundle, TRIAL)

        return dict(self.journal.get("plans", self._name(plan), measured))

    def has_quality_of(self, plan: Plan) -> bool:
        """Whether `quality_of` answers from the journal."""
        return self.journal.has("plans", self._name(plan))

    def _name(self, plan: Plan) -> str:
        """A plan in the journal, with what is measured of it."""
        return digest(plan.dumps() + ",".join(plan_quality.measured(self.work, self.path)))

    def plan(self, picks: Picks) -> Plan:
        """The plan of picks, by names of weights."""
        return self._carried(plan_of({g.name: names[p] for g, names, p in zip(self.groups, self.options, picks, strict=True)}, self.groups))

    def _carried(self, plan: Plan) -> Plan:
        """The plan with rows for what has one scale where no norm makes the inputs: of a module the two are one option."""
        return Plan({name: self._of_weight(scheme, name) for name, scheme in plan.schemes.items()})

    def _of_weight(self, scheme: str, parameter: str) -> str:
        return scheme if parameter in self.after_norms else instead(scheme)

    def uniform(self, name: str) -> Picks:
        """One scheme wherever it fits; of a language model, tables that nothing multiplies by get theirs beside it."""
        wanted = [_sized(name, group) if group.uses or not self.decodes else TABLE for group in self.groups]
        other = ROWS if name == STATIC else FP32.name
        return tuple(names.index(one if one in names else other) for one, names in zip(wanted, self.options, strict=True))

    def variants(self) -> dict[str, Picks]:
        """The bundle's own variants whose plans are picks, by name: what a search has to beat."""
        found = {
            name: self._picks(variant.plan) for name, variant in self.bundle.variants.items() if set(variant.plan.values()) != {FP32.name}
        }
        return {name: picks for name, picks in found.items() if picks is not None}

    def _picks(self, plan: Mapping[str, str]) -> Picks | None:
        """The picks of a plan that was carried out; None where it gives a group what is no option of it."""
        picks = []
        for group, names in zip(self.groups, self.options, strict=True):
            found = {parameter: plan.get(parameter, FP32.name) for parameter in group.parameters}
            fitting = [i for i, one in enumerate(names) if found == {parameter: self._of_weight(one, parameter) for parameter in found}]
            if not fitting:
                return None
            picks.append(fitting[0])
        return tuple(picks)

    def short(self, picks: Picks) -> str:
        """Shares of the model's weights by scheme: `int8-rows 81%, fp32 19%`."""
        shares: dict[str, int] = {}
        for group, names, pick in zip(self.groups, self.options, picks, strict=True):
            shares[names[pick]] = shares.get(names[pick], 0) + group.values
        whole = sum(shares.values()) or 1
        return ", ".join(f"{name} {count / whole:.0%}" for name, count in sorted(shares.items(), key=lambda item: (-item[1], item[0])))

    def _key(self, options: SearchOptions, kv: str | None) -> str:
        import onnxruntime

        files = [sha256(self.bundle.file(name)) for name in self.bundle.variants[FP32.name].files]
        data = [sha256(path) for path in (options.calibrate, options.data) if path is not None]
        return digest(json.dumps([files, data, kv, __version__, onnxruntime.__version__, self.sessions.threads, self.work.count]))


def _options(names: Sequence[str], group: Group) -> Iterator[str]:
    """The schemes that a group can have, each once."""
    found = dict.fromkeys(_sized(name, group) for name in names if _fits(name, group))
    yield from found or ([] if group.uses else [TABLE])


def _sized(name: str, group: Group) -> str:
    """A scheme with the size of its blocks told; of mixtures what their kernel has for it."""
    chosen = scheme(name)
    if group.widths:
        return fitting([chosen], group.widths).name
    return named(chosen, block_size(group.narrowest)) if chosen.kind == "blocks" and chosen.block is None else name


def _bounded(loss: Callable[[Group, str], float], group: Group, name: str) -> float:
    return min(float(loss(group, name)), 1e9)


def _quantized(graphs: Graphs, plan: Plan, feeds: Feeds) -> VariantGraphs:
    models, became = quantize(graphs, plan, feeds)
    if "decoder" in models:
        models = models | {"decoder": search_graphs.add_choice(models["decoder"])}
    return VariantGraphs(models, Plan(became))


def _fits(name: str, group: Group) -> bool:
    """Whether a scheme means anything else to a group than its neighbours: a table has no activations, a block no more than a row."""
    block = scheme(name).block
    within = block is None or block <= max(group.narrowest, 32)
    return bool(group.widths) or (within and (bool(group.uses) or name == TABLE))


def _rows(feed: Mapping[str, np.ndarray]) -> float:
    """Rows that products compute for one item of a batch: tokens, by the largest input."""
    arrays = [array for array in feed.values() if array.ndim]
    return max(a[..., 0].size if a.dtype.kind == "f" else a.size for a in arrays) / len(arrays[0]) if arrays else 1.0


def digest(text: str) -> str:
    """SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


class TrialVariants:
    """Variants of a bundle in the making that are there only to be measured. make: carries a plan out; else see `Measurements`."""

    def __init__(self, staging: Staging, make: Make, release_weights: Callable[[], None]) -> None:
        self._staging, self._make, self._release_weights = staging, make, release_weights

    @contextmanager
    def made(self, plans: Mapping[str, Plan]) -> Iterator[Bundle]:
        """The bundle with a variant for each plan, by names that no precision has; they are gone when the block ends."""
        manifest = self._staging.manifest
        assert manifest is not None
        try:
            for name, plan in plans.items():
                manifest["variants"][name] = self._write(name, plan)
            yield self._staging.preview()
        finally:
            for name in plans:
                manifest["variants"].pop(name, None)
                shutil.rmtree(self._staging.path / name, ignore_errors=True)

    def _write(self, name: str, plan: Plan) -> dict[str, Any]:
        """The manifest's entry of a plan's variant, whose files are there."""
        made = self._make(plan)
        folder = self._staging.path / name
        graphs = {role: f"{name}/{file}" for role, file in store.write(made.models, folder).items()}
        became = made.plan.entries
        del made
        self._release_weights()
        files = sorted(f"{name}/{file.name}" for file in folder.iterdir())
        return {"files": files, "graphs": graphs, "target": CPU.name, "plan": became, "fusions": {}, "parity": {}}
