"""Measurements of a model for a search: what each module loses under each scheme, what each scheme costs here, and whole plans."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from onnxport import __version__
from onnxport.compare.workload import Workload
from onnxport.graph import search_graphs, store
from onnxport.progress import Progress, counted
from onnxport.quantize.auto import kernel_times, module_loss, plan_quality
from onnxport.quantize.auto.journal import Journal
from onnxport.quantize.auto.knapsack import Picks
from onnxport.quantize.calibration_inputs import Feeds
from onnxport.quantize.modules import Group, groups, plan_of
from onnxport.quantize.plan import FP32, Plan, scheme
from onnxport.quantize.precisions import Bounds
from onnxport.quantize.recipe import Graphs
from onnxport.quantize.schemes.apply import quantize
from onnxport.runtime.bundle.reader import Bundle, sha256
from onnxport.runtime.bundle.writer import Staging
from onnxport.runtime.model import Model
from onnxport.runtime.processor import cores
from onnxport.runtime.sessions import CPU, Sessions

# What a plan may hold, by kind of model; int4 with the solver that needs no data and loses less than rounding does.
GENERATING = ("int8-rows", "int8-blocks128", "int8-blocks32", "int4-blocks128-asym-hqq", "int4-blocks32-asym-hqq")
# Of language models, whose channels are scaled on the calibration data, so that 4 bits may be fitted to it too.
DECODING = ("int8-rows", "int8-rows-rotated", "int8-blocks32", "int4-blocks128-asym-fit", "int4-blocks32-asym-fit")
ANSWERING = ("int8-rows", "int8-static")
BATCH = 8  # of models that answer in one pass; answers are generated one by one
ROUNDS, SECONDS = 40, 6.0  # of the last check of speed, a plan
TRIAL = "auto-trial"  # name of the variant that is measured


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


class Measurements:
    """Measurements that are kept in a journal, for plans that are picks: the number of a scheme among the options of each group.

    staging: the bundle in the making, with its fp32 variant. graphs: float32, by role. feeds: calibration inputs. work: what plans are
    measured on. release_weights: called when a variant is a file, before ONNX Runtime loads it.
    """

    def __init__(
        self,
        options: SearchOptions,
        staging: Staging,
        graphs: Graphs,
        feeds: Feeds,
        work: Workload,
        release_weights: Callable[[], None],
        progress: Progress,
    ) -> None:
        self.graphs, self.feeds, self.progress, self.work = graphs, feeds, progress, work
        self.release_weights, self.threads = release_weights, options.threads
        self.bundle = staging.preview()
        self.sessions = Sessions.on(CPU.name, options.threads)
        self.trials = TrialVariants(staging, graphs, feeds, release_weights)
        self.groups = groups(graphs)
        self.schemes = ANSWERING if self.bundle.generation is None else GENERATING if "encoder" in graphs else DECODING
        self.options = [(FP32.name, *(name for name in self.schemes if _fits(name, group))) for group in self.groups]
        self.journal = Journal(options.folder, self._key(options))
        self.batch = 1 if work.generates else BATCH

    @cached_property
    def quality(self) -> plan_quality.Quality:
        """The quality of plans, against the answers of fp32; they are computed when this is first read."""
        return plan_quality.Quality(self.bundle, self.work, self.sessions)

    @cached_property
    def sensitivities(self) -> dict[str, dict[str, float]]:
        """What each option of each group loses alone: group → scheme → loss, see `module_loss`."""
        every = [(group, name) for group, names in zip(self.groups, self.options, strict=True) for name in names[1:]]
        left = sum(not self.journal.has("sensitivity", f"{group.name} {name}") for group, name in every)
        losses: dict[str, dict[str, float]] = {}
        meter = cache(self._meter)  # made when the first loss is measured
        number, told = 0, counted(self.progress, "measure modules one by one")
        for group, name in every:
            if not self.journal.has("sensitivity", f"{group.name} {name}"):
                told(number, left)
                number += 1
            loss = self.journal.get("sensitivity", f"{group.name} {name}", partial(self._loss, meter, group, name))
            losses.setdefault(group.name, {})[name] = loss
        del meter
        self.release_weights()
        return losses

    def losses(self) -> list[list[float]]:
        """The sensitivities as a table by group and option."""
        return [[0.0, *(self.sensitivities[g.name][n] for n in names[1:])] for g, names in zip(self.groups, self.options, strict=True)]

    def _loss(self, meter: Callable[[], module_loss.Meter], group: Group, scheme: str) -> float:
        graphs = {role: self.graphs[role] for role in sorted(group.roles)}
        changed, _ = quantize(graphs, plan_of({group.name: scheme}, [group]), {role: feeds[:4] for role, feeds in self.feeds.items()})
        return min(float(meter().loss(changed)), 1e9)

    def _meter(self) -> module_loss.Meter:
        if self.bundle.generation is None:
            return module_loss.OutputLoss(self.graphs, next(iter(self.feeds.values()))[:4], self.sessions)
        model = Model(self.bundle, FP32.name, self.sessions)
        assert model.engine is not None
        sources = [list(feed["input_ids"][0]) for feed in self.feeds.get("encoder", [])][: module_loss.ROWS]
        if not sources:
            return module_loss.DivergenceLoss(model.engine, None, self._texts()[: module_loss.ROWS], self.sessions)
        answers = model.generate(
            sources, beam=1, temperature=0.0, max_new_tokens=min(module_loss.STEPS, self.work.natural["max_new_tokens"])
        )
        return module_loss.DivergenceLoss(model.engine, sources, [answer.tokens for answer in answers], self.sessions)

    def _texts(self) -> list[list[int]]:
        """The ids that a language model was calibrated on: a prefill and the steps after it, text by text."""
        found: list[list[int]] = []
        for feed in self.feeds["decoder"]:
            if feed["position_ids"].flat[0] == 0:
                found.append([])
            found[-1] += [int(i) for i in feed["input_ids"].flat]
        return [ids for ids in found if len(ids) > 1]

    def costs(self) -> list[list[float]]:
        """Seconds of each option of each group in one answer."""
        stage = "time every scheme on this machine"
        self.progress(stage)
        if hasattr(os, "getloadavg") and os.getloadavg()[0] > cores() + 0.5:
            self.progress("note: the machine is busy, so that times are rough; search again on a quiet one")
        loads, values = self._loads(), sum(group.values for group in self.groups)
        timed: dict[str, tuple[kernel_times.Shape, set[str]]] = {}
        for group, names in zip(self.groups, self.options, strict=True):
            for shape, _ in kernel_times.shapes_of(group, loads):
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
        tokens = statistics.fmean(len(ids) for ids in self._texts())
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

        return dict(self.journal.get("plans", digest(plan.dumps()), measured))

    def has_quality_of(self, plan: Plan) -> bool:
        """Whether `quality_of` answers from the journal."""
        return self.journal.has("plans", digest(plan.dumps()))

    def plan(self, picks: Picks) -> Plan:
        """The plan of picks, by names of weights."""
        return plan_of({g.name: names[p] for g, names, p in zip(self.groups, self.options, picks, strict=True)}, self.groups)

    def uniform(self, scheme: str) -> Picks:
        """One scheme wherever it fits."""
        return tuple(names.index(scheme) if scheme in names else 0 for names in self.options)

    def short(self, picks: Picks) -> str:
        """Shares of the model's weights by scheme: `int8-rows 81%, fp32 19%`."""
        shares: dict[str, int] = {}
        for group, names, pick in zip(self.groups, self.options, picks, strict=True):
            shares[names[pick]] = shares.get(names[pick], 0) + group.values
        whole = sum(shares.values()) or 1
        return ", ".join(f"{name} {count / whole:.0%}" for name, count in sorted(shares.items(), key=lambda item: (-item[1], item[0])))

    def _key(self, options: SearchOptions) -> str:
        import onnxruntime

        files = [sha256(self.bundle.file(name)) for name in self.bundle.variants[FP32.name].files]
        data = [sha256(path) for path in (options.calibrate, options.data) if path is not None]
        return digest(json.dumps([files, data, __version__, onnxruntime.__version__, self.sessions.threads, self.work.count]))


def _fits(name: str, group: Group) -> bool:
    """Whether a scheme means anything else to a group than its neighbours: a table has no activations, a block no more than a row."""
    block = scheme(name).block
    return (block is None or block <= max(group.narrowest, 32)) and (bool(group.uses) or name == "int8-rows")


def _rows(feed: Mapping[str, np.ndarray]) -> float:
    """Rows that products compute for one item of a batch: tokens, by the largest input."""
    arrays = [array for array in feed.values() if array.ndim]
    return max(a[..., 0].size if a.dtype.kind == "f" else a.size for a in arrays) / len(arrays[0]) if arrays else 1.0


def digest(text: str) -> str:
    """SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


class TrialVariants:
    """Variants of a bundle in the making that are there only to be measured. Arguments: see `Measurements`."""

    def __init__(self, staging: Staging, graphs: Graphs, feeds: Feeds, release_weights: Callable[[], None]) -> None:
        self._staging, self._graphs, self._feeds, self._release_weights = staging, graphs, feeds, release_weights

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
        models, became = quantize(self._graphs, plan, self._feeds)
        if "decoder" in models:
            models = models | {"decoder": search_graphs.add_choice(models["decoder"])}
        folder = self._staging.path / name
        graphs = {role: f"{name}/{file}" for role, file in store.write(models, folder).items()}
        del models
        self._release_weights()
        files = sorted(f"{name}/{file.name}" for file in folder.iterdir())
        return {"files": files, "graphs": graphs, "target": CPU.name, "plan": became, "fusions": {}, "parity": {}}
