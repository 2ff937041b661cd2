"""Numbers as people read them, and the rows of a report's main table; shared by terminal, Markdown and HTML."""

from collections.abc import Mapping
from typing import Any

from onnxport.compare.metrics import LABELS, QUALITY

MISSING = "–"


def megabytes(count: float | None) -> str:
    """Bytes as MB (10^6) with three digits."""
    return MISSING if count is None else f"{significant(count / 1e6)} MB"


def significant(value: float) -> str:
    """Three digits that matter, thousands with commas."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def milliseconds(value: float | None) -> str:
    """Milliseconds with three digits."""
    return MISSING if value is None else f"{significant(value)} ms"


def percent(value: float | None) -> str:
    """A share as percent; never rounded up to 100%, which would hide a difference."""
    return MISSING if value is None else f"{int(value * 1000) / 10:g}%"


def times(value: float | None) -> str:
    """A ratio: 2.10×."""
    return MISSING if value is None else f"{value:.2f}×" if value < 10 else f"{significant(value)}×"


def scientific(value: float | None) -> str:
    """Two digits and a power of ten."""
    return MISSING if value is None else f"{value:.1e}"


def quality_names(content: Mapping[str, Any]) -> list[str]:
    """Quality metrics that at least one variant has."""
    return [name for name in QUALITY if any(name in values for values in content["variants"].values())]


def heading(name: str) -> str:
    """A quality metric's label at the head of a column: names that have capitals of their own keep them."""
    label = LABELS[name]
    return label.capitalize() if label.islower() else label


def quality(name: str, value: float | None) -> str:
    """A quality metric as people write it: BLEU, chrF and perplexity as numbers, shares as percent."""
    if value is None:
        return MISSING
    return f"{value:.2f}" if name in ("bleu", "chrf", "perplexity") else percent(value)


def columns(content: Mapping[str, Any]) -> list[str]:
    """Headings that go with `rows`."""
    unit = content["method"]["unit"]
    names = [heading(name) for name in quality_names(content)]
    same = [heading for key, heading in (("agreement", "Same answers"), ("cosine", "Cosine")) if _any(content, key)]
    batches = [unit if unit == "calls/s" else f"{unit} (batch {batch})" for batch in content["method"]["batches"]]
    return [
        "Variant",
        "Size",
        "Relative size",
        *batches,
        "Speed-up",
        "Latency p50",
        "Latency p99",
        "First answer",
        "Peak memory",
        *names,
        *same,
        "Max. difference",
    ]


def rows(content: Mapping[str, Any]) -> list[list[str]]:
    """One row of texts a variant, in the report's order."""
    found = []
    for name, values in content["variants"].items():
        latency = values["latency_ms"]
        row = [name, megabytes(values.get("size_bytes")), times(values.get("size_ratio"))]
        row += [significant(values["throughput_by_batch"][str(batch)]) for batch in content["method"]["batches"]]
        row += [times(values["speedup"]), milliseconds(latency["p50"]), milliseconds(latency["p99"])]
        row += [milliseconds(values["first_output_ms"]), megabytes(values["peak_rss_bytes"])]
        row += [quality(metric, values.get(metric)) for metric in quality_names(content)]
        row += [percent(values.get("agreement"))] if _any(content, "agreement") else []
        row += [f"{values['cosine']:.4f}" if "cosine" in values else MISSING] if _any(content, "cosine") else []
        found.append([*row, scientific(values.get("max_abs_diff"))])
    return found


def lines(content: Mapping[str, Any]) -> list[list[str]]:
    """The table turned: a line a metric, a column a variant, which fits narrow screens."""
    return [list(line) for line in zip(columns(content), *rows(content), strict=True)]


def _any(content: Mapping[str, Any], key: str) -> bool:
    return any(values.get(key) is not None for values in content["variants"].values())


def headline(content: Mapping[str, Any]) -> str:
    """The whole report in one line."""
    chosen, reference = content.get("recommended"), content["reference"]
    if chosen is None:
        return f"{content['bundle']}: {', '.join(content['variants'])} measured"
    if chosen == reference:
        return f"{content['bundle']}: stay with {chosen}"
    values = content["variants"][chosen]
    ratio = values.get("size_ratio")
    size = f", {times(ratio)} the size" if ratio is not None else ""
    base = "PyTorch" if reference == "pytorch" else reference
    return f"{content['bundle']}: deploy {chosen}: {times(values['speedup'])} the speed of {base}{size}"


def machine_line(content: Mapping[str, Any]) -> str:
    """Processor, threads, memory, system and versions on one line."""
    facts, threads = content["machine"], content["method"]["threads"]
    ram = f", {facts['ram_bytes'] / 2**30:.0f} GiB" if facts.get("ram_bytes") else ""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    features = f" ({', '.join(facts['features'])})" if facts["features"] else ""
    return f"{facts['cpu']}{features}, {threads} of {facts['cores']} cores used{ram}, {facts['os']}; {versions}"
