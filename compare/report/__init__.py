"""The report of a comparison: its data, and how it is written."""

import json
import math
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from onnxport.errors import GateError, OutputError

FORMAT = 1
_ALWAYS = ("agreement", "max_abs_diff")
FILES = ("report.json", "report.md", "report.html")


@dataclass(frozen=True)
class Report:
    """Everything that was measured. `variants`: name -> metrics; `verdict`: name -> one sentence; `gates`: see `gates.evaluate`.

    recommended: the variant to deploy, None when only one was measured.
    """

    bundle: str
    task: str
    reference: str
    variants: dict[str, dict[str, Any]]
    gates: list[dict[str, Any]]
    machine: dict[str, Any]
    verdict: dict[str, str]
    recommended: str | None
    data: dict[str, Any]
    method: dict[str, Any]
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    created: str = ""

    @property
    def passed(self) -> bool:
        """Whether every gate passed; true when there is none."""
        return all(gate["passed"] for gate in self.gates)

    def raise_for_gates(self) -> None:
        """Raises GateError, which names every gate that failed and why."""
        failed = [f"{gate['expr']} ({gate['message']})" for gate in self.gates if not gate["passed"]]
        if failed:
            raise GateError(f"{len(failed)} of {len(self.gates)} gates failed: {'; '.join(failed)}")

    def as_dict(self) -> dict[str, Any]:
        """The content of report.json: plain values, and null for what is not finite.

        Metrics that were not measured are left out, but for `agreement` and `max_abs_diff`, which are null then.
        """
        content = {"format": FORMAT, **asdict(self)}
        content["variants"] = {
            name: dict.fromkeys(_ALWAYS) | {k: v for k, v in values.items() if v is not None} for name, values in self.variants.items()
        }
        plain: dict[str, Any] = _finite(content)
        return plain

    def write(self, out: str | Path, *, force: bool = False) -> None:
        """Writes report.json, report.md and report.html into `out`, whole or not at all. Raises OutputError."""
        from onnxport.compare.report.html import render_html
        from onnxport.compare.report.markdown import render_markdown

        content = self.as_dict()
        texts = (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", render_markdown(content), render_html(content))
        out = Path(out).absolute()
        check_out(out, force)
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as made:
                for name, text in zip(FILES, texts, strict=True):
                    (Path(made) / name).write_text(text, encoding="utf-8")
                _put(Path(made), out)
        except OSError as error:
            raise OutputError(f"{out}: the report cannot be written ({error.strerror or error}); choose another folder") from error


def check_out(out: str | Path, force: bool) -> None:
    """Refuses an output that exists (without `force`) or that is no folder, before minutes are spent on measuring. Raises OutputError."""
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: is a file; expected a folder, new or existing, for the report")
    there = [name for name in FILES if (out / name).exists()]
    if there and not force:
        raise OutputError(f"{out}: holds {', '.join(there)} already; choose another folder, or pass --force to replace them")


def _put(made: Path, out: Path) -> None:
    """Moves the finished files: the whole folder at once where `out` is new, else one by one over the old ones."""
    if not out.exists():
        whole = made / "whole"
        whole.mkdir()
        for name in FILES:
            shutil.move(made / name, whole / name)
        os.rename(whole, out)
        return
    for name in FILES:
        os.replace(made / name, out / name)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
