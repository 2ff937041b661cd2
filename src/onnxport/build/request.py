"""The options of a build, and their checks before any work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from onnxport.compare.gates import parse_gate
from onnxport.errors import UsageError
from onnxport.quantize.plan import CACHES
from onnxport.quantize.precisions import DEFAULT, PRECISIONS, REFERENCE, Precision, made_as
from onnxport.runtime.bundle.variant_names import CPU, TARGETS, named, split

CALIBRATING = ("calibrate", "budget", "data", "threads")  # what only precisions read that calibrate


@dataclass(frozen=True)
class BuildOptions:
    """How the variants of a bundle are made.

    precisions: names of the variants, such as int8 or int8@cuda; the first is the bundle's default.
    plan: a file that is carried out as it stands, in place of the precisions' own plans.
    calibrate: calibration data, a file as `compare` takes.
    budget: what the searched variant may lose, a gate such as `bleu_drop<=0.3`; None for the task's own.
    data: what searched plans are measured on; None for rows of `calibrate` that are not calibrated on.
    threads: for the measurements of a search; None for all there are.
    kv: what key/value caches become, of precisions of 8 and 4 bits; None leaves them as they are.
    """

    precisions: tuple[str, ...] = DEFAULT
    plan: Path | None = None
    calibrate: Path | None = None
    budget: str | None = None
    data: Path | None = None
    threads: int | None = None
    kv: str | None = None

    def check(self) -> None:
        """Check that the options fit together.

        Raises:
            UsageError: a precision is not known; an option is one that no precision takes, or one is missing that a precision needs.
            DeviceError: nothing here runs one of the precisions.
        """
        if not self.precisions:
            raise UsageError(f"no precision is named: expected some of {', '.join(PRECISIONS)}")
        for precision in self._rows:
            precision.check_device()
        self._check_kv()
        self._check_search()
        self._check_calibration()

    def check_new_bundle(self) -> None:
        """Check the options of an export: as `check`, and calibration needs the reference variant in the same bundle."""
        self.check()
        if self.calibrate is not None and REFERENCE not in self.precisions:
            raise UsageError(f"--calibrate: data is read through the {REFERENCE} variant: add {REFERENCE} to --precision")

    def of_variant(self, name: str) -> dict[str, Any]:
        """The options that the variant of a precision depends on."""
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        unused = (
            "precisions",
            *(CALIBRATING if made_as(name).calibration == "unused" else ()),
            *(("kv",) if own_cache(name) else ()),
        )
        return {option: value for option, value in known.items() if option not in unused}

    @property
    def _rows(self) -> list[Precision]:
        return [made_as(name) for name in self.precisions]

    @property
    def _searches(self) -> bool:
        return self.plan is None and any(precision.searched for precision in self._rows)

    def _check_kv(self) -> None:
        if self.kv is not None and self.kv not in CACHES:
            raise UsageError(f"--kv {self.kv}: expected {' or '.join(CACHES)}")
        if self.kv is not None and all(map(own_cache, self.precisions)):
            raise UsageError(f"--kv: {', '.join(self.precisions)} keep their own caches; name a precision of 8 or 4 bits beside them")

    def _check_search(self) -> None:
        names = ", ".join(self.precisions)
        searched = [precision.name for precision in self._rows if precision.searched]
        if self.plan is not None and searched and (self.budget is not None or self.data is not None):
            raise UsageError("--plan: it is carried out as it stands, so nothing is searched; leave --budget and --data out")
        if self._searches:
            if self.budget is not None:
                parse_gate(self.budget)
            return
        some = " or ".join(name for name, precision in PRECISIONS.items() if precision.searched)
        if self.budget is not None:
            raise UsageError(f"--budget: {names} take none; leave it out, or ask for --precision {some}")
        if self.data is not None:
            raise UsageError(f"--data: only the search of --precision {some} measures on data of its own; leave it out")

    def _check_calibration(self) -> None:
        if self.plan is not None:
            return
        needing = [precision.name for precision in self._rows if precision.calibration == "needed"]
        if needing and self.calibrate is None:
            raise UsageError(f"{needing[0]} is calibrated on data: give --calibrate FILE, some texts as the model will see them")
        if self.calibrate is not None and all(precision.calibration == "unused" for precision in self._rows):
            raise UsageError(f"--calibrate: {', '.join(self.precisions)} need no calibration data; leave it out")


def new_bundle_options(
    precision: tuple[str, ...] | None,
    target: tuple[str, ...] = (CPU,),
    calibrate: Path | None = None,
    budget: str | None = None,
    data: Path | None = None,
    threads: int | None = None,
    kv: str | None = None,
) -> tuple[BuildOptions, list[str]]:
    """The checked options of an export, and the variants that a target cannot have. UsageError, DeviceError: see `BuildOptions.check`."""
    names, refused = variants(precision or DEFAULT, target)
    options = BuildOptions(names, None, calibrate, budget, data, threads, kv)
    options.check_new_bundle()
    return options, refused


def variants(precisions: Sequence[str], targets: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """The variants of precisions for targets, the first target's first, and those of them that a target cannot have.

    A precision that names a target itself, such as int8@cuda, is that variant alone.
    UsageError: a target is not known, or a precision is for none of them.
    """
    if unknown := [target for target in targets if target not in TARGETS]:
        raise UsageError(f"--target {unknown[0]!r}: expected some of {', '.join(TARGETS)}")
    every = [name if "@" in name else named(name, target) for target in targets for name in precisions]
    found: list[str] = []
    refused: dict[str, UsageError] = {}
    for name in dict.fromkeys(every):
        try:
            made_as(name)
            found.append(name)
        except UsageError as reason:
            refused[name] = reason
    made = {split(name)[0] for name in found}
    for name, error in refused.items():
        if split(name)[0] not in made or name in precisions:
            raise error
    return tuple(found), list(refused)


def in_making_order(names: Iterable[str]) -> list[str]:
    """Variants as they are made: others may be calibrated through fp32, and those for other targets share files of those for the CPU."""
    return sorted(names, key=lambda name: (name != REFERENCE, split(name)[1] != CPU))


def own_cache(variant: str) -> bool:
    """Whether a variant's key/value cache keeps the type of the graph whatever is asked for; caches of 8 bits are for the CPU."""
    return made_as(variant).own_cache or split(variant)[1] != CPU


def search_folder(bundle: str | Path) -> Path:
    """The folder beside a bundle where a search keeps its measurements until it is done."""
    bundle = Path(bundle).absolute()
    return bundle.with_name(f"{bundle.name}.search")
