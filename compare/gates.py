"""Gates on a report's metrics, `[VARIANT.]METRIC OP NUMBER`. A metric that was not measured fails its gate.

`bleu_drop<=0.5` asks for a loss of at most 0.5 as it was measured; `bleu_drop_ci.high<=0.5` for one that is at most 0.5 with 95% certainty,
chance counted against the variant; `bleu_drop_ci.low<=0` fails only when the loss is significant, chance counted for it.
"""

import difflib
import math
import operator
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from onnxport.errors import UsageError

GRAMMAR = "[VARIANT.]METRIC OP NUMBER with OP one of >= <= > < ==, for example int8.speedup>=1.5, bleu_drop<=0.5 or bleu_drop_ci.low<=0"
_OPS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
_EXPRESSION = re.compile(
    r"\s*(?P<path>(?:[\w.-]+/)?[A-Za-z_][\w+@-]*(?:\.[\w-]+)*)\s*(?P<op>>=|<=|==|>|<)\s*(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*"
)


@dataclass(frozen=True)
class Gate:
    """One parsed expression. `path` may begin with a variant: only the report knows which names are variants."""

    expr: str
    path: str
    op: str
    number: float

    def holds(self, value: float) -> bool:
        """Whether `value` passes, in the metric's own unit."""
        return _OPS[self.op](value, self.number)

    def split(self, variants: Iterable[str]) -> tuple[str | None, str]:
        """The variant that is named, None for all but the reference, and the path within it. A bundle's name before it may hold dots."""
        named = max((name for name in variants if self.path.startswith(f"{name}.")), key=len, default=None)
        return named, self.path if named is None else self.path[len(named) + 1 :]


def parse_gate(expr: str) -> Gate:
    """Raises UsageError, which shows the grammar, for anything that is not a gate."""
    match = _EXPRESSION.fullmatch(expr)
    if match is None:
        raise UsageError(f"{expr!r} is not a gate; expected {GRAMMAR}")
    return Gate(expr, match["path"], match["op"], float(match["number"]))


_PLAIN = frozenset(
    "size_bytes size_ratio import_ms load_ms first_output_ms latency_samples throughput speedup data_throughput peak_rss_bytes cpu_share "
    "max_abs_diff agreement tokens_per_pass acceptance".split()
)
_NESTED = {
    "latency_ms": ("p50", "p90", "p99"),
    "speedup_ci": ("low", "high"),
    "speedup_spread": ("low", "high"),
    "energy": ("joules_per_unit",),
    "first_difference": ("count", "median"),
}
_OPEN = ("throughput_by_batch", "speedup_by_batch", "speed_against", "parity", "change")  # anything may stand below
_OF_INTERVALS = ("low", "high", "p", "n")


def refuse_unknown(gates: Iterable[Gate], variants: Collection[str], quality: Collection[str], has_baseline: bool) -> None:
    """Refuses gates that can never be measured: UsageError for the name of no variant and no metric, so that nobody waits for it.

    variants: those of this comparison.  quality: names of the measures of quality, as `metrics.METRICS`.  A metric that is known and turns
    out not to be measured, of data without references for example, fails its gate in the end instead.
    """
    for gate in gates:
        named, path = gate.split(variants)
        if _known(path, quality, has_baseline):
            continue
        if path.endswith("_change") and not has_baseline:
            raise UsageError(f"{gate.expr}: {path} is the change since an earlier report; give it with --baseline")
        names = _known_names(quality)
        close = difflib.get_close_matches(gate.path, [*names, *(f"{name}.{metric}" for name in variants for metric in names)], n=1)
        hint = f"did you mean {close[0]}?" if close else f"variants: {', '.join(variants)}; metrics: {', '.join(names)}"
        what = f"{path!r} is no metric" if named is not None or "." not in path else f"{path!r} names no variant and no metric"
        raise UsageError(f"gate {gate.expr!r}: {what} of this comparison; {hint}")


def quality_of_gate(path: str, quality: Collection[str]) -> bool:
    """Whether a path without variant is of a measure of quality: one of `quality`, its loss, interval or change, sameness, or errors."""
    head = path.partition(".")[0].removesuffix("_change").removesuffix("_ci").removesuffix("_drop")
    return head in quality or head in ("agreement", "max_abs_diff", "parity")


def _known(path: str, quality: Collection[str], has_baseline: bool) -> bool:
    head, _, rest = path.partition(".")
    if not rest:
        of_change = has_baseline and head.endswith("_change")
        return head in _PLAIN or head.removesuffix("_drop") in quality or of_change
    if head.removesuffix("_drop_ci") in quality and head.endswith("_drop_ci"):
        return rest in _OF_INTERVALS
    return head in _OPEN or rest in _NESTED.get(head, ()) or (head == "first_difference" and rest.startswith("histogram."))


def _known_names(quality: Collection[str]) -> list[str]:
    nested = [f"{head}.{rest}" for head, all_rest in _NESTED.items() for rest in all_rest]
    return sorted([*_PLAIN, *nested, *quality, *(f"{name}_drop" for name in quality)])


def evaluate(gates: Iterable[Gate], variants: Mapping[str, Mapping[str, Any]], reference: str) -> list[dict[str, Any]]:
    """One entry a gate: expr, value (of the worst variant; None if not measured), passed, values by variant, message (why it failed)."""
    return [_evaluate(gate, variants, reference) for gate in gates]


def _evaluate(gate: Gate, variants: Mapping[str, Mapping[str, Any]], reference: str) -> dict[str, Any]:
    named, path = gate.split(variants)
    names = [name for name in variants if name != reference] if named is None else [named]
    measured = {name: number for name in names if (number := lookup(variants[name], path)) is not None}
    values = {name: measured.get(name) for name in names}
    missing = [name for name in names if name not in measured]
    failing = [name for name, number in measured.items() if not gate.holds(number)]
    message, value = "", None
    if not names:
        message = f"no variant but the reference {reference} was measured, so nothing was checked; compare at least two"
    elif missing:
        message = f"{path} was not measured for {', '.join(missing)}{_suggestion(gate.path, variants)}"
    else:
        worst = min if gate.op in (">=", ">") else max
        value = measured[failing[0]] if gate.op == "==" and failing else worst(measured.values())
        if failing:
            message = "; ".join(f"{name} has {measured[name]:.6g}" for name in failing) + f", expected {gate.op} {gate.number:g}"
    return {"expr": gate.expr, "value": value, "passed": not message, "values": values, "message": message}


def lookup(metrics: Mapping[str, Any], path: str) -> float | None:
    """The finite number at a dotted path, or None."""
    value: Any = metrics
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        return None
    return number if math.isfinite(number) else None


def _suggestion(path: str, variants: Mapping[str, Mapping[str, Any]]) -> str:
    """The end of a message on a metric that was not measured: one with a close name, or all that were."""
    metrics = sorted({metric for values in variants.values() for metric in _paths(values)})
    known = metrics + [f"{name}.{metric}" for name, values in variants.items() for metric in _paths(values)]
    close = difflib.get_close_matches(path, known, n=1, cutoff=0.6)
    if close and close[0] != path:
        return f"; did you mean {close[0]}?"
    top = sorted({head for metric in metrics if not (head := metric.partition(".")[0]).endswith(("_ci", "_change", "_against", "_spread"))})
    return f"; measured: {', '.join(top)}" if top else ""


def _paths(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted paths of all numbers in `values`."""
    paths = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            paths += _paths(value, f"{prefix}{name}.")
        elif lookup(values, name) is not None:
            paths.append(prefix + name)
    return paths
