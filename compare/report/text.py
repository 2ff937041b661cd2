"""The report as plain text for a terminal, and as Markdown."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from onnxport.compare.report import divergence_table, format, frontier
from onnxport.compare.report.evidence.layer_errors import layer_errors
from onnxport.compare.report.evidence.plan_search import searches
from onnxport.compare.report.evidence.sensitivity import heat_maps
from onnxport.printable import printable

_WIDTH = 100  # characters of a terminal's line
_EXAMPLES = 3  # a variant; the HTML has more


class HasContent(Protocol):
    """Anything that gives the content of a report.json: a `Report`."""

    def as_dict(self) -> dict[str, Any]:
        """The content of report.json."""
        ...


def table(report: HasContent | Mapping[str, Any]) -> str:
    """Verdict, figures (a line a metric, a column a variant, so that it fits narrow terminals), gates and notes. Plain text, no colours."""
    content = report if isinstance(report, Mapping) else report.as_dict()
    names = list(content["variants"])
    data = content["data"]
    lines = [*_gates(content, passed=False), *_wrapped(format.headline(content)), ""]
    cells = format.lines(content)
    cells[0] = ["", *(f"{name} (reference)" if name == content["reference"] else name for name in names)]
    lines += _aligned(cells)
    lines.append("")
    for name, sentence in content["verdict"].items():
        lines += _wrapped(f"{name}: {sentence}")
    lines += _gates(content, passed=True)
    lines += [line for note in content["notes"] for line in _wrapped(f"note: {note}")]
    if energy := format.energy_source(content):
        lines += _wrapped(f"energy: {energy}")
    lines += ["", *_wrapped(f"{data['count']} inputs ({data['name']}); {format.machine_line(content)}")]
    return "\n".join(lines)


def _gates(content: Mapping[str, Any], passed: bool) -> list[str]:
    """Lines of the gates that passed, or of those that failed."""
    lines: list[str] = []
    for gate in content["gates"]:
        if gate["passed"] is passed:
            why = f": {gate['message']}" if gate["message"] else f": {gate['value']:.6g}"
            lines += _wrapped(f"gate {'passed' if passed else 'FAILED'}  {gate['expr']}{why}")
    return lines


def _aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    texts = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip() for row in cells
    ]
    return [texts[0], "-" * max(map(len, texts)), *texts[1:]]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def render_markdown(content: Mapping[str, Any]) -> str:
    """The report as Markdown. content: `Report.as_dict()`, or a report.json that was read; every text in it is escaped."""
    data = content["data"]
    reference = _cell(content["reference"])
    lines = [f"**✗ gate failed** {_cell(gate['expr'])}: {_cell(gate['message'])}\n" for gate in content["gates"] if not gate["passed"]]
    lines += [f"# {_cell(format.headline(content))}", ""]
    lines += [f"- **{_cell(name)}**: {_cell(sentence)}" for name, sentence in content["verdict"].items()]
    if content["gates"]:
        lines += ["", "| Gate | Value | |", "| --- | ---: | --- |"]
        for gate in content["gates"]:
            value = format.MISSING if gate["value"] is None else f"{gate['value']:.6g}"
            lines.append(f"| {_cell(gate['expr'])} | {value} | {'passed' if gate['passed'] else '**failed**: ' + _cell(gate['message'])} |")
    heads = format.columns(content)
    lines += ["", "| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in format.rows(content)]
    lines += _facts(content)
    if changes := format.change_lines(content):
        lines += ["", "## Since the baseline", "", "| | " + " | ".join(map(_cell, content["variants"])) + " |"]
        lines += ["| --- |" + " ---: |" * len(content["variants"]), *("| " + " | ".join(map(_cell, line)) + " |" for line in changes)]
    lines += ["", *(f"> {_cell(note)}" for note in content["notes"])]
    lines += ["", f"Measured on {data['count']} inputs ({_cell(data['name'])}). The reference is {reference}."]
    if "bleu" in content["method"]:
        lines.append(f"Data: {content['method']['bleu']}.")
    if accepted := content["method"].get("accepted"):
        lines.append(f"Quality accepted: {_cell(', '.join(accepted))}.")
    lines.append(f"Machine: {_cell(format.machine_line(content))}.")
    for name, examples in content["examples"].items():
        if examples:
            lines += ["", f"## Where {_cell(name)} answers otherwise than {reference}", ""]
            if summary := divergence_table.summary(content, name):
                lines += [f"{_cell(summary)}.", ""]
            if divergences := content.get("divergence", {}).get(name, [])[:_EXAMPLES]:
                lines += [*(_divergence(content, name, one) for one in divergences), ""]
            lines += [f"| Input | {reference} | {_cell(name)} |", "| --- | --- | --- |"]
            lines += [f"| {_cell(e['input'])} | {_cell(e['reference'])} | {_cell(e['variant'])} |" for e in examples[:_EXAMPLES]]
    return "\n".join(lines).rstrip() + "\n"


def _facts(content: Mapping[str, Any]) -> list[str]:
    """The facts that the page shows as plots, a line each."""
    facts = []
    quality = frontier.quality_of(content)
    for along in ("speed", "size"):
        names = frontier.front(content, along)
        if quality is not None and names:
            facts.append(f"No other is better in both {quality.label} and {along}: {', '.join(names)}.")
    for heat_map in heat_maps(content):
        worst = "; ".join(f"{one.module} in {one.scheme} ({one.text})" for one in heat_map.worst)
        facts.append(f"Most sensitive modules, by the {heat_map.metric}: {worst}.")
    for search in searches(content):
        own = "".join(f"{label} {text}; " for label, text in search.facts)
        facts.append(f"Plan of {search.name}: {own}plans tried: {len(search.tried)}.")
    if errors := layer_errors(content):
        ends = "; ".join(f"{row.name} {row.cells[0]} to {row.cells[-1]}" for row in errors.rows)
        facts.append(f"Relative error from {errors.layers[0]} to {errors.layers[-1]}: {ends}.")
    if energy := format.energy_source(content):
        facts.append(f"Energy: {energy}.")
    return ["", *(f"- {_cell(line)}" for line in facts)] if facts else []


def _divergence(content: Mapping[str, Any], name: str, one: Mapping[str, Any]) -> str:
    """Both next tokens with the probabilities that both sides give them."""
    reference, variant = (content["reference"], one["reference"]), (name, one["variant"])
    tokens = []
    for (own_name, own), (other_name, other) in ((reference, variant), (variant, reference)):
        shares = [f"{who} {value:.1%}" for who, value in ((own_name, own["own"]), (other_name, other["other"])) if value is not None]
        word = divergence_table.word(own["token"])
        tokens.append(f"{word} ({', '.join(shares)})" if shares else word)
    before = f"after {one['prefix']}: " if one["prefix"] else ""
    return f"- {_cell(one['input'])} → {_cell(f'{before}{tokens[0]} or {tokens[1]}')}"


def _cell(text: str) -> str:
    """Text that cannot end a table's cell or begin markup of its own; characters that a terminal obeys are shown as escapes."""
    flat = printable(" ".join(text.split())).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\|*_`~\[\]])", r"\\\1", flat)
