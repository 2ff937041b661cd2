"""The verdict on a variant, one sentence: what it costs, what it gains, and whether to deploy it. All rules are here."""

import math
from collections.abc import Mapping
from typing import Any

from onnxport.compare.metrics import Metric, lead_metric

_ALIKE = 0.07  # speeds closer than this are called the same: repeated runs on shared machines differ by as much
_SMALLER = 0.9
_AGREEING = {"agreement": 0.9, "cosine": 0.98}  # without references: the share of identical outputs, or mean cosine, to be recommended from
_ERRORS = {"relative_error": "relative error", "max_abs_diff": "largest difference"}
_NAMES = {"pytorch": "PyTorch"}
_ROUNDING = 1e-9
_MOST = 100  # times as much data: beyond that the sentence has no number


def best(variants: Mapping[str, Mapping[str, Any]], reference: str) -> str:
    """The variant to deploy: the fastest of those that keep the quality, or a clearly smaller one that is as fast."""
    fit = {name: v for name, v in variants.items() if name != "pytorch" and _keeps_quality(v, variants[reference], name == reference)}
    if not fit:
        return reference
    fastest = max(v["throughput"] for v in fit.values())
    alike = {name: v for name, v in fit.items() if v["throughput"] >= fastest * (1 - _ALIKE)}
    first = max(alike, key=lambda name: alike[name]["throughput"])
    smallest = min(alike, key=lambda name: alike[name]["size_bytes"] or 0)
    # The plain variant has the fewest surprises: another must be clearly faster or clearly smaller.
    plain = reference if reference in alike and reference != "pytorch" else first
    return smallest if (alike[smallest]["size_bytes"] or 0) < _SMALLER * (alike[plain]["size_bytes"] or 0) else plain


def verdicts(variants: Mapping[str, Mapping[str, Any]], reference: str, noun: str = "inputs") -> dict[str, str]:
    """variant -> sentence. noun: what the data's inputs are, such as "pairs"."""
    recommended = best(variants, reference)
    return {name: _sentence(name, variants, reference, recommended, noun) for name in variants}


def significant(own: Mapping[str, Any], metric: Metric) -> bool | None:
    """Whether the interval of a metric's drop leaves 0 out; None where there is no interval."""
    interval = own.get(f"{metric.name}_drop_ci")
    return None if interval is None else not interval["low"] <= 0 <= interval["high"]


def _sentence(name: str, variants: Mapping[str, Mapping[str, Any]], reference: str, recommended: str, noun: str) -> str:
    own, base = variants[name], variants[reference]
    if name == reference:
        metric = lead_metric(own)
        text = "the reference" + (f" ({metric.label} {metric.number(own[metric.name])})" if metric else "")
        if name == "pytorch":
            return f"{text}: the original model in PyTorch"
        if len(variants) == 1:
            return f"{text}: nothing else was measured, so nothing can be recommended"
        return f"{text}: the one to deploy here, for no other variant gains enough at its quality" if name == recommended else text
    parts = [_speed(own, reference), _size(own), _quality(own, base, noun), _sameness(own)]
    return ", ".join(part for part in parts if part) + ": " + _advice(name, own, base, recommended, noun)


def _advice(name: str, own: Mapping[str, Any], base: Mapping[str, Any], recommended: str, noun: str) -> str:
    if name == recommended:
        return "the one to deploy here"
    if name == "pytorch":
        return "the original model in PyTorch"
    if not _keeps_quality(own, base, False):
        metric = lead_metric(own)
        if metric is None and _same(own) is None and _within(own) is None:
            return "nothing tells whether its answers are right, so it cannot be recommended"
        if (unsure := _unsure(own, base, noun)) is not None:
            return unsure
        if metric is not None and significant(own, metric) is False:
            return "its loss may be chance but is too large to deploy on: measure on more data"
        return "it loses too much to replace the reference"
    slower = own["speedup"] < 1 + _ALIKE
    smaller = own["size_ratio"] is not None and own["size_ratio"] < _SMALLER
    if slower and smaller:
        return f"on this {_device(own)} it saves disk, not time"
    if slower:
        return f"no gain on this {_device(own)}"
    return f"a sound choice, but {recommended} does better here"


def _keeps_quality(own: Mapping[str, Any], base: Mapping[str, Any], is_reference: bool) -> bool:
    """By the first that was measured: quality, sameness, the bounds of the golden answers. What nothing tells of is never recommended.

    Quality is kept when the loss is within the tolerance and so is the upper end of its 95% interval, where there is one: a test of
    non-inferiority, which only data can pass. Little data proves little, and the plain variants are then what is recommended.
    """
    metric = lead_metric(own)
    if is_reference:
        return True
    if metric is not None and own.get(f"{metric.name}_drop") is not None:
        limit = metric.limit(base[metric.name])
        return bool(own[f"{metric.name}_drop"] <= limit and _most_lost(own, metric) <= limit + _ROUNDING)
    same = _same(own)
    return _within(own) is True if same is None else same


def _most_lost(own: Mapping[str, Any], metric: Metric) -> float:
    """The upper end of the interval of a loss; the loss itself where there is no interval."""
    interval = own.get(f"{metric.name}_drop_ci")
    return float(own[f"{metric.name}_drop"] if interval is None else interval["high"])


def _unsure(own: Mapping[str, Any], base: Mapping[str, Any], noun: str) -> str | None:
    """What to do where the loss is within the tolerance but its interval is not; None elsewhere."""
    metric = lead_metric(own)
    if metric is None or own.get(f"{metric.name}_drop") is None:
        return None
    lost, most, limit = own[f"{metric.name}_drop"], _most_lost(own, metric), metric.limit(base[metric.name])
    if lost > limit or most <= limit + _ROUNDING:
        return None
    # The half-width of an interval shrinks with the root of the number of inputs.
    factor = ((most - lost) / (limit - lost)) ** 2 if lost < limit else math.inf
    wanted = own[f"{metric.name}_drop_ci"]["n"] * factor
    more = f"about {_round_up(wanted):,} {noun}" if factor <= _MOST else f"many more {noun}"
    return (
        f"not recommended on this data, for its loss may be as large as {metric.number(most, finer=1)}{metric.unit} and more than "
        f"{metric.number(limit, finer=1)}{metric.unit} is too much; measure on {more} to be sure"
    )


def _round_up(value: float) -> int:
    """To two digits."""
    step: int = 10 ** max(0, math.floor(math.log10(value)) - 1)
    return math.ceil(value / step) * step


def _same(own: Mapping[str, Any]) -> bool | None:
    """Whether agreement, or the cosine of vectors, is high enough; None where neither was measured."""
    return next((own[name] >= least for name, least in _AGREEING.items() if own.get(name) is not None), None)


def _within(own: Mapping[str, Any]) -> bool | None:
    """Whether the golden answers were reproduced within the bounds recorded at export; None where that was not measured."""
    within: bool | None = (own.get("parity") or {}).get("within_bounds")
    return within


def _speed(own: Mapping[str, Any], reference: str) -> str:
    base, ratio = _NAMES.get(reference, reference), own["speedup"]
    if abs(ratio - 1) <= _ALIKE:
        return f"about as fast as {base}"
    return f"{ratio:.1f} times as fast as {base}" if ratio >= 1.1 else f"{ratio:.2f} times as fast as {base}"


def _size(own: Mapping[str, Any]) -> str:
    ratio = own["size_ratio"]
    if ratio is None:
        return ""
    return f"{ratio:.2f} of its size" if ratio < 1.1 else f"{ratio:.1f} times its size"


def _quality(own: Mapping[str, Any], base: Mapping[str, Any], noun: str) -> str:
    metric = lead_metric(own)
    if metric is None or base.get(metric.name) is None:
        return ""
    value, other = (metric.number(values[metric.name]) for values in (own, base))
    if value == other:
        return f"the same {metric.label} ({value})"
    change = own[metric.name] - base[metric.name]
    text = f"{metric.label} {metric.number(abs(change))} {'higher' if change > 0 else 'lower'} ({value} against {other}"
    return text + _chance(metric, own, noun) + ")"


def _chance(metric: Metric, own: Mapping[str, Any], noun: str) -> str:
    """The interval of the change that the sentence tells, and whether chance alone explains it."""
    interval = own.get(f"{metric.name}_drop_ci")
    if interval is None:
        return ""
    ends = (interval["low"], interval["high"]) if own[f"{metric.name}_drop"] > 0 else (-interval["high"], -interval["low"])
    low, high = map(metric.number, ends)
    words = "95% interval" if significant(own, metric) else "within chance:"
    return f"; {words} {low} to {high} on {interval['n']} {noun}"


def _sameness(own: Mapping[str, Any]) -> str:
    if own.get("agreement") is not None:
        return "all answers identical" if own["agreement"] == 1 else f"{int(own['agreement'] * 1000) / 10:g}% of the answers identical"
    if own.get("cosine") is not None:
        return f"cosine to the reference {own['cosine']:.4f}"
    if _within(own) is None:
        return "" if lead_metric(own) else "quality and agreement not measured"
    parity = own["parity"]
    errors = [f"{label} {parity[name]:.1e}" for name, label in _ERRORS.items() if parity.get(name) is not None]
    return f"golden answers {'within' if _within(own) else 'outside'} the bounds recorded at export ({', '.join(errors)})"


def _device(own: Mapping[str, Any]) -> str:
    return "GPU" if own.get("device") == "cuda" else "CPU"
