"""The options of a build, and their checks before any work."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from onnxport.compare.gates import parse_gate
from onnxport.errors import UsageError
from onnxport.quantize import precisions
from onnxport.quantize.precisions import CALIBRATABLE, CALIBRATED, PRECISIONS

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Given:
    """What variants are made with beside the model.

    calibrate: data for schemes that need it. evaluate: data that `auto` measures plans on, None for the rest of `calibrate`. budget: what
    `auto` may lose. threads: for measurements. search: the folder where `auto` keeps what it has measured until it is done.
    """

    calibrate: Path | None = None
    evaluate: Path | None = None
    budget: str | None = None
    threads: int | None = None
    search: Path = field(default_factory=Path)


def search_folder(bundle: str | Path) -> Path:
    """Where a search for a bundle's `auto` keeps what it has measured until it is done: beside the bundle."""
    bundle = Path(bundle).absolute()
    return bundle.with_name(f"{bundle.name}.search")


def check(precision: tuple[str, ...], calibrate: Path | None, budget: str | None, plan: Path | None, data: Path | None) -> None:
    """UsageError for precisions that are not known, and for options that none of them takes or that one of them lacks."""
    if not precision:
        raise UsageError(f"no precision is named: expected some of {', '.join(PRECISIONS)}")
    unknown = [name for name in precision if name not in PRECISIONS]
    if unknown:
        raise UsageError(f"precision {unknown[0]!r} is not known: expected some of {', '.join(PRECISIONS)}")
    if "bf16" in precision:
        precisions.check_bf16()
    searched = "auto" in precision and plan is None
    if plan is not None and "auto" in precision and (budget is not None or data is not None):
        raise UsageError("--plan: it is carried out as it stands, so nothing is searched; leave --budget and --data out")
    if budget is not None and not searched:
        raise UsageError(f"--budget: {', '.join(precision)} take none; leave it out, or ask for --precision auto")
    if budget is not None:
        parse_gate(budget)
    if data is not None and not searched:
        raise UsageError("--data: only the search of --precision auto measures on data of its own; leave it out")
    lacking = [name for name in precision if name in CALIBRATED] if plan is None else []
    if lacking and calibrate is None:
        raise UsageError(f"{lacking[0]} is calibrated on data: give --calibrate FILE, some texts as the model will see them")
    if calibrate is not None and plan is None and not searched and not lacking and not set(precision) & CALIBRATABLE:
        raise UsageError(f"--calibrate: {', '.join(precision)} need no calibration data; leave it out")
