"""The search behind `--precision auto`: what each module loses, what each scheme costs, and the fastest plan within a budget."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxport.compare.gates import Gate, lookup, parse_gate
from onnxport.compare.workload import Workload, workload
from onnxport.errors import GateError, UsageError
from onnxport.progress import Progress
from onnxport.quantize.auto import module_loss, plan_quality
from onnxport.quantize.auto.finalists import Choice, choose, speed_text
from onnxport.quantize.auto.knapsack import Picks, Point, isotonic, point, search
from onnxport.quantize.auto.measurements import Measurements, PlanInputs, SearchOptions
from onnxport.quantize.calibration_inputs import FEW, write_remaining_rows
from onnxport.quantize.plan import FP32, Plan
from onnxport.runtime.bundle import golden
from onnxport.runtime.bundle.reader import Bundle
from onnxport.runtime.bundle.writer import Staging
from onnxport.runtime.verify import broken

BUDGETS = {"encode": "cosine>=0.999", "run": "relative_error<=0.05"}  # of others: identical answers
BUDGET = "agreement>=0.98"
ON_TEXTS = "kl<=0.01"  # of language models that know the golden texts
MOST_PLANS = 24  # that are measured
MOST_ROWS, MOST_TEXTS = 2000, 300  # that plans are measured on: pairs, and texts whose likelihood is
MOST_CHARACTERS, FEW_TEXTS = 40_000, 16  # of these texts: ten thousand tokens tell a perplexity to half a percent
PROMPTS = 32  # of these texts that are continued


@dataclass(frozen=True)
class SearchResult:
    """The plan, what the manifest keeps of the search, and one sentence for people."""

    plan: Plan
    evidence: dict[str, Any]
    sentence: str


def search_plan(
    options: SearchOptions,
    staging: Staging,
    inputs: PlanInputs,
    release_weights: Callable[[], None],
    progress: Progress,
) -> SearchResult:
    """The fastest plan within the budget. Arguments: see `Measurements`.

    Raises:
        GateError: not even fp32 is within the budget, and no plan was found that is.
        UsageError: the budget cannot be measured.
        DataError: the data cannot be used.
    """
    work = _work(options, staging)
    gate = _gate(options.budget, work, staging.preview())
    measurements = Measurements(options, staging, inputs, work, gate.path, release_weights, progress)
    result = PlanSearch(measurements, gate, options, progress).run()
    measurements.journal.forget()
    return result


def _gate(budget: str | None, work: Workload, bundle: Bundle) -> Gate:
    known = ON_TEXTS if work.scored is not None and _has_texts(bundle) else BUDGETS.get(work.method, BUDGET)
    gate = parse_gate(budget or known)
    return Gate(gate.expr, gate.path.removeprefix("auto."), gate.op, gate.number)


def _work(options: SearchOptions, staging: Staging) -> Workload:
    bundle = staging.preview()
    own = workload(bundle, None, None)
    if own.method == "run":
        if options.data is not None:
            raise UsageError("--data: plans of this bundle are measured on its golden inputs, for it answers no texts; leave --data out")
        return own
    if options.data is not None:
        return _read(bundle, options.data)
    _read(bundle, options.calibrate)  # what is wrong with the data is told by its own name
    rest = write_remaining_rows(options.calibrate, bundle, staging.path)
    try:
        return replace(_read(bundle, rest), name=options.calibrate.name)
    finally:
        rest.unlink()


def _has_texts(bundle: Bundle) -> bool:
    return bundle.golden is not None and golden.TEXT in golden.read(bundle.file(bundle.golden))


def _read(bundle: Bundle, data: Path) -> Workload:
    found = workload(bundle, data, MOST_ROWS)
    if (scored := found.scored) is None:
        return found
    characters = sum(map(len, scored.inputs)) / len(scored.inputs)
    found = workload(bundle, data, max(FEW_TEXTS, min(MOST_TEXTS, int(MOST_CHARACTERS / max(characters, 1)))))
    return replace(found, inputs=found.inputs[:: max(1, len(found.inputs) // PROMPTS)], lines=None)


class PlanSearch:
    """One search; `run` gives its result. gate: the budget."""

    def __init__(self, measurements: Measurements, gate: Gate, options: SearchOptions, progress: Progress) -> None:
        self.measurements, self.gate, self.progress = measurements, gate, progress
        self.options, self.work = options, measurements.work
        self.tried: dict[Picks, tuple[Point, dict[str, Any]]] = {}

    def run(self) -> SearchResult:
        """All stages in order."""
        reference = self._begin()
        losses, costs = self.measurements.losses(), self.measurements.costs()
        self.rest = max(self.measurements.seconds_of_fp32() - sum(row[0] for row in costs), 0.0)  # of an answer, beside the products
        uniform = {name: self.measurements.uniform(name) for name in self.measurements.schemes} | self.measurements.variants()
        best = search(costs, losses, self._holds, MOST_PLANS, [picks for picks in uniform.values() if any(picks)])
        within = [one for one, _ in self.tried.values() if self._within(one)]
        if not self._passes(reference) and not within:
            raise GateError(self._missed(costs))
        finalists = self._finalists(point(costs, losses, (0,) * len(costs)), uniform, within, best)
        seconds = self._seconds(finalists)
        allowed = [name for name in finalists if name != FP32.name or self._passes(reference)]
        choice = choose(seconds, {name: one.loss for name, one in finalists.items()}, allowed)
        return self._result(finalists[choice.name], choice, seconds)

    def _begin(self) -> dict[str, Any]:
        """The metrics of fp32; the user hears what is there from before, and what the plans are measured on."""
        if len(self.measurements.journal):
            count = len(self.measurements.journal)
            self.progress(f"go on with the search in {self.options.folder}: {count} measurements are there")
        self.progress(f"answer {self.work.count} inputs with fp32")
        reference = self.measurements.quality.reference
        if lookup(reference, self.gate.path) is None:
            raise UsageError(f"--budget {self.gate.expr}: {self.gate.path} is not measured on {self.work.name}; {_measurable(reference)}")
        if self.work.method == "run":
            data = self.options.calibrate.name
            self.progress(f"note: plans are measured on the bundle's own {self.work.count} golden inputs, not on {data}")
        elif self.work.count < FEW:
            self.progress(f"note: plans are measured on {self.work.count} inputs only; chance decides where differences are small")
        return reference

    def _finalists(self, fp32: Point, uniform: dict[str, Picks], within: list[Point], best: Point | None) -> dict[str, Point]:
        """The plans that are timed, by name: fp32, each scheme alone that is within the budget, and the searched one."""
        named = {FP32.name: fp32}
        named |= {name: one for name, picks in uniform.items() for one in within if one.picks == picks != fp32.picks}
        fastest = min(within, key=lambda one: one.cost, default=None)
        there = {one.picks for one in named.values()}
        searched = [one for one in (best, fastest) if one is not None and one in within and one.picks not in there]
        return named | ({"searched": searched[0]} if searched else {})

    def _seconds(self, finalists: dict[str, Point]) -> dict[str, list[float]]:
        """Measured seconds of an answer by each finalist, in every round."""
        self.progress(f"time {', '.join(finalists)} in turn")
        plans = {f"auto-{name}": self.measurements.plan(one.picks) for name, one in finalists.items() if name != FP32.name}
        if not plans:
            return {FP32.name: [self.measurements.seconds_of_fp32()]}
        return {name.removeprefix("auto-"): value for name, value in self.measurements.seconds_of(plans).items()}

    # judging

    def _holds(self, one: Point) -> bool:
        """Measure a plan and judge it."""
        self.tried[one.picks] = (one, {})
        plan, number = self.measurements.plan(one.picks), len(self.tried)
        before = ", measured before" if self.measurements.has_quality_of(plan) else ""
        self.progress(f"plan {number}: {self.measurements.short(one.picks)}{before}")
        values = self.measurements.quality_of(plan)
        self.tried[one.picks] = (one, values)
        holds = self._within(one)
        verdict = "within" if holds else "by chance within" if self._passes(values) else "not within"
        value = lookup(values, self.gate.path)
        shown = "not finite" if value is None else f"{self.gate.path} {value:.4g}"
        self.progress(f"plan {number}: {shown}, {verdict} {self.gate.expr}")
        return holds

    def _passes(self, values: dict[str, Any]) -> bool:
        """Whether metrics are within the budget, and the parity within the bounds of a searched variant."""
        value = lookup(values, self.gate.path)
        parity = {name: values.get(name) for name in plan_quality.PARITY}
        return value is not None and self.gate.holds(value) and not broken(self.options.bounds.of(parity), parity)

    def _within(self, one: Point) -> bool:
        """Whether a plan that was tried holds; where chance moves the metric, by those that lose more and less too."""
        if not self._passes(self.tried[one.picks][1]):
            return False
        if self.gate.path.partition(".")[0] in plan_quality.EXACT or self.gate.op == "==":
            return True
        sign = 1 if self.gate.op in ("<=", "<") else -1
        pairs = [(p.loss, lookup(values, self.gate.path), p.picks) for p, values in self.tried.values()]
        pairs.append((0.0, lookup(self.measurements.quality.reference, self.gate.path), ()))
        known = [(loss, sign * value, picks) for loss, value, picks in pairs if value is not None]
        even = isotonic([k[0] for k in known], [k[1] for k in known])
        return self.gate.holds(sign * next(value for value, k in zip(even, known, strict=True) if k[2] == one.picks) - sign * 1e-12)

    # results

    def _result(self, one: Point, choice: Choice, seconds: dict[str, list[float]]) -> SearchResult:
        measurements = self.measurements
        values = measurements.quality.reference if choice.name == FP32.name else self.tried[one.picks][1]
        value = lookup(values, self.gate.path)
        if choice.name == FP32.name:
            plan = Plan({"*": FP32.name})
            noise = f"; too noisy to tell whether {' or '.join(choice.unclear)} is faster" if choice.unclear else ""
            sentence = f"plain fp32 is the fastest found within {self.gate.expr}{noise}"
        else:
            plan = measurements.plan(one.picks)
            shares = measurements.short(one.picks)
            alike = f"; {' and '.join(choice.alike)}, as fast as far as can be told, would lose more" if choice.alike else ""
            sentence = f"{shares}: {speed_text(choice.speed)}, {self.gate.path} {value:.4g} (budget {self.gate.expr}){alike}"
        evidence = {
            "sensitivity": {
                "metric": module_loss.ERROR if measurements.bundle.generation is None else module_loss.KL,
                "modules": measurements.sensitivities,
            },
            "search": [
                {"plan": measurements.short(p.picks), "quality": _numbers(metrics), "seconds": self.rest + p.cost, "loss": p.loss}
                for p, metrics in self.tried.values()
            ],
            "budget": {"expr": self.gate.expr, "value": value, "met": True},
            "timed": {name: statistics.median(found) for name, found in seconds.items()},
            "chosen": sentence,
            "inputs": self.work.count,
        }
        self.progress(f"auto: {sentence}")
        return SearchResult(plan, evidence, sentence)

    def _missed(self, costs: list[list[float]]) -> str:
        """The message where nothing is within the budget: it names the best plan."""
        known = [(v, one) for one, values in self.tried.values() if (v := lookup(values, self.gate.path)) is not None]
        own = lookup(self.measurements.quality.reference, self.gate.path)
        if not known:
            return f"--budget {self.gate.expr}: fp32 itself has {own:.4g}, and no faster plan was found; loosen the budget"
        value, one = min(known, key=lambda pair: (self._badness(pair[0]), pair[1].cost))
        whole = self.rest + sum(row[0] for row in costs)
        return (
            f"--budget {self.gate.expr}: no plan is within it; the best of {len(self.tried)} measured, "
            f"{self.measurements.short(one.picks)}, has {self.gate.path} {value:.4g} at {(self.rest + one.cost) / whole:.2f} of fp32's "
            f"predicted time, and fp32 itself {own:.4g}; loosen the budget"
        )

    def _badness(self, value: float) -> float:
        """Of two values the better one has less."""
        return abs(value - self.gate.number) if self.gate.op == "==" else value if self.gate.op in ("<=", "<") else -value


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def _measurable(values: dict[str, Any]) -> str:
    return "what can be a budget here: " + ", ".join(sorted(_numbers(values)))
