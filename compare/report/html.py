"""The report as one HTML file that opens offline: styles and plots are in it, nothing is fetched."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxport.compare.differences import marked
from onnxport.compare.metrics import METRICS
from onnxport.compare.report import divergence_table, format, frontier
from onnxport.compare.report.evidence.layer_errors import layer_errors
from onnxport.compare.report.evidence.plan_search import searches
from onnxport.compare.report.evidence.sensitivity import STEPS, heat_maps
from onnxport.compare.report.svg import bars, colors, first_differences
from onnxport.extras import require

_HERE = Path(__file__).parent


def require_jinja2() -> Any:
    """The module, or a UsageError that names the extra to install."""
    return require("jinja2", "compare", "the HTML report")


def render_html(content: Mapping[str, Any]) -> str:
    """The page. content: `Report.as_dict()`, or a report.json that was read; every text in it is escaped."""
    jinja2 = require_jinja2()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    markup = jinja2.filters.FILTERS["safe"]
    errors = layer_errors(content)
    names = list(content["variants"])
    own = colors(content)
    cards = sorted((_card(content, own[name], name) for name in names), key=lambda card: not card["chosen"])
    first = [content["reference"], *([content["recommended"]] if content["recommended"] else [])]  # to be seen on a narrow screen too
    columns = list(dict.fromkeys([*first, *names]))
    order = [0, *(1 + names.index(name) for name in columns)]
    text: str = environment.get_template("report.html.jinja").render(
        report=content,
        headline=format.headline(content),
        title=format.title(content),
        reason=format.reason(content),
        style=markup((_HERE / "report.css").read_text(encoding="utf-8")),
        names=names,
        columns=columns,
        failed=[gate for gate in content["gates"] if not gate["passed"]],
        cards=cards,
        lines=[[line[i] for i in order] for line in format.lines(content)[1:]],
        changes=[[line[i] for i in order] for line in format.change_lines(content)],
        frontiers=[(title, markup(svg)) for title, along in _ALONG.items() if (svg := frontier.draw(content, along))],
        frontier_notes=markup(" ".join(frontier.explained(content))),
        quality_label=getattr(frontier.quality_of(content), "label", ""),
        bars=_bars(content),
        same=_same(content),
        first_differences=first_differences(content),
        heat_maps=heat_maps(content),
        steps=range(STEPS),
        layer_errors=None if errors is None else replace(errors, svg=markup(errors.svg)),
        searches=searches(content),
        divergence=divergence_table.shown(content),
        examples={name: [_example(e) for e in examples] for name, examples in content["examples"].items() if examples},
        energy=format.energy_source(content),
        machine=format.machine_line(content),
    )
    return text


_ALONG = {"against speed": "speed", "against size": "size"}


def _bars(content: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Panels of bars: title -> groups."""
    variants, method = content["variants"], content["method"]
    latency = {f"{p} in 100 are answered within": {n: v["latency_ms"][f"p{p}"] for n, v in variants.items()} for p in (50, 90, 99)}
    title = "Golden inputs" if method["unit"] == "calls/s" else "Batch of {}"
    speed = {title.format(b): {n: v["throughput_by_batch"][str(b)] for n, v in variants.items()} for b in method["batches"]}
    size = {"On disk": {n: v.get("size_bytes") for n, v in variants.items()}}
    memory = {"Most memory held": {n: v["peak_rss_bytes"] for n, v in variants.items()}}
    return {
        "How long one answer takes": bars(content, latency, format.milliseconds),
        f"Throughput, {method['unit']}": bars(content, speed, format.significant),
        "Space": bars(content, size, format.megabytes) + bars(content, memory, format.megabytes),
    }


def _same(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    shares = {n: v["agreement"] for n, v in content["variants"].items() if v["agreement"] is not None and n != content["reference"]}
    return bars(content, {"Share of identical answers": shares}, format.percent, whole=1.0) if shares else []


def _card(content: Mapping[str, Any], number: int, name: str) -> dict[str, Any]:
    values = content["variants"][name]
    facts = [
        (format.significant(values["throughput"]), content["method"]["unit"]),
        (format.megabytes(values.get("size_bytes")), "on disk"),
    ]
    facts += _quality(values, name == content["reference"])
    if name != content["reference"] and values["agreement"] is not None:
        facts.append((format.percent(values["agreement"]), "same answers"))
    return {
        "name": name,
        "color": number,
        "verdict": content["verdict"][name],
        "facts": facts,
        "reference": name == content["reference"],
        "chosen": name == content["recommended"],
    }


def _quality(values: Mapping[str, Any], is_reference: bool) -> list[tuple[str, str]]:
    """The measures of the task on a card: two at most; of arrays, and of vectors without data, what stands for them."""
    own = [metric for metric in METRICS.values() if metric.of_task and values.get(metric.name) is not None][:2]
    facts = [(format.quality(metric, values[metric.name]), metric.heading) for metric in own]
    error = (values.get("parity") or {}).get("relative_error")
    if not own and not is_reference and values.get("cosine") is not None:
        facts.append((f"{values['cosine']:.4f}", "Cosine to the reference"))
    elif not own and values["agreement"] is None and error is not None:
        facts.append((format.error(error), "Relative error"))
    return facts


def _example(example: Mapping[str, Any]) -> dict[str, Any]:
    pair = {"reference": marked(example["reference"], example["variant"]), "variant": marked(example["variant"], example["reference"])}
    return {**example, **{f"{side}_pieces": pieces for side, pieces in pair.items()}}
