"""An export that cannot fit the disk is refused before it begins."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnxport.build.estimate import folder, variants
from onnxport.build.estimate.variants import WEIGHTS
from onnxport.build.request import in_making_order
from onnxport.build.work import FUSED
from onnxport.errors import OnnxportError, OutputError

ROOM = 0.95  # of what weights take by the headers: an export that needs so much surely does not fit


def check_room(
    source: Any, out: Path, precisions: Sequence[str], resume: bool = False, allow_pickle: bool = False, task: str | None = None
) -> None:
    """OutputError where the weights of a folder of Hugging Face, as their headers tell them, do not fit the disk of `out`, or the codes of
    a variant, until it is written, that of temporary files (TMPDIR).

    What `.OUT.work` and a bundle at `out` hold takes its room already. resume: what is fitted lies beside `out`. Other sources, and those
    that an export refuses, pass.
    """
    try:
        model = folder.read(source, allow_pickle, task)
        files = variants.files(precisions, model)
    except (OnnxportError, OSError, ValueError, TypeError, LookupError, AttributeError):
        return
    kept = out.absolute().with_name(f".{out.absolute().name}.work")
    there = {path: path.stat().st_size for path in kept.rglob(f"*/{WEIGHTS}") if path.is_file() and path.parent.name != FUSED}
    begun, written = {path.parent.name for path in there}, -sum(there.values()) / ROOM
    codes = both = 0.0
    for name in in_making_order([name for name in precisions if f"{name}/{WEIGHTS}" in files]):
        own = 0 if name in begun else variants.codes(name, model, fitted=not resume)
        written += files[f"{name}/{WEIGHTS}"]
        codes, both = max(codes, own), max(both, written + own)
    place, scratch = _nearest(out.absolute().parent), _nearest(Path(tempfile.gettempdir()))
    if place is None or scratch is None:  # a drive that is not there
        return
    weights = f"the weights of {', '.join(precisions)}"
    _check_free(place, written, f"{weights} take", "free space, name fewer precisions, or choose another --out")
    if _device(place) == _device(scratch):
        _check_free(place, both, f"{weights} take, with temporary files,", "free space, or set TMPDIR to a folder of another disk")
    else:
        _check_free(scratch, codes, "temporary files of a variant take", "free space, or set TMPDIR to a folder with room")


def _check_free(place: Path, need: float, what: str, advice: str) -> None:
    """OutputError where the disk of a folder surely has no room."""
    free = shutil.disk_usage(place).free
    if ROOM * need > free:
        raise OutputError(f"{place} has {free / 1e9:.1f} GB free, and {what} {ROOM * need / 1e9:.1f} GB; {advice}")


def _nearest(folder: Path) -> Path | None:
    """The folder, or the first above it that is there."""
    return next((one for one in (folder, *folder.parents) if one.is_dir()), None)


def _device(folder: Path) -> int:
    """The file system that a folder lies in."""
    return folder.stat().st_dev
