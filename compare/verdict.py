"""The verdict on a variant, one sentence: what it costs, what it gains, and whether to deploy it. All rules are here.

What is said of speed rests on intervals, see `speed`; what is said of quality on the gates and tolerances that the user gave, else on a
test of non-inferiority.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxport.compare.gates import Gate, lookup, quality_of_gate
from onnxport.compare.metrics import METRICS, Metric, lead_metric, percent
from onnxport.compare.speed import Ratio, between

_SMALLER = 0.9
_AGREEING = {"agreement": 0.9, "cosine": 0.98}  # without references: the share of identical outputs, or mean cosine, to be recommended from
_ERRORS = {"relative_error": "relative error", "max_abs_diff": "largest difference"}
_NAMES = {"pytorch": "PyTorch"}
_ROUNDING = 1e-9
_MOST = 100  # times as much data: beyond that the sentence has no number
SPEED, SIZE, PLAIN = "speed", "size", "plain"  # what a variant is recommended for

Variants = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Recommendation:
    """name: the variant to deploy.  why: SPEED, SIZE, or PLAIN where no other gains enough.

    unclear: variants that keep the quality and might have been chosen, had their speed not been too noisy to tell.
    """

    name: str
    why: str
    unclear: tuple[str, ...] = ()


def recommend(variants: Variants, reference: str, accepted: Sequence[Gate] = ()) -> Recommendation:
    """Of the variants that keep the quality: one that is faster for certain, else a clearly smaller one that is not much slower.

    The plain variant has the fewest surprises: another must be clearly faster than it, or clearly smaller and fast enough.

    accepted: gates on quality that stand in the place of the built-in tolerances.
    """
    fit = [name for name in variants if name != "pytorch" and keeps_quality(name, variants, reference, accepted)]
    if not fit:
        return Recommendation(reference, PLAIN)
    plain = next((name for name in (reference, "fp32") if name in fit), fit[0])
    faster = [name for name in fit if between(variants, name, plain).faster]
    unbeaten = [name for name in faster if not any(between(variants, other, name).faster for other in faster)]
    first = next(iter(unbeaten or faster), plain)
    smaller = [name for name in fit if _size_of(variants, name) < _SMALLER * _size_of(variants, first)]
    enough = [name for name in smaller if between(variants, name, first).fast_enough]
    chosen = min(enough, key=lambda name: _size_of(variants, name), default=first)
    why = SPEED if chosen in faster else PLAIN if chosen == plain else SIZE
    unclear = [name for name in fit if name not in faster and between(variants, name, plain).faster is None]
    unclear += [name for name in smaller if between(variants, name, first).fast_enough is None]
    return Recommendation(chosen, why, tuple(dict.fromkeys(name for name in unclear if not _settled(name, variants, chosen))))


def _settled(name: str, variants: Variants, chosen: str) -> bool:
    """Whether no speed that a variant may have would choose it: it is what was chosen, or that is faster for certain and no larger."""
    if name == chosen:
        return True
    return bool(between(variants, chosen, name).faster) and _size_of(variants, chosen) <= _size_of(variants, name)


def verdicts(variants: Variants, reference: str, noun: str = "inputs", accepted: Sequence[Gate] = ()) -> dict[str, str]:
    """variant -> sentence. noun: what the data's inputs are, such as "pairs".  accepted: see `recommend`."""
    recommended = recommend(variants, reference, accepted)
    return {name: _sentence(name, variants, reference, recommended, noun, accepted) for name in variants}


def _size_of(variants: Variants, name: str) -> float:
    """Bytes; infinite where they are not known, so that it is never the smaller one."""
    return variants[name].get("size_bytes") or math.inf


def significant(own: Mapping[str, Any], metric: Metric) -> bool | None:
    """Whether the interval of a metric's drop leaves 0 out; None where there is no interval."""
    interval = own.get(f"{metric.name}_drop_ci")
    return None if interval is None else not interval["low"] <= 0 <= interval["high"]


def _sentence(name: str, variants: Variants, reference: str, recommended: Recommendation, noun: str, accepted: Sequence[Gate]) -> str:
    own, base = variants[name], variants[reference]
    if name == reference:
        return _of_reference(name, variants, recommended)
    parts = [speed_text(between(variants, name, reference), reference), _size(own), _quality(own, base, noun), _sameness(own)]
    return ", ".join(part for part in parts if part) + ": " + _advice(name, variants, reference, recommended, noun, accepted)


def _of_reference(name: str, variants: Variants, recommended: Recommendation) -> str:
    metric = lead_metric(variants[name])
    text = "the reference" + (f" ({metric.label} {metric.number(variants[name][metric.name])})" if metric else "")
    if name == "pytorch":
        return f"{text}: the original model in PyTorch"
    if len(variants) == 1:
        return f"{text}: nothing else was measured, so nothing can be recommended"
    if name != recommended.name:
        return text
    if recommended.unclear:
        return f"{text}: the one to deploy here, for it is {too_noisy(recommended.unclear)}; measure again on a quiet machine"
    return f"{text}: the one to deploy here, for no other variant gains enough at its quality"


def too_noisy(unclear: Sequence[str]) -> str:
    """What cannot be told of variants whose speed is unclear."""
    verb = "gains" if len(unclear) == 1 else "gain"
    return f"too noisy to tell whether {', '.join(unclear)} {verb} enough"


def _advice(name: str, variants: Variants, reference: str, recommended: Recommendation, noun: str, accepted: Sequence[Gate]) -> str:
    own = variants[name]
    if name == recommended.name:
        return "the one to deploy here" + (", for its size" if recommended.why == SIZE else "")
    if name == "pytorch":
        return "the original model in PyTorch"
    if not keeps_quality(name, variants, reference, accepted):
        return _loses(name, variants, reference, noun, accepted)
    if name in recommended.unclear:
        return "too noisy to tell whether it gains enough; measure again on a quiet machine"
    against = between(variants, name, reference)
    smaller = own["size_ratio"] is not None and own["size_ratio"] < _SMALLER
    if against.faster:
        return f"a sound choice, but {recommended.name} does better here"
    if smaller and against.fast_enough:
        return f"a sound choice for its size, but {recommended.name} does better here"
    if against.faster is None:  # its own speed is not clear, but that another is better is
        return f"{recommended.name} does better here"
    if not smaller:
        return f"no gain on this {_device(own)}"
    return f"on this {_device(own)} it saves disk, not time"


def _loses(name: str, variants: Variants, reference: str, noun: str, accepted: Sequence[Gate]) -> str:
    """Why a variant does not keep the quality."""
    own, base = variants[name], variants[reference]
    if rules := _rules(name, variants, reference, accepted):
        broken = [(gate.expr, "not measured" if value is None else f"{value:.4g}") for gate, value in rules if not _holds(gate, value)]
        return f"its quality is not what is accepted: {', '.join(f'{expr} ({value})' for expr, value in broken)}"
    metric = lead_metric(own)
    if metric is None and _same(own) is None and _within(own) is None:
        return "nothing tells whether its answers are right, so it cannot be recommended"
    if (unsure := _unsure(own, base, noun)) is not None:
        return unsure
    if metric is not None and significant(own, metric) is False:
        return "its loss may be chance but is too large to deploy on: measure on more data"
    return "it loses too much to replace the reference"


def keeps_quality(name: str, variants: Variants, reference: str, accepted: Sequence[Gate] = ()) -> bool:
    """Whether what is accepted holds for a variant; where nothing is said of it, by the first that was measured: quality, sameness, the
    bounds of the golden answers. What nothing tells of is never recommended.

    Unless told otherwise, quality is kept when the loss is within the tolerance and so is the upper end of its 95% interval, where there is
    one: a test of non-inferiority, which only data can pass. Little data proves little, and the plain variant is then what is recommended.
    """
    own, base = variants[name], variants[reference]
    if name == reference:
        return True
    if rules := _rules(name, variants, reference, accepted):
        return all(_holds(gate, value) for gate, value in rules)
    metric = lead_metric(own)
    if metric is not None and own.get(f"{metric.name}_drop") is not None:
        limit = metric.limit(base[metric.name])
        return bool(own[f"{metric.name}_drop"] <= limit and _most_lost(own, metric) <= limit + _ROUNDING)
    same = _same(own)
    return _within(own) is True if same is None else same


def _rules(name: str, variants: Variants, reference: str, accepted: Sequence[Gate]) -> list[tuple[Gate, float | None]]:
    """The accepted gates on quality that hold for a variant, with its values."""
    found = []
    for gate in accepted:
        named, path = gate.split(variants)
        if quality_of_gate(path, METRICS) and (named == name or (named is None and name != reference)):
            found.append((gate, lookup(variants[name], path)))
    return found


def _holds(gate: Gate, value: float | None) -> bool:
    return value is not None and gate.holds(value)


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


def speed_text(ratio: Ratio, reference: str) -> str:
    """How fast a variant is against the reference, with the interval; that it is too noisy to tell where the interval says too little."""
    base = _NAMES.get(reference, reference)
    if ratio.low is None or ratio.high is None:
        return f"too few runs to tell whether it is faster than {base}"
    ends = f"{_factor(ratio.low)} to {_factor(ratio.high)}"
    if ratio.faster is False and ratio.as_fast:
        return f"about as fast as {base} ({ends} times)"
    if ratio.low < 1 < ratio.high:
        return f"too noisy to tell whether it is faster than {base} ({ends} times as fast)"
    return f"{_factor(ratio.ratio)} times as fast as {base} ({ends})"


def _factor(value: float) -> str:
    return f"{value:.1f}" if value >= 1.95 else f"{value:.2f}"


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
        return "all answers identical" if own["agreement"] == 1 else f"{percent(own['agreement'])} of the answers identical"
    if own.get("cosine") is not None:
        return f"cosine to the reference {own['cosine']:.4f}"
    if _within(own) is None:
        return "" if lead_metric(own) else "quality and agreement not measured"
    parity = own["parity"]
    errors = [f"{label} {parity[name]:.1e}" for name, label in _ERRORS.items() if parity.get(name) is not None]
    return f"golden answers {'within' if _within(own) else 'outside'} the bounds recorded at export ({', '.join(errors)})"


def _device(own: Mapping[str, Any]) -> str:
    return "GPU" if own.get("device") == "cuda" else "CPU"
