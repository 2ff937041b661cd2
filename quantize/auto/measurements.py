"""What a search knows of a model: its modules, what each of them loses under each scheme, and what each scheme costs here."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from onnxport import __version__
from onnxport.compare.workload import Workload
from onnxport.graph import search_graphs, store
from onnxport.quantize.auto import kernel_times, module_loss, plan_quality
from onnxport.quantize.auto.journal import Memo
from onnxport.quantize.auto.knapsack import Picks
from onnxport.quantize.calibration_inputs import Feeds
from onnxport.quantize.modules import Group, groups, plan_of
from onnxport.quantize.plan import Plan, scheme
from onnxport.quantize.recipe import Graphs
from onnxport.quantize.schemes.apply import quantize
from onnxport.runtime.bundle.reader import Bundle, sha256
from onnxport.runtime.bundle.writer import Staging
from onnxport.runtime.model import Model
from onnxport.runtime.processor import cores
from onnxport.runtime.sessions import Sessions

# What a plan may hold, by kind of model; int4 with the solver that needs no data and loses less than rounding does.
GENERATING = ("int8-rows", "int8-blocks128", "int8-blocks32", "int4-blocks128-asym-hqq", "int4-blocks32-asym-hqq")
ANSWERING = ("int8-rows", "int8-static")
BATCH = 8  # of models that answer in one pass; answers are generated one by one
ROUNDS, SECONDS = 40, 6.0  # of the last check of speed, a plan


@dataclass(frozen=True)
class Request:
    """What a search is asked: a budget (a gate, or None for the task's own), calibration data, data to measure on (None: the rest of the
    calibration data), threads (None: all), and the folder where an interrupted search finds what it has measured."""

    budget: str | None
    calibrate: Path
    data: Path | None
    threads: int | None
    folder: Path


class Measuring:
    """Measurements that are kept in a memo, for plans that are picks: the number of a scheme among the options of each group."""

    def __init__(
        self,
        request: Request,
        staging: Staging,
        graphs: Graphs,
        feeds: Feeds,
        let_go: Callable[[], None],
        progress: Callable[[str], None],
        work: Workload,
    ) -> None:
        self.request, self.graphs, self.feeds, self.progress, self.work = request, graphs, feeds, progress, work
        self.staging, self.let_go = staging, let_go
        self.bundle = staging.preview()
        self.sessions = Sessions.choose("cpu", request.threads)
        self.trials = Trials(staging, graphs, feeds, let_go)
        self.groups = groups(graphs)
        schemes = GENERATING if self.bundle.generation is not None else ANSWERING
        self.options = [("fp32", *(name for name in schemes if _fits(name, group))) for group in self.groups]
        self.schemes = schemes
        self.memo = Memo(request.folder, self._key())
        self.batch = 1 if work.generates else BATCH

    @cached_property
    def quality(self) -> plan_quality.Quality:
        """Measures plans; fp32 answers when it is first asked for."""
        return plan_quality.Quality(self.bundle, self.work, self.sessions)

    def losses(self) -> list[list[float]]:
        """What each option of each group loses alone."""
        every = [(group, name) for group, names in zip(self.groups, self.options, strict=True) for name in names[1:]]
        found: dict[str, dict[str, float]] = {}
        meter: Any = None
        left = sum(not self.memo.knows("sensitivity", f"{group.name} {name}") for group, name in every)
        number = 0
        for group, name in every:
            if not self.memo.knows("sensitivity", f"{group.name} {name}"):
                if number % max(1, left // 10) == 0:
                    self.progress(f"measure modules one by one: {number} of {left}")
                number += 1

            def measured(group: Group = group, name: str = name) -> float:
                nonlocal meter
                meter = meter or self._meter()
                changed, _ = quantize(
                    {role: self.graphs[role] for role in sorted(group.roles)}, _only(group, name), {r: f[:4] for r, f in self.feeds.items()}
                )
                return min(float(meter.loss(changed)), 1e9)

            found.setdefault(group.name, {})[name] = self.memo.get("sensitivity", f"{group.name} {name}", measured)
        self.let_go()
        self.sensitivities = found
        return [[0.0, *(found[g.name][n] for n in names[1:])] for g, names in zip(self.groups, self.options, strict=True)]

    def _meter(self) -> module_loss.Generating | module_loss.Answering:
        if self.bundle.generation is None:
            return module_loss.Answering(self.graphs, next(iter(self.feeds.values()))[:4], self.sessions)
        model = Model(self.bundle, "fp32", self.sessions)
        assert model.engine is not None
        sources = [list(feed["input_ids"][0]) for feed in self.feeds.get("encoder", [])][: module_loss.ROWS]
        if not sources:
            return module_loss.Generating(model.engine, None, self._texts()[: module_loss.ROWS], self.sessions)
        answers = model.generate(
            sources, beam=1, temperature=0.0, max_new_tokens=min(module_loss.STEPS, self.work.natural["max_new_tokens"])
        )
        return module_loss.Generating(model.engine, sources, [answer.tokens for answer in answers], self.sessions)

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
        self.progress("time every scheme on this machine")
        if hasattr(os, "getloadavg") and os.getloadavg()[0] > cores() + 0.5:
            self.progress("note: the machine is busy, so that times are rough; search again on a quiet one")
        loads, values = self._loads(), sum(group.values for group in self.groups)
        wanted: dict[str, tuple[kernel_times.Shape, set[str]]] = {}
        for group, names in zip(self.groups, self.options, strict=True):
            for shape, _ in kernel_times.shapes_of(group, loads):
                wanted.setdefault(shape.key, (shape, set()))[1].update(names)
        times = {
            key: self.memo.get("times", key, partial(kernel_times.measure, shape, names, values, self.request.threads))
            for key, (shape, names) in wanted.items()
        }
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
        """Of a whole answer, for real."""

        def measured() -> float:
            return plan_quality.seconds(self.bundle, ["fp32"], self.work, self.batch, self.sessions, ROUNDS, SECONDS)["fp32"]

        return float(self.memo.get("times", "fp32", measured))

    def short(self, picks: Picks) -> str:
        """How many of the model's weights each scheme has."""
        return short({group.name: names[p] for group, names, p in zip(self.groups, self.options, picks, strict=True)}, self.groups)

    def uniform(self, name: str) -> Picks:
        """One scheme wherever it fits."""
        return tuple(names.index(name) if name in names else 0 for names in self.options)

    def plan(self, picks: Picks) -> Plan:
        """The plan of picks, by names of weights."""
        return plan_of({g.name: names[p] for g, names, p in zip(self.groups, self.options, picks, strict=True)}, self.groups)

    def _key(self) -> str:
        import onnxruntime

        base = self.bundle.variants["fp32"]
        files = [sha256(self.bundle.file(name)) for name in base.files]
        data = [sha256(path) for path in (self.request.calibrate, self.request.data) if path is not None]
        return digest(json.dumps([files, data, __version__, onnxruntime.__version__, self.sessions.threads, self.work.count]))


def short(schemes: dict[str, str], every: Sequence[Group]) -> str:
    """`int8-rows 81%, fp32 19%` of the weights."""
    sizes = {group.name: group.values for group in every}
    shares: dict[str, int] = {}
    for name, found in schemes.items():
        shares[found] = shares.get(found, 0) + sizes[name]
    whole = sum(shares.values()) or 1
    return ", ".join(f"{name} {count / whole:.0%}" for name, count in sorted(shares.items(), key=lambda item: (-item[1], item[0])))


def _fits(name: str, group: Group) -> bool:
    """Whether a scheme means anything else to a group than its neighbours: a table has no activations, a block no more than a row."""
    block = scheme(name).block
    return (block is None or block <= max(group.narrowest, 32)) and (bool(group.uses) or name == "int8-rows")


def _rows(feed: Mapping[str, np.ndarray]) -> float:
    """Rows that products compute for one item of a batch: tokens, by the largest input."""
    arrays = [array for array in feed.values() if array.ndim]
    return max(a[..., 0].size if a.dtype.kind == "f" else a.size for a in arrays) / len(arrays[0]) if arrays else 1.0


def _only(group: Group, name: str) -> Plan:
    return plan_of({group.name: name}, [group])


def digest(text: str) -> str:
    """sha256."""
    return hashlib.sha256(text.encode()).hexdigest()


class Trials:
    """base: the float32 graphs that plans are carried out on. let_go: called when a variant is a file."""

    def __init__(self, staging: Staging, base: Graphs, feeds: Feeds, let_go: Callable[[], None]) -> None:
        self._staging, self._base, self._feeds, self._let_go = staging, base, feeds, let_go

    @contextmanager
    def made(self, plans: Mapping[str, Plan]) -> Iterator[Bundle]:
        """The bundle with a variant for each plan, by names that no precision has; they are gone when the block ends."""
        manifest = self._staging.manifest
        assert manifest is not None
        try:
            for name, plan in plans.items():
                models, became = quantize(self._base, plan, self._feeds)
                if "decoder" in models:
                    models = models | {"decoder": search_graphs.add_choice(models["decoder"])}
                folder = self._staging.path / name
                graphs = {role: f"{name}/{file}" for role, file in store.write(models, folder).items()}
                del models
                self._let_go()
                files = sorted(f"{name}/{file.name}" for file in folder.iterdir())
                manifest["variants"][name] = {
                    "files": files, "graphs": graphs, "target": "cpu", "plan": became, "fusions": {}, "parity": {},
                }  # fmt: skip
            yield self._staging.preview()
        finally:
            for name in plans:
                manifest["variants"].pop(name, None)
                shutil.rmtree(self._staging.path / name, ignore_errors=True)
