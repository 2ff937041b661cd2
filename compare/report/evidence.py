"""What was learned when variants were made: sensitivity by module as a heat map, error by layer as lines, the search for a plan."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from onnxport.compare.report import format
from onnxport.compare.report.svg import COLORS, LETTER, Frame

STEPS = 7  # of the colour scale
METRICS = {
    "kl": "change of the next token's probabilities against fp32's (KL divergence)",
    "kl_divergence": "change of the next token's probabilities against fp32's (KL divergence)",
    "squared_relative_error": "squared relative error of the output",
    "relative_error": "relative error of the output",
    "max_abs_diff": "largest difference of the output",
}
_FACTS = {"expr": "budget", "value": "measured for this plan", "met": "within the budget"}
_OF_SEARCH = {"chosen": "chosen", "inputs": "inputs that plans were measured on"}
_LAYER = re.compile(r"(.*?(?:^|\.)[A-Za-z_]\w*\.\d+)(?:\.|$)(.*)")
_STACK = re.compile(r"(.*?)\.(\d+)$")
_PLAIN = frozenset({"transformer", "model", "layers", "layer", "block", "blocks", "h", "base_model"})  # words that tell nothing in a label
_BELOW = 62  # room for the names of stacks


def heat_maps(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A heat map for each variant that has sensitivities, equal ones shown once.

    Each: names (of the variants), metric, schemes, low and high (texts), groups: [{"layer", "rows": [{"module", "short", "cells": [{"step"
    (0 to STEPS - 1, None without a value), "text", "chosen" (by the plan)}]}]}], worst: [{"module", "scheme", "text"}], planned.
    """
    found: list[dict[str, Any]] = []
    seen: list[Any] = []
    for name, evidence in content.get("evidence", {}).items():
        sensitivity = evidence.get("sensitivity") or {}
        if not sensitivity.get("modules"):
            continue
        if sensitivity in seen:
            found[seen.index(sensitivity)]["names"].append(name)
            continue
        seen.append(sensitivity)
        found.append({"names": [name], **_heat_map(sensitivity, evidence.get("plan") or {})})
    return found


def _heat_map(sensitivity: Mapping[str, Any], plan: Mapping[str, Any]) -> dict[str, Any]:
    modules = sensitivity["modules"]
    schemes = list(dict.fromkeys(scheme for values in modules.values() for scheme in values))
    known = [v for values in modules.values() for v in values.values() if v is not None]
    positive = [v for v in known if v > 0]
    low, high = (min(positive), max(positive)) if positive else (1.0, 1.0)
    groups: dict[str, list[dict[str, Any]]] = {}
    for module in sorted(modules, key=_place(list(modules))):
        match = _LAYER.match(module)
        layer, short = (match[1], match[2] or module) if match else ("outside of layers", module)
        cells = [
            {"step": _step(modules[module].get(s), low, high), "text": _value(modules[module].get(s)), "chosen": _chosen(plan, module, s)}
            for s in schemes
        ]
        groups.setdefault(layer, []).append({"module": module, "short": re.split(r"(?<=[._])", short), "cells": cells})
    every = [(v, module, scheme) for module, values in modules.items() for scheme, v in values.items() if v is not None]
    worst = [{"module": module, "scheme": scheme, "text": _value(v)} for v, module, scheme in sorted(every, reverse=True)[:3]]
    metric = str(sensitivity.get("metric", "kl"))
    return {
        "metric": METRICS.get(metric, metric.replace("_", " ")),
        "schemes": schemes,
        "low": _value(low),
        "high": _value(high),
        "groups": [{"layer": layer, "rows": rows} for layer, rows in groups.items()],
        "worst": worst,
        "planned": any(cell["chosen"] for rows in groups.values() for row in rows for cell in row["cells"]),
    }


def _step(value: float | None, low: float, high: float) -> int | None:
    """On a scale of powers of ten: sensitivities of modules lie decades apart."""
    if value is None:
        return None
    if value <= low or high <= low:
        return 0
    return min(STEPS - 1, int(STEPS * math.log(value / low) / math.log(high / low)))


def _value(value: float | None) -> str:
    return format.MISSING if value is None else "0" if value == 0 else f"{value:.1e}" if abs(value) < 1e-4 else f"{value:.2g}"


def _chosen(plan: Mapping[str, Any], module: str, scheme: str) -> bool:
    """Whether the plan gave the module this scheme; a plan names weights, and the size of blocks with them.

    A module is all weights below its name; one that is measured in two graphs has the graph behind its name, `cross_attn (encoder)`.
    """
    name = module.partition(" (")[0]
    own = [str(plan[one]) for one in (name, f"{name}.weight") if one in plan] or [
        str(given) for weight, given in plan.items() if weight.startswith(f"{name}.")
    ]
    schemes = {one for given in own for one in given.split("+")}
    return any(one == scheme or re.fullmatch(re.escape(scheme) + r"\d+", one) for one in schemes)


def _place(modules: Sequence[str]) -> Callable[[str], tuple[Any, ...]]:
    """Where a module stands: outside of layers first, encoders next, then stacks as they come, layers by number, modules as they come."""
    order: dict[str, int] = {}
    for module in modules:
        order.setdefault(_layer(module)[0], len(order))

    def place(module: str) -> tuple[Any, ...]:
        stack, number = _layer(module)
        return bool(stack), "encoder" not in stack, order[stack], number

    return place


def _layer(module: str) -> tuple[str, int]:
    """The stack of layers that a module is in, and the layer's number; outside of layers the number is -1."""
    match = _LAYER.match(module)
    number = _STACK.match(match[1]) if match else None
    return (number[1], int(number[2])) if number else ("", -1)


def growth(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Error by layer: svg, layers, rows [{"name", "color", "cells"}] for print; None where no variant has any."""
    order = list(content["variants"])
    given = {name: e["layers"] for name, e in content.get("evidence", {}).items() if e.get("layers") and name in order}
    if not given:
        return None
    layers = list(dict.fromkeys(entry["name"] for entries in given.values() for entry in entries))
    errors = {name: {entry["name"]: entry["relative_error"] for entry in entries} for name, entries in given.items()}
    rows = [
        {"name": name, "color": order.index(name) % COLORS, "cells": [_value(values.get(layer)) for layer in layers]}
        for name, values in errors.items()
    ]
    return {"svg": _lines(layers, errors, order), "layers": [short(layer) for layer in layers], "rows": rows}


def _lines(layers: Sequence[str], errors: Mapping[str, Mapping[str, float | None]], order: Sequence[str]) -> str:
    known = [v for values in errors.values() for v in values.values() if v]
    if not known or len(layers) < 2:
        return ""
    low, high = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)) + 1e-9)
    high = max(high, low + 1)
    decades = range(low, high + 1)
    right = min(200, 24 + round(LETTER * max(map(len, errors))))
    frame = Frame([0.0, len(layers) - 1.0], list(decades), bottom=_BELOW, right=right)
    for value in decades:
        y = frame.y(value)
        frame.parts.append(f'<line class="grid" x1="{frame.left}" y1="{y:.1f}" x2="{frame.right}" y2="{y:.1f}"/>')
        frame.text(frame.left - 7, y + 4, f"{10**value * 100:g}%", "end")
    _ticks(frame, layers)
    ends: dict[str, float] = {}
    for name, values in errors.items():
        color = f"t{order.index(name) % COLORS}"
        placed = [(i, math.log10(v)) for i, layer in enumerate(layers) if (v := values.get(layer))]
        if not placed:
            continue
        path = "L".join(f"{frame.x(i):.1f} {frame.y(v):.1f}" for i, v in placed)
        frame.parts.append(f'<path class="line {color}" d="M{path}"/>')
        for i, v in placed:
            tip = escape(f"{name}, {layers[i]}: {_value(values[layers[i]])}")
            frame.parts.append(f'<circle class="{color}" cx="{frame.x(i):.1f}" cy="{frame.y(v):.1f}" r="3.5"><title>{tip}</title></circle>')
        ends[name] = placed[-1][1]
    frame.labels_beside(ends)
    return frame.svg("Relative error of each layer's output")


def _ticks(frame: Frame, layers: Sequence[str]) -> None:
    """Numbers of layers, the names of their stacks below, and a line between two stacks."""
    begun, stack = 0, _stack(layers[0])
    every = max(1, math.ceil(len(layers) / 16))
    for i, layer in enumerate([*layers, "\0"]):
        if i == len(layers) or _stack(layer) != stack:
            frame.text((frame.x(begun) + frame.x(i - 1)) / 2, frame.bottom + 36, stack or "layer", "middle", name=True)
            if i < len(layers):
                x = (frame.x(i - 1) + frame.x(i)) / 2
                frame.parts.append(f'<line class="grid" x1="{x:.1f}" y1="{frame.top}" x2="{x:.1f}" y2="{frame.bottom + 40}"/>')
            begun, stack = i, _stack(layer)
        if i < len(layers) and (i - begun) % every == 0:
            match = _STACK.match(layer)
            frame.text(frame.x(i), frame.bottom + 17, match[2] if match else short(layer), "middle")


def short(layer: str) -> str:
    """`encoder 3` of `transformer.encoder.layers.3`."""
    match = _STACK.match(layer)
    return f"{_stack(layer) or 'layer'} {match[2]}" if match else layer


def _stack(layer: str) -> str:
    match = _STACK.match(layer)
    return " ".join(part for part in (match[1] if match else layer).split(".") if part not in _PLAIN)


def searches(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How plans were looked for: name, facts [(what, text)] of the budget, and tried [{"plan", "quality", "ms"}], the fastest first."""
    found = []
    for name, evidence in content.get("evidence", {}).items():
        tried, budget = evidence.get("search") or [], evidence.get("budget") or {}
        if not tried and not budget:
            continue
        budget = budget if isinstance(budget, Mapping) else {"budget": budget}
        facts = [(_FACTS.get(key, key.replace("_", " ")), _told(value)) for key, value in budget.items() if value is not None]
        facts += [(what, _told(evidence[key])) for key, what in _OF_SEARCH.items() if evidence.get(key) is not None]
        metric = re.match(r"[\w.]*", str(budget.get("expr", "")))
        rows = [
            {
                "plan": _plan(one.get("plan")),
                "quality": _told(_of_metric(one.get("quality"), metric[0] if metric else "")),
                "ms": _milliseconds(one.get("seconds")),
            }
            for one in sorted(tried, key=lambda one: one.get("seconds") or math.inf)
        ]
        found.append({"name": name, "facts": facts, "tried": rows})
    return found


def _of_metric(quality: Any, metric: str) -> Any:
    """Of all that was measured of a plan what its budget is about, where that is told."""
    return {metric: quality[metric]} if isinstance(quality, Mapping) and metric in quality else quality


def _plan(plan: Any) -> str:
    """How many modules have each scheme."""
    if not isinstance(plan, Mapping):
        return str(plan)
    if len(plan) == 1:
        return str(next(iter(plan.values())))
    counts: dict[str, int] = {}
    for scheme in plan.values():
        counts[str(scheme)] = counts.get(str(scheme), 0) + 1
    return ", ".join(f"{count} {scheme}" for scheme, count in sorted(counts.items(), key=lambda item: -item[1]))


def _told(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_told(one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_told, value))
    return format.MISSING if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _milliseconds(seconds: float | None) -> str:
    return format.milliseconds(None if seconds is None else seconds * 1e3)
