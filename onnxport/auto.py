"""`--precision auto`: what each module loses, what each scheme costs here, and the fastest plan within a budget, in this order."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from onnxport import __version__, bounds
from onnxport.compare.gates import Gate, lookup, parse_gate
from onnxport.compare.workload import METHODS, Workload, workload
from onnxport.errors import GateError, UsageError
from onnxport.quantize import cost, quality, sensitivity
from onnxport.quantize.apply import quantize
from onnxport.quantize.calibrate import Feeds
from onnxport.quantize.groups import Group, groups, plan_of
from onnxport.quantize.memo import Memo
from onnxport.quantize.plan import Plan, scheme
from onnxport.quantize.search import Picks, Point, isotonic, point, search
from onnxport.rows import FEW, rest_of
from onnxport.runtime.bundle import Bundle, sha256
from onnxport.runtime.model import Model
from onnxport.runtime.session import Sessions
from onnxport.runtime.staging import Staging
from onnxport.trials import Trials
from onnxport.variants import Graphs

# What a plan may hold, by kind of model; int4 with the solver that needs no data and loses less than rounding does.
GENERATING = ("int8-rows", "int8-blocks128", "int8-blocks32", "int4-blocks128-asym-hqq", "int4-blocks32-asym-hqq")
ANSWERING = ("int8-rows", "int8-static")
BUDGETS = {"encode": "cosine>=0.999", "run": "relative_error<=0.05"}  # of others: identical answers
BUDGET = "agreement>=0.98"
MOST_PLANS = 24  # that are measured
MOST_ROWS, MOST_TEXTS = 2000, 300  # that plans are measured on: pairs, and texts whose likelihood is
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


@dataclass(frozen=True)
class Chosen:
    """The plan, what the manifest keeps of the search, and one line for people."""

    plan: Plan
    evidence: dict[str, Any]
    said: str


def choose(
    request: Request, staging: Staging, graphs: Graphs, feeds: Feeds, let_go: Callable[[], None], progress: Callable[[str], None]
) -> Chosen:
    """The fastest plan within the budget. graphs: float32, smoothed where schemes of activations want it; feeds: see `calibrate`.

    GateError: not even fp32 is within it, and no plan was found that is. UsageError: the budget cannot be measured. DataError.
    """
    gate = _gate(request.budget, staging.preview())
    work = _work(request, staging)
    found = Search(request, staging, graphs, feeds, let_go, progress, gate, work)
    chosen = found.run()
    found.memo.forget()
    return chosen


def _gate(budget: str | None, bundle: Bundle) -> Gate:
    gate = parse_gate(budget or BUDGETS.get(METHODS.get(bundle.task, "generate"), BUDGET))
    return Gate(gate.expr, gate.path.removeprefix("auto."), gate.op, gate.number)


def _work(request: Request, staging: Staging) -> Workload:
    bundle = staging.preview()
    if not bundle.tokenizers or METHODS.get(bundle.task) == "run":
        return workload(bundle, None, None)
    rest = None if request.data is not None else rest_of(request.calibrate, bundle, staging.path)
    try:
        found = workload(bundle, request.data or rest, MOST_ROWS)
        if found.beside is not None and found.owners is None:
            found = workload(bundle, request.data or rest, MOST_TEXTS)
    finally:
        if rest is not None:
            rest.unlink()
    return found


class Search:
    """One search; `run` gives its result."""

    def __init__(
        self,
        request: Request,
        staging: Staging,
        graphs: Graphs,
        feeds: Feeds,
        let_go: Callable[[], None],
        progress: Callable[[str], None],
        gate: Gate,
        work: Workload,
    ) -> None:
        self.request, self.graphs, self.feeds, self.progress, self.gate, self.work = request, graphs, feeds, progress, gate, work
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
        self.tried: dict[Picks, tuple[Point, dict[str, Any]]] = {}

    def run(self) -> Chosen:
        """All stages in order."""
        if len(self.memo):
            self.progress(f"go on with the search in {self.request.folder}: {len(self.memo)} measurements are there")
        self.progress(f"answer {self.work.count} inputs with fp32")
        reference = self.quality.reference
        if lookup(reference, self.gate.path) is None:
            raise UsageError(f"--budget {self.gate.expr}: {self.gate.path} is not measured on {self.work.name}; {_measurable(reference)}")
        if self.work.count < FEW:
            self.progress(f"note: plans are measured on {self.work.count} inputs only; chance decides where differences are small")
        losses = self._losses()
        costs = self._costs()
        whole = self._seconds_of_fp32()
        self.rest = max(whole - sum(row[0] for row in costs), 0.0)
        uniform = {name: self._uniform(name) for name in self.schemes}
        seeds = [picks for picks in uniform.values() if any(picks)]
        best = search(costs, losses, lambda one: self._holds(one), MOST_PLANS, seeds)
        kept = [one for one, _ in self.tried.values() if self._within(one)]
        if not self._passes(reference) and not kept:
            raise GateError(self._missed(costs, losses))
        named = {"fp32": point(costs, losses, (0,) * len(self.groups))}
        named |= {name: one for name in uniform for one in kept if one.picks == uniform[name] and one.picks != named["fp32"].picks}
        if best is not None and best in kept and best.picks not in {one.picks for one in named.values()}:
            named["searched"] = best
        elif kept:
            fastest = min(kept, key=lambda one: one.cost)
            if fastest.picks not in {one.picks for one in named.values()}:
                named["searched"] = fastest
        taken = self._timed(named)
        winner = min(taken, key=lambda name: taken[name])
        if not self._passes(reference) and winner == "fp32":
            winner = min((name for name in taken if name != "fp32"), key=lambda name: taken[name])
        return self._chosen(named[winner], winner, taken, losses)

    # measuring

    @cached_property
    def quality(self) -> quality.Quality:
        """Measures plans; fp32 answers when it is first asked for."""
        return quality.Quality(self.bundle, self.work, self.sessions)

    def _losses(self) -> list[list[float]]:
        every = [(group, name) for group, names in zip(self.groups, self.options, strict=True) for name in names[1:]]
        found: dict[str, dict[str, float]] = {}
        meter: Any = None
        for number, (group, name) in enumerate(every):
            if number % max(1, len(every) // 10) == 0:
                self.progress(f"measure modules one by one: {number} of {len(every)}")

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

    def _meter(self) -> sensitivity.Generating | sensitivity.Answering:
        if self.bundle.generation is None:
            return sensitivity.Answering(self.graphs, next(iter(self.feeds.values()))[:4], self.sessions)
        model = Model(self.bundle, "fp32", self.sessions)
        assert model.engine is not None
        sources = [list(feed["input_ids"][0]) for feed in self.feeds.get("encoder", [])][: sensitivity.ROWS]
        if not sources:
            return sensitivity.Generating(model.engine, None, self._texts()[: sensitivity.ROWS], self.sessions)
        answers = model.generate(
            sources, beam=1, temperature=0.0, max_new_tokens=min(sensitivity.STEPS, self.work.natural["max_new_tokens"])
        )
        return sensitivity.Generating(model.engine, sources, [answer.tokens for answer in answers], self.sessions)

    def _texts(self) -> list[list[int]]:
        """The ids that a language model was calibrated on: a prefill and the steps after it, text by text."""
        found: list[list[int]] = []
        for feed in self.feeds["decoder"]:
            if feed["position_ids"].flat[0] == 0:
                found.append([])
            found[-1] += [int(i) for i in feed["input_ids"].flat]
        return [ids for ids in found if len(ids) > 1]

    def _costs(self) -> list[list[float]]:
        self.progress("time every scheme on this machine")
        loads, values = self._loads(), sum(group.values for group in self.groups)
        wanted: dict[str, tuple[cost.Shape, set[str]]] = {}
        for group, names in zip(self.groups, self.options, strict=True):
            for shape, _ in cost.shapes_of(group, loads):
                wanted.setdefault(shape.key, (shape, set()))[1].update(names)
        times = {
            key: self.memo.get("times", key, partial(cost.measure, shape, names, values, self.request.threads))
            for key, (shape, names) in wanted.items()
        }
        return [[cost.seconds(g, name, loads, times) for name in names] for g, names in zip(self.groups, self.options, strict=True)]

    def _loads(self) -> list[cost.Load]:
        generation = self.bundle.generation
        if generation is None:
            ((role, feeds),) = self.feeds.items()
            rows = [max(a[..., 0].size if a.dtype.kind == "f" else a.size for a in f.values()) / len(next(iter(f.values()))) for f in feeds]
            return [cost.Load(role, max(1, round(statistics.fmean(rows) * self.batch)), 1 / self.batch)]
        beams, new = self.work.fixed["beam"], self.work.fixed["max_new_tokens"]
        vocabulary = generation.vocab_size
        if generation.kind == "seq2seq":
            tokens = statistics.fmean(feed["input_ids"].size for feed in self.feeds["encoder"])
            return [cost.Load("encoder", max(1, round(tokens)), 1), cost.Load("decoder", beams, new)]
        tokens = statistics.fmean(len(ids) for ids in self._texts())
        return [cost.Load("decoder", max(1, round(tokens)), 1, vocabulary, beams), cost.Load("decoder", beams, new - 1, vocabulary, beams)]

    def _seconds_of_fp32(self) -> float:
        def measured() -> float:
            return quality.seconds(self.bundle, ["fp32"], self.work, self.batch, self.sessions, ROUNDS, SECONDS)["fp32"]

        return float(self.memo.get("times", "fp32", measured))

    def _timed(self, named: dict[str, Point]) -> dict[str, float]:
        """Seconds of an answer by what the plans are called here, in turn; fp32 is among them."""
        self.progress(f"time {', '.join(named)} in turn")
        plans = {f"auto-{name}": self._plan(one.picks) for name, one in named.items() if name != "fp32"}
        if not plans:
            return {"fp32": self._seconds_of_fp32()}
        with self.trials.made(plans) as bundle:
            budget = SECONDS * (len(plans) + 1)
            taken = quality.seconds(bundle, ["fp32", *plans], self.work, self.batch, self.sessions, ROUNDS, budget)
        return {name.removeprefix("auto-"): value for name, value in taken.items()}

    # judging

    def _holds(self, one: Point) -> bool:
        self.tried[one.picks] = (one, {})
        plan = self._plan(one.picks)
        number = len(self.tried)

        def measured() -> dict[str, Any]:
            with self.trials.made({"auto-trial": plan}) as bundle:
                return self.quality.values(bundle, "auto-trial")

        self.progress(f"plan {number}: {self._short(one.picks)}")
        values = self.memo.get("plans", _hash(plan.dumps()), measured)
        self.tried[one.picks] = (one, values)
        holds = self._within(one)
        verdict = "within" if holds else "by chance within" if self._passes(values) else "not within"
        self.progress(f"plan {number}: {self._told(values)}, {verdict} {self.gate.expr}")
        return holds

    def _passes(self, values: dict[str, Any]) -> bool:
        value = lookup(values, self.gate.path)
        error = values.get("relative_error")
        return value is not None and self.gate.holds(value) and error is not None and error <= bounds.BOUNDS["auto"]["relative_error"]

    def _within(self, one: Point) -> bool:
        """Whether a plan that was tried holds; where chance moves the metric, by those that lose more and less too."""
        if not self._passes(self.tried[one.picks][1]):
            return False
        if self.gate.path.partition(".")[0] in quality.EXACT or self.gate.op == "==":
            return True
        sign = 1 if self.gate.op in ("<=", "<") else -1
        pairs = [(p.loss, lookup(values, self.gate.path), p.picks) for p, values in self.tried.values()]
        pairs.append((0.0, lookup(self.quality.reference, self.gate.path), ()))
        known = [(loss, sign * value, picks) for loss, value, picks in pairs if value is not None]
        even = isotonic([k[0] for k in known], [k[1] for k in known])
        return self.gate.holds(sign * next(value for value, k in zip(even, known, strict=True) if k[2] == one.picks) - sign * 1e-12)

    # telling

    def _chosen(self, one: Point, name: str, taken: dict[str, float], losses: list[list[float]]) -> Chosen:
        values = self.quality.reference if name == "fp32" else self.tried[one.picks][1]
        value, faster = lookup(values, self.gate.path), taken["fp32"] / taken[name]
        budget = {"expr": self.gate.expr, "value": value, "met": True}
        if name == "fp32":
            said = f"plain fp32 is the fastest found within {self.gate.expr}"
            plan = Plan({"*": "fp32"})
        else:
            said = f"{self._short(one.picks)}: {faster:.2f} times as fast as fp32, {self.gate.path} {value:.4g} (budget {self.gate.expr})"
            plan = self._plan(one.picks)
        evidence = {
            "sensitivity": {
                "metric": sensitivity.ERROR if self.bundle.generation is None else sensitivity.KL,
                "modules": self.sensitivities,
            },
            "search": [
                {"plan": self._short(p.picks), "quality": _flat(found), "seconds": self.rest + p.cost, "loss": p.loss}
                for p, found in self.tried.values()
            ],
            "budget": budget,
            "timed": taken,
            "chosen": said,
            "inputs": self.work.count,
        }
        self.progress(f"auto: {said}")
        return Chosen(plan, evidence, said)

    def _missed(self, costs: list[list[float]], losses: list[list[float]]) -> str:
        sign = 1 if self.gate.op in ("<=", "<") else -1
        known = [(sign * v, one) for one, found in self.tried.values() if (v := lookup(found, self.gate.path)) is not None]
        own = lookup(self.quality.reference, self.gate.path)
        if not known:
            return f"--budget {self.gate.expr}: fp32 itself has {own:.4g}, and no faster plan was found; ask for less"
        value, one = min(known, key=lambda pair: (pair[0], pair[1].cost))
        whole = self.rest + sum(row[0] for row in costs)
        return (
            f"--budget {self.gate.expr}: no plan is within it; the best of {len(self.tried)} measured, {self._short(one.picks)}, has "
            f"{self.gate.path} {sign * value:.4g} at {(self.rest + one.cost) / whole:.2f} of fp32's predicted time, and fp32 itself "
            f"{own:.4g}; ask for less"
        )

    def _told(self, values: dict[str, Any]) -> str:
        value = lookup(values, self.gate.path)
        return "not finite" if value is None else f"{self.gate.path} {value:.4g}"

    def _short(self, picks: Picks) -> str:
        """How many of the model's weights each scheme has."""
        return short({group.name: names[p] for group, names, p in zip(self.groups, self.options, picks, strict=True)}, self.groups)

    def _uniform(self, name: str) -> Picks:
        return tuple(names.index(name) if name in names else 0 for names in self.options)

    def _plan(self, picks: Picks) -> Plan:
        return plan_of({g.name: names[p] for g, names, p in zip(self.groups, self.options, picks, strict=True)}, self.groups)

    def _key(self) -> str:
        import onnxruntime

        base = self.bundle.variants["fp32"]
        files = [sha256(self.bundle.file(name)) for name in base.files]
        data = [sha256(path) for path in (self.request.calibrate, self.request.data) if path is not None]
        return _hash(json.dumps([files, data, __version__, onnxruntime.__version__, self.sessions.threads, self.work.count]))


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


def _only(group: Group, name: str) -> Plan:
    return plan_of({group.name: name}, [group])


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _flat(values: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def _measurable(values: dict[str, Any]) -> str:
    return "what can be a budget here: " + ", ".join(sorted(name for name in _flat(values) if name not in ("argmax_agreement",)))
