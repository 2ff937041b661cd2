"""Numbers and sentences as people read them, and the rows of a report's main table, for terminal, Markdown and HTML."""

from collections.abc import Mapping
from typing import Any

from onnxport.compare import metrics as table
from onnxport.compare.metrics import METRICS, Metric
from onnxport.compare.speed import between
from onnxport.compare.verdict import SIZE, too_noisy

MISSING = "–"
_CHANGED = {
    "throughput": "Throughput",
    "speedup": "Speed-up",
    "latency_ms_p50": "Latency p50",
    "latency_ms_p90": "Latency p90",
    "load_ms": "Time to load",
    "first_output_ms": "First answer",
    "peak_rss_bytes": "Peak memory",
    "size_bytes": "Size",
    "energy_joules_per_unit": "Energy",
    "agreement": "Same answers",
    **{name: metric.heading for name, metric in METRICS.items()},
}


def megabytes(count: float | None) -> str:
    """Bytes as MB (10^6) with three digits."""
    return MISSING if count is None else f"{significant(count / 1e6)} MB"


def significant(value: float) -> str:
    """Three digits that matter, thousands with commas."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def fixed(value: float, digits: int) -> str:
    """So many digits, and no minus before a zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def milliseconds(value: float | None) -> str:
    """Milliseconds with three digits."""
    return MISSING if value is None else f"{significant(value)} ms"


def percent(value: float | None) -> str:
    """A share as percent, see `metrics.percent`."""
    return MISSING if value is None else table.percent(value)


def times(value: float | None) -> str:
    """A ratio: 2.10×."""
    return MISSING if value is None else f"{value:.2f}×" if value < 10 else f"{significant(value)}×"


def scientific(value: float | None) -> str:
    """Two digits and a power of ten."""
    return MISSING if value is None else f"{value:.1e}"


def task_metrics(content: Mapping[str, Any]) -> list[Metric]:
    """Metrics of the task that at least one variant has; the first leads."""
    return [metric for metric in METRICS.values() if metric.of_task and any(metric.name in v for v in content["variants"].values())]


def error(value: float | None) -> str:
    """An error or a sensitivity, with two digits."""
    return MISSING if value is None else "0" if value == 0 else f"{value:.1e}" if abs(value) < 1e-4 else f"{value:.2g}"


def quality(metric: Metric, value: float | None) -> str:
    """A metric as people write it: BLEU, chrF and perplexity as numbers, shares as percent."""
    if value is None:
        return MISSING
    return percent(value) if metric.share else f"{value:.2f}"


def loss(content: Mapping[str, Any], name: str) -> str:
    """How much of the lead metric a variant lost against the reference, with its 95% interval: 0.55 (0.07 to 1.31); shares in points."""
    metric, values = next(iter(task_metrics(content)), None), content["variants"][name]
    drop = None if metric is None else values.get(f"{metric.name}_drop")
    if metric is None or drop is None or name == content["reference"]:
        return MISSING
    scale, digits = (100, 1) if metric.share else (1, 2)
    interval = values.get(f"{metric.name}_drop_ci")
    lost = fixed(scale * drop, digits)
    return lost if interval is None else f"{lost} ({fixed(scale * interval['low'], digits)} to {fixed(scale * interval['high'], digits)})"


def speedup(content: Mapping[str, Any], name: str) -> str:
    """How many times as fast a variant is as the reference, with the 95% interval: 2.10 (2.02 to 2.18)."""
    gain = between(content["variants"], name, content["reference"])
    if name == content["reference"] or gain.low is None or gain.high is None:
        return times(gain.ratio)
    return f"{gain.ratio:.2f} ({gain.low:.2f} to {gain.high:.2f})"


def energy(content: Mapping[str, Any], name: str) -> str:
    """Joules a token, item or call."""
    joules = (content["variants"][name].get("energy") or {}).get("joules_per_unit")
    amount = MISSING if joules is None else f"{significant(joules)} J" if joules >= 1 else f"{significant(1e3 * joules)} mJ"
    return amount if joules is None else f"{amount}/{content['method']['unit'].partition('/')[0].removesuffix('s')}"


def energy_source(content: Mapping[str, Any]) -> str:
    """The meter that counted the joules, or why there is none."""
    measured = [values["energy"] for values in content["variants"].values() if values.get("energy")]
    sources = dict.fromkeys(str(one.get("source") or one.get("reason") or "") for one in measured)
    return "; ".join(filter(None, sources))


def _metered(content: Mapping[str, Any]) -> bool:
    return any((values.get("energy") or {}).get("joules_per_unit") is not None for values in content["variants"].values())


def change_lines(content: Mapping[str, Any]) -> list[list[str]]:
    """The changes since the baseline, a line a metric, a column a variant; [] without a baseline. Speeds, times and sizes in percent."""
    variants = content["variants"]
    names = list(dict.fromkeys(metric for values in variants.values() for metric in values.get("change") or {}))
    return [
        [_CHANGED.get(metric, metric.replace("_", " ")), *(_change(metric, v.get("change") or {}) for v in variants.values())]
        for metric in names
    ]


def _change(metric: str, changes: Mapping[str, float]) -> str:
    value = changes.get(metric)
    if value is None:
        return MISSING
    if metric in METRICS and not METRICS[metric].share:
        return f"{round(value, 2) + 0.0:+.2f}"
    if metric in METRICS or metric == "agreement":
        return f"{round(100 * value, 1) + 0.0:+.1f} points"
    return f"{round(100 * value, 1) + 0.0:+.1f}%"


def columns(content: Mapping[str, Any]) -> list[str]:
    """Headings that go with `rows`."""
    unit = content["method"]["unit"]
    metrics = task_metrics(content)
    same = [heading for key, heading in (("agreement", "Same answers"), ("cosine", "Cosine")) if _any(content, key)]
    lost = [f"{metric.heading} lost (95%)" for metric in metrics[:1]]
    joules = ["Energy"] if _metered(content) else []
    batches = [unit if unit == "calls/s" else f"{unit} (batch {batch})" for batch in content["method"]["batches"]]
    return [
        "Variant",
        "Size",
        "Relative size",
        *batches,
        "Speed-up (95%)",
        "Latency p50",
        "Latency p99",
        "First answer",
        "Peak memory",
        *joules,
        *(metric.heading for metric in metrics),
        *lost,
        *same,
        "Max. difference",
    ]


def rows(content: Mapping[str, Any]) -> list[list[str]]:
    """One row of texts a variant, in the report's order."""
    metrics, texts = task_metrics(content), []
    for name, values in content["variants"].items():
        latency = values["latency_ms"]
        row = [name, megabytes(values.get("size_bytes")), times(values.get("size_ratio"))]
        row += [significant(values["throughput_by_batch"][str(batch)]) for batch in content["method"]["batches"]]
        row += [speedup(content, name), milliseconds(latency["p50"]), milliseconds(latency["p99"])]
        row += [milliseconds(values["first_output_ms"]), megabytes(values["peak_rss_bytes"])]
        row += [energy(content, name)] if _metered(content) else []
        row += [quality(metric, values.get(metric.name)) for metric in metrics]
        row += [loss(content, name)] if metrics else []
        row += [percent(values.get("agreement"))] if _any(content, "agreement") else []
        row += [f"{values['cosine']:.4f}" if "cosine" in values else MISSING] if _any(content, "cosine") else []
        texts.append([*row, scientific(values.get("max_abs_diff"))])
    return texts


def lines(content: Mapping[str, Any]) -> list[list[str]]:
    """The table turned: a line a metric, a column a variant, which fits narrow screens."""
    return [list(line) for line in zip(columns(content), *rows(content), strict=True)]


def _any(content: Mapping[str, Any], key: str) -> bool:
    return any(values.get(key) is not None for values in content["variants"].values())


def headline(content: Mapping[str, Any]) -> str:
    """The whole report in one line: what to do, why, and whether the machine was too busy for its figures to be taken at their word."""
    return title(content) + _figures(content) + (" (measured on a busy machine)" if content.get("busy") else "")


def _figures(content: Mapping[str, Any]) -> str:
    """Behind the title: what the variant to deploy gains, or what could not be told."""
    recommended, reference, variants = content.get("recommended"), content["reference"], content["variants"]
    if recommended is None or recommended == reference:
        unclear = content.get("unclear") or []
        return f": {too_noisy(unclear)}" if recommended is not None and unclear else ""
    ratio = variants[recommended].get("size_ratio")
    gain = between(variants, recommended, reference)
    fast = f"{times(gain.ratio)} the speed of {'PyTorch' if reference == 'pytorch' else reference}"
    fast += f" ({times(gain.low)} to {times(gain.high)})" if gain.low is not None else ""
    if content.get("recommended_for") == SIZE:
        return f": {times(ratio)} the size, {fast}"
    return f": {fast}" + (f", {times(ratio)} the size" if ratio is not None else "")


def title(content: Mapping[str, Any]) -> str:
    """The headline without its figures, which are in `reason`."""
    bundle, recommended = content["bundle"], content.get("recommended")
    if recommended is None:
        return f"{bundle}: {', '.join(content['variants'])} measured"
    if not _deploys(content):
        return f"{bundle}: stay with {recommended}"
    return f"{bundle}: deploy {recommended}" + (" for its size" if content.get("recommended_for") == SIZE else "")


def _deploys(content: Mapping[str, Any]) -> bool:
    return content.get("recommended") not in (None, content["reference"])


def reason(content: Mapping[str, Any]) -> str:
    """Why, in one sentence: the verdict on the variant to deploy, without its advice, which is the headline."""
    recommended = content.get("recommended")
    if recommended is None:
        return ""
    verdict = str(content["verdict"].get(recommended, "")).removesuffix(", for its size").removesuffix(": the one to deploy here")
    return f"{verdict[:1].upper()}{verdict[1:]}."


def machine_line(content: Mapping[str, Any]) -> str:
    """Processor, threads, memory, system and versions on one line."""
    facts, threads = content["machine"], content["method"]["threads"]
    ram = f", {facts['ram_bytes'] / 2**30:.0f} GiB" if facts.get("ram_bytes") else ""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    features = f" ({', '.join(facts['features'])})" if facts["features"] else ""
    return f"{facts['cpu']}{features}, {threads} of {facts['cores']} cores used{ram}, {facts['os']}; {versions}"
