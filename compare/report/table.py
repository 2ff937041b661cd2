"""The report for a terminal, as plain text."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from onnxport.compare.report import Report, figures

_WIDTH = 100


def table(report: Report | Mapping[str, Any]) -> str:
    """Verdict, figures (a line a metric, a column a variant, so that it fits narrow terminals), gates and notes. Plain text, no colours."""
    content = report.as_dict() if isinstance(report, Report) else report
    names = list(content["variants"])
    data = content["data"]
    lines = [figures.headline(content), ""]
    cells = figures.lines(content)
    cells[0] = ["", *(f"{name} (reference)" if name == content["reference"] else name for name in names)]
    lines += _aligned(cells)
    lines.append("")
    for name, sentence in content["verdict"].items():
        lines += _wrapped(f"{name}: {sentence}")
    for gate in content["gates"]:
        why = f": {gate['message']}" if gate["message"] else f": {gate['value']:.6g}"
        lines += _wrapped(f"gate {'passed' if gate['passed'] else 'FAILED'}  {gate['expr']}{why}")
    lines += [line for note in content["notes"] for line in _wrapped(f"note: {note}")]
    if energy := figures.energy_told(content):
        lines += _wrapped(f"energy: {energy}")
    lines += ["", *_wrapped(f"{data['count']} inputs ({data['name']}); {figures.machine_line(content)}")]
    return "\n".join(lines)


def _aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    made = ["  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip() for row in cells]
    return [made[0], "-" * max(map(len, made)), *made[1:]]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
