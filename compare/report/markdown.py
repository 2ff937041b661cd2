"""The report as Markdown: for a pull request or a build's log."""

import re
from collections.abc import Mapping
from typing import Any

from onnxport.compare.report import figures

_EXAMPLES = 3  # a variant; the HTML has more


def render_markdown(content: Mapping[str, Any]) -> str:
    """`content` is `Report.as_dict()`, or a report.json that was read. Every text in it is escaped."""
    data = content["data"]
    reference = _cell(content["reference"])
    lines = [f"# {_cell(figures.headline(content))}", ""]
    lines += [f"- **{_cell(name)}**: {_cell(sentence)}" for name, sentence in content["verdict"].items()]
    if content["gates"]:
        lines += ["", "| Gate | Value | |", "| --- | ---: | --- |"]
        for gate in content["gates"]:
            value = figures.MISSING if gate["value"] is None else f"{gate['value']:.6g}"
            lines.append(f"| {_cell(gate['expr'])} | {value} | {'passed' if gate['passed'] else '**failed**: ' + _cell(gate['message'])} |")
    heads = figures.columns(content)
    lines += ["", "| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in figures.rows(content)]
    lines += ["", *(f"> {_cell(note)}" for note in content["notes"])]
    lines += ["", f"Measured on {data['count']} inputs ({_cell(data['name'])}). The reference is {reference}."]
    if "bleu" in content["method"]:
        lines.append(f"Data: {content['method']['bleu']}.")
    lines.append(f"Machine: {_cell(figures.machine_line(content))}.")
    for name, examples in content["examples"].items():
        if examples:
            lines += ["", f"## Where {_cell(name)} answers otherwise than {reference}", ""]
            lines += [f"| Input | {reference} | {_cell(name)} |", "| --- | --- | --- |"]
            lines += [f"| {_cell(e['input'])} | {_cell(e['reference'])} | {_cell(e['variant'])} |" for e in examples[:_EXAMPLES]]
    return "\n".join(lines).rstrip() + "\n"


def _cell(text: str) -> str:
    """Text that cannot end a table's cell or begin markup of its own."""
    flat = " ".join(text.split()).replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\|*_`\[\]])", r"\\\1", flat)
