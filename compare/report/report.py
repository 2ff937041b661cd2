"""The report of a comparison: its content as a value, and the files that it is written to."""

import errno
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from onnxport.compare.report.html import render_html
from onnxport.compare.report.junit import render_junit
from onnxport.compare.report.text import render_markdown
from onnxport.errors import GateError, OutputError
from onnxport.files import special
from onnxport.runtime.bundle.publish import check_file, publish, recover_output, replace, sync, workspace

FORMAT = 1
_UNMOVABLE = (errno.EXDEV, errno.EBUSY)  # of a folder from a lower layer of overlayfs, or one that is mounted somewhere
_ALWAYS = ("agreement", "max_abs_diff")
FILES = ("report.json", "report.md", "report.html", "report.xml")  # the last only where there are gates


@dataclass(frozen=True)
class Report:
    """Everything that was measured. `variants`: name -> metrics; `verdict`: name -> one sentence; `gates`: see `gates.evaluate`.

    recommended: the variant to deploy, None when only one was measured.  recommended_for, unclear: see `verdict.Recommendation`.
    busy: how busy the machine was with other work, "" where it was not.  divergence: name -> see `differences.divergences`.
    evidence: name -> what was learned when the variant was made (`manifest.Variant.evidence`), and its `plan`.
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
    divergence: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    evidence: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    created: str = ""
    recommended_for: str = "plain"
    unclear: list[str] = field(default_factory=list)
    busy: str = ""

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
        """Writes report.json, report.md, report.html and, where there are gates, report.xml (JUnit) into `out`. Raises OutputError.

        They appear as one: the folder is exchanged as a whole, but where it holds other files too, or cannot be moved. When they cannot be
        written, an earlier report stays as it was.
        """
        content = self.as_dict()
        texts = {
            "report.json": json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
            "report.md": render_markdown(content),
            "report.html": render_html(content),
        }
        if self.gates:
            texts["report.xml"] = render_junit(content)
        check_out(out, force)
        out = Path(out).absolute()
        with _writing(out):
            if not (_stands_alone(out) and _put(texts, out, whole=True)):
                _put(texts, out, whole=False)


def check_out(out: str | Path, force: bool) -> None:
    """Refuses an output that exists (without `force`), is no folder or cannot be written. Raises OutputError.

    To be called before minutes are spent on measuring. Nothing is left behind but folders above `out` that had to be made.
    """
    out = Path(out).absolute()
    with _writing(out):
        recover_output(out)
        if os.path.lexists(out) and not out.is_dir():
            raise OutputError(f"{out}: is {special(out.lstat().st_mode) or 'a file'}; expected a folder, new or existing, for the report")
        there = [name for name in FILES if os.path.lexists(out / name)]
        if there and not force:
            raise OutputError(f"{out}: holds {', '.join(there)} already; choose another folder, or pass --force to replace them")
        for name in there:
            check_file(out / name, force)
        with workspace(out if _stands_alone(out) else out / "report") as made:
            (made / FILES[0]).write_bytes(b"x")


def _put(texts: dict[str, str], out: Path, whole: bool) -> bool:
    """Writes these files. whole: the folder is exchanged; False where it cannot be moved. OutputError, OSError."""
    with workspace(out if whole else out / "report") as folder:
        made = folder / out.name
        made.mkdir()
        for name, text in texts.items():
            (made / name).write_text(text, encoding="utf-8")
            sync(made / name)
        if whole:
            try:
                publish(made, out)
            except OSError as error:
                if error.errno in _UNMOVABLE and out.is_dir():
                    return False
                raise
            return True
        for name in reversed(texts):  # beside files of others one by one, report.json last
            replace(made / name, out / name)
        for name in set(FILES) - set(texts):  # an earlier report's gates are not this one's
            (out / name).unlink(missing_ok=True)
    return True


def _stands_alone(out: Path) -> bool:
    """Whether the folder of a report can be exchanged as a whole: it holds nothing else, and is no mount."""
    if not os.path.lexists(out):
        return True
    if out.is_symlink() or os.path.ismount(out) or out == Path.cwd() or not os.access(out.parent, os.W_OK):
        return False
    return all(entry.name in FILES and entry.is_file(follow_symlinks=False) for entry in os.scandir(out))


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """OSError becomes OutputError."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{out}: the report cannot be written ({error.strerror or error}); choose another folder") from error


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
