"""Gates on a report's metrics, `[VARIANT.]METRIC OP NUMBER`. A metric that was not measured fails its gate.

`bleu_drop<=0.5` asks for a loss of at most 0.5 as it was measured; `bleu_drop_ci.high<=0.5` for one that is at most 0.5 with 95% certainty,
chance counted against the variant; `bleu_drop_ci.low<=0` fails only when the loss is significant, chance counted for it.
"""

import difflib
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
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
    r"\s*(?P<path>(?:[\w.-]+/)?[A-Za-z_][\w-]*(?:\.[\w-]+)*)\s*(?P<op>>=|<=|==|>|<)\s*(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*"
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


def parse_gate(expr: str) -> Gate:
    """Raises UsageError, which shows the grammar, for anything that is not a gate."""
    match = _EXPRESSION.fullmatch(expr)
    if match is None:
        raise UsageError(f"{expr!r} is not a gate; expected {GRAMMAR}")
    return Gate(expr, match["path"], match["op"], float(match["number"]))


def evaluate(gates: Iterable[Gate], variants: Mapping[str, Mapping[str, Any]], reference: str) -> list[dict[str, Any]]:
    """One entry a gate: expr, value (of the worst variant; None if not measured), passed, values by variant, message (why it failed)."""
    return [_evaluate(gate, variants, reference) for gate in gates]


def _evaluate(gate: Gate, variants: Mapping[str, Mapping[str, Any]], reference: str) -> dict[str, Any]:
    named = [name for name in variants if gate.path.startswith(f"{name}.")]
    if named:  # a bundle's name in front of a variant's may hold dots
        longest = max(named, key=len)
        names, path = [longest], gate.path[len(longest) + 1 :]
    else:
        names, path = [name for name in variants if name != reference], gate.path
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
    top = sorted({head for metric in metrics if not (head := metric.partition(".")[0]).endswith(("_ci", "_change"))})
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
