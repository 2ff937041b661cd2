"""Searches for plans: what their budget was, and what each plan that was tried gave."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnxport.compare.report import format

_BUDGET = {"expr": "budget", "value": "measured for this plan", "met": "within the budget"}
_OUTCOME = {"chosen": "chosen", "inputs": "inputs that plans were measured on"}


@dataclass(frozen=True)
class TriedPlan:
    """A plan that was measured, its quality, and the milliseconds of an answer, as texts."""

    plan: str
    quality: str
    ms: str


@dataclass(frozen=True)
class Search:
    """The search for a variant's plan. facts: (label, text).  tried: the fastest first."""

    name: str
    facts: list[tuple[str, str]]
    tried: list[TriedPlan]


def searches(content: Mapping[str, Any]) -> list[Search]:
    """The searches of all variants whose plan was searched for."""
    every = []
    for name, evidence in content.get("evidence", {}).items():
        tried, budget = evidence.get("search") or [], evidence.get("budget") or {}
        if not tried and not budget:
            continue
        budget = budget if isinstance(budget, Mapping) else {"budget": budget}
        facts = [(_BUDGET.get(key, key.replace("_", " ")), _text(value)) for key, value in budget.items() if value is not None]
        facts += [(label, _text(evidence[key])) for key, label in _OUTCOME.items() if evidence.get(key) is not None]
        metric = re.match(r"[\w.]*", str(budget.get("expr", "")))
        plans = [
            TriedPlan(
                _plan(one.get("plan")),
                _text(_of_metric(one.get("quality"), metric[0] if metric else "")),
                format.milliseconds(None if one.get("seconds") is None else one["seconds"] * 1e3),
            )
            for one in sorted(tried, key=lambda one: one.get("seconds") or math.inf)
        ]
        every.append(Search(name, facts, plans))
    return every


def _of_metric(quality: Any, metric: str) -> Any:
    """The metric that the budget is about, alone, where it is among those of a plan; else all that was measured."""
    return {metric: quality[metric]} if isinstance(quality, Mapping) and metric in quality else quality


def _plan(plan: Any) -> str:
    """A plan in short: how many modules have each scheme."""
    if not isinstance(plan, Mapping):
        return str(plan)
    if len(plan) == 1:
        return str(next(iter(plan.values())))
    counts: dict[str, int] = {}
    for scheme in plan.values():
        counts[str(scheme)] = counts.get(str(scheme), 0) + 1
    return ", ".join(f"{count} {scheme}" for scheme, count in sorted(counts.items(), key=lambda item: -item[1]))


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return format.MISSING if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
