"""`--precision auto`: what each module loses, what each scheme costs here, and the fastest plan within a budget, in this order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxport.compare.gates import Gate, lookup, parse_gate
from onnxport.compare.workload import Workload, workload
from onnxport.errors import GateError, UsageError
from onnxport.quantize import precisions
from onnxport.quantize.auto import module_loss, plan_quality
from onnxport.quantize.auto.knapsack import Picks, Point, isotonic, point, search
from onnxport.quantize.auto.measurements import ROUNDS, SECONDS, Measuring, Request, digest
from onnxport.quantize.calibration_inputs import FEW, Feeds, rest_of
from onnxport.quantize.plan import Plan
from onnxport.quantize.recipe import Graphs
from onnxport.runtime.bundle.reader import Bundle
from onnxport.runtime.bundle.writer import Staging

BUDGETS = {"encode": "cosine>=0.999", "run": "relative_error<=0.05"}  # of others: identical answers
BUDGET = "agreement>=0.98"
MOST_PLANS = 24  # that are measured
MOST_ROWS, MOST_TEXTS = 2000, 300  # that plans are measured on: pairs, and texts whose likelihood is


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
    work = _work(request, staging)
    gate = _gate(request.budget, work.method)
    found = Search(gate, request, staging, graphs, feeds, let_go, progress, work)
    chosen = found.run()
    found.memo.forget()
    return chosen


def _gate(budget: str | None, method: str) -> Gate:
    gate = parse_gate(budget or BUDGETS.get(method, BUDGET))
    return Gate(gate.expr, gate.path.removeprefix("auto."), gate.op, gate.number)


def _work(request: Request, staging: Staging) -> Workload:
    bundle = staging.preview()
    own = workload(bundle, None, None)
    if own.method == "run":
        if request.data is not None:
            raise UsageError("--data: plans of this bundle are measured on its golden inputs, for it answers no texts; leave --data out")
        return own
    if request.data is not None:
        return _read(bundle, request.data)
    _read(bundle, request.calibrate)  # what is wrong with the data is told by its own name
    rest = rest_of(request.calibrate, bundle, staging.path)
    try:
        return replace(_read(bundle, rest), name=request.calibrate.name)
    finally:
        rest.unlink()


def _read(bundle: Bundle, data: Path) -> Workload:
    found = workload(bundle, data, MOST_ROWS)
    likelihoods = found.beside is not None and found.owners is None
    return workload(bundle, data, MOST_TEXTS) if likelihoods else found


class Search(Measuring):
    """One search; `run` gives its result. gate: the budget; further arguments: see `Measuring`."""

    def __init__(self, gate: Gate, *given: Any) -> None:
        super().__init__(*given)
        self.gate = gate
        self.tried: dict[Picks, tuple[Point, dict[str, Any]]] = {}

    def run(self) -> Chosen:
        """All stages in order."""
        if len(self.memo):
            self.progress(f"go on with the search in {self.request.folder}: {len(self.memo)} measurements are there")
        self.progress(f"answer {self.work.count} inputs with fp32")
        reference = self.quality.reference
        if lookup(reference, self.gate.path) is None:
            raise UsageError(f"--budget {self.gate.expr}: {self.gate.path} is not measured on {self.work.name}; {_measurable(reference)}")
        if self.work.method == "run":
            self.progress(
                f"note: plans are measured on the bundle's own {self.work.count} golden inputs, not on {self.request.calibrate.name}"
            )
        elif self.work.count < FEW:
            self.progress(f"note: plans are measured on {self.work.count} inputs only; chance decides where differences are small")
        losses = self.losses()
        costs = self.costs()
        whole = self.seconds_of_fp32()
        self.rest = max(whole - sum(row[0] for row in costs), 0.0)
        uniform = {name: self.uniform(name) for name in self.schemes}
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

    def _timed(self, named: dict[str, Point]) -> dict[str, float]:
        """Seconds of an answer by what the plans are called here, in turn; fp32 is among them."""
        self.progress(f"time {', '.join(named)} in turn")
        plans = {f"auto-{name}": self.plan(one.picks) for name, one in named.items() if name != "fp32"}
        if not plans:
            return {"fp32": self.seconds_of_fp32()}
        with self.trials.made(plans) as bundle:
            budget = SECONDS * (len(plans) + 1)
            taken = plan_quality.seconds(bundle, ["fp32", *plans], self.work, self.batch, self.sessions, ROUNDS, budget)
        return {name.removeprefix("auto-"): value for name, value in taken.items()}

    # judging

    def _holds(self, one: Point) -> bool:
        self.tried[one.picks] = (one, {})
        plan = self.plan(one.picks)
        number = len(self.tried)

        def measured() -> dict[str, Any]:
            with self.trials.made({"auto-trial": plan}) as bundle:
                return self.quality.values(bundle, "auto-trial")

        name = digest(plan.dumps())
        before = ", measured before" if self.memo.knows("plans", name) else ""
        self.progress(f"plan {number}: {self.short(one.picks)}{before}")
        values = self.memo.get("plans", name, measured)
        self.tried[one.picks] = (one, values)
        holds = self._within(one)
        verdict = "within" if holds else "by chance within" if self._passes(values) else "not within"
        self.progress(f"plan {number}: {self._told(values)}, {verdict} {self.gate.expr}")
        return holds

    def _passes(self, values: dict[str, Any]) -> bool:
        value = lookup(values, self.gate.path)
        error = values.get("relative_error")
        return value is not None and self.gate.holds(value) and error is not None and error <= precisions.BOUNDS["auto"]["relative_error"]

    def _within(self, one: Point) -> bool:
        """Whether a plan that was tried holds; where chance moves the metric, by those that lose more and less too."""
        if not self._passes(self.tried[one.picks][1]):
            return False
        if self.gate.path.partition(".")[0] in plan_quality.EXACT or self.gate.op == "==":
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
            said = f"{self.short(one.picks)}: {faster:.2f} times as fast as fp32, {self.gate.path} {value:.4g} (budget {self.gate.expr})"
            plan = self.plan(one.picks)
        evidence = {
            "sensitivity": {
                "metric": module_loss.ERROR if self.bundle.generation is None else module_loss.KL,
                "modules": self.sensitivities,
            },
            "search": [
                {"plan": self.short(p.picks), "quality": _flat(found), "seconds": self.rest + p.cost, "loss": p.loss}
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
        known = [(v, one) for one, found in self.tried.values() if (v := lookup(found, self.gate.path)) is not None]
        own = lookup(self.quality.reference, self.gate.path)
        if not known:
            return f"--budget {self.gate.expr}: fp32 itself has {own:.4g}, and no faster plan was found; loosen the budget"
        value, one = min(known, key=lambda pair: (self._badness(pair[0]), pair[1].cost))
        whole = self.rest + sum(row[0] for row in costs)
        return (
            f"--budget {self.gate.expr}: no plan is within it; the best of {len(self.tried)} measured, {self.short(one.picks)}, has "
            f"{self.gate.path} {value:.4g} at {(self.rest + one.cost) / whole:.2f} of fp32's predicted time, and fp32 itself "
            f"{own:.4g}; loosen the budget"
        )

    def _badness(self, value: float) -> float:
        """Of two values the better one has less."""
        return abs(value - self.gate.number) if self.gate.op == "==" else value if self.gate.op in ("<=", "<") else -value

    def _told(self, values: dict[str, Any]) -> str:
        value = lookup(values, self.gate.path)
        return "not finite" if value is None else f"{self.gate.path} {value:.4g}"


def _flat(values: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def _measurable(values: dict[str, Any]) -> str:
    return "what can be a budget here: " + ", ".join(sorted(_flat(values)))
