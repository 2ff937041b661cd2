"""An earlier report as a baseline: the changes since, and what makes the two measurements differ."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxport.compare.gates import lookup
from onnxport.compare.metrics import METRICS
from onnxport.errors import DataError
from onnxport.files import MOST, read_regular

_RELATIVE = (
    "throughput",
    "speedup",
    "latency_ms.p50",
    "latency_ms.p90",
    "load_ms",
    "first_output_ms",
    "peak_rss_bytes",
    "size_bytes",
    "energy.joules_per_unit",
)
_ABSOLUTE = (*METRICS, "agreement")
_CONDITIONS = {  # of a measurement: path in the report -> what a sentence calls it
    "bundle": "bundle",
    "task": "task",
    "reference": "reference",
    "data.name": "data",
    "data.count": "number of inputs",
    "machine.cpu": "processor",
    "machine.available_cpus": "CPUs granted",
    "method.threads": "threads",
    "method.batches": "batch sizes",
}


def read_baseline(path: str | Path) -> dict[str, Any]:
    """A report.json (or the folder that holds one). Raises DataError."""
    path = Path(path)
    path = path / "report.json" if path.is_dir() else path
    expected = "expected a report.json of an earlier comparison"
    try:
        report = json.loads(read_regular(path, MOST).decode("utf-8"))
    except OSError as error:
        raise DataError(f"{path}: the baseline cannot be read ({error.strerror}); {expected}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: the baseline is not valid JSON ({error}); {expected}") from None
    variants = report.get("variants") if isinstance(report, dict) else None
    if not isinstance(variants, dict) or not all(isinstance(values, dict) for values in variants.values()):
        raise DataError(f"{path}: the baseline has no 'variants'; {expected}")
    return dict(report)


def changes(values: Mapping[str, Any], earlier: Mapping[str, Any]) -> dict[str, float]:
    """Changes of the metrics that both hold, by name with dots as underscores.

    Those of speed, time and size are relative (0.1 is 10% more); those of quality are differences.
    """
    changed = {}
    for name in (*_RELATIVE, *_ABSOLUTE):
        now, then = lookup(values, name), lookup(earlier, name)
        if now is None or then is None or (name in _RELATIVE and not then):
            continue
        changed[name.replace(".", "_")] = now / then - 1 if name in _RELATIVE else now - then
    return changed


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Sentences on what makes a baseline another measurement than this one: bundle, task, data, reference, machine, threads, batch sizes.

    now: the same fields of this report.
    """
    sentences = []
    for place, what in _CONDITIONS.items():
        then, here = _at(earlier, place), _at(now, place)
        if then is not None and then != here:
            sentences.append(f"{what} {_shown(then)}, here {_shown(here)}")
    if not sentences:
        return []
    return [f"The baseline is another measurement: {'; '.join(sentences)}. What changed since is not the variants' doing alone."]


def _at(report: Mapping[str, Any], place: str) -> Any:
    value: Any = report
    for part in place.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
