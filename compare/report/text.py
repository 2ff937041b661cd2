"""The report as plain text for a terminal, and as Markdown."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from onnxport.compare.report import divergence_table, evidence, format, frontier

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
    lines = [format.headline(content), ""]
    cells = format.lines(content)
    cells[0] = ["", *(f"{name} (reference)" if name == content["reference"] else name for name in names)]
    lines += _aligned(cells)
    lines.append("")
    for name, sentence in content["verdict"].items():
        lines += _wrapped(f"{name}: {sentence}")
    for gate in content["gates"]:
        why = f": {gate['message']}" if gate["message"] else f": {gate['value']:.6g}"
        lines += _wrapped(f"gate {'passed' if gate['passed'] else 'FAILED'}  {gate['expr']}{why}")
    lines += [line for note in content["notes"] for line in _wrapped(f"note: {note}")]
    if energy := format.energy_told(content):
        lines += _wrapped(f"energy: {energy}")
    lines += ["", *_wrapped(f"{data['count']} inputs ({data['name']}); {format.machine_line(content)}")]
    return "\n".join(lines)


def _aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    made = ["  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip() for row in cells]
    return [made[0], "-" * max(map(len, made)), *made[1:]]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def render_markdown(content: Mapping[str, Any]) -> str:
    """`content` is `Report.as_dict()`, or a report.json that was read. Every text in it is escaped."""
    data = content["data"]
    reference = _cell(content["reference"])
    lines = [f"# {_cell(format.headline(content))}", ""]
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
    lines.append(f"Machine: {_cell(format.machine_line(content))}.")
    for name, examples in content["examples"].items():
        if examples:
            lines += ["", f"## Where {_cell(name)} answers otherwise than {reference}", ""]
            if summary := divergence_table.summary(content, name):
                lines += [f"{_cell(summary)}.", ""]
            if told := [_parting(content, name, one) for one in content.get("divergence", {}).get(name, [])[:_EXAMPLES]]:
                lines += [*told, ""]
            lines += [f"| Input | {reference} | {_cell(name)} |", "| --- | --- | --- |"]
            lines += [f"| {_cell(e['input'])} | {_cell(e['reference'])} | {_cell(e['variant'])} |" for e in examples[:_EXAMPLES]]
    return "\n".join(lines).rstrip() + "\n"


def _facts(content: Mapping[str, Any]) -> list[str]:
    """What the page shows as plots, a line each."""
    told = []
    quality = frontier.quality_of(content)
    for along in ("speed", "size"):
        names = frontier.front(content, along)
        if quality is not None and names:
            told.append(f"No other is better in both {quality.label} and {along}: {', '.join(names)}.")
    for found in evidence.heat_maps(content):
        worst = "; ".join(f"{one['module']} in {one['scheme']} ({one['text']})" for one in found["worst"])
        told.append(f"Most sensitive modules, by the {found['metric']}: {worst}.")
    for one in evidence.searches(content):
        facts = "; ".join(f"{what} {text}" for what, text in one["facts"])
        told.append(f"Plan of {one['name']}: {facts + '; ' if facts else ''}plans tried: {len(one['tried'])}.")
    if grown := evidence.growth(content):
        ends = "; ".join(f"{row['name']} {row['cells'][0]} to {row['cells'][-1]}" for row in grown["rows"])
        told.append(f"Relative error from {grown['layers'][0]} to {grown['layers'][-1]}: {ends}.")
    if energy := format.energy_told(content):
        told.append(f"Energy: {energy}.")
    return ["", *(f"- {_cell(line)}" for line in told)] if told else []


def _parting(content: Mapping[str, Any], name: str, one: Mapping[str, Any]) -> str:
    """Both next tokens with the probabilities that both sides give them."""
    sides = [(content["reference"], one["reference"]), (name, one["variant"])]
    told = []
    for number, (_, side) in enumerate(sides):
        other, given = sides[1 - number][1], []
        for who, value in ((sides[number][0], side["own"]), (sides[1 - number][0], other["other"])):
            given += [] if value is None else [f"{who} {value:.1%}"]
        told.append(f"{divergence_table.word(side['token'])} ({', '.join(given)})" if given else divergence_table.word(side["token"]))
    before = f"after {one['prefix']}: " if one["prefix"] else ""
    return f"- {_cell(one['input'])} → {_cell(f'{before}{told[0]} or {told[1]}')}"


def _cell(text: str) -> str:
    """Text that cannot end a table's cell or begin markup of its own."""
    flat = " ".join(text.split()).replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\|*_`\[\]])", r"\\\1", flat)
