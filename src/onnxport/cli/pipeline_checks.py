"""What can be checked of a pipeline before any work: options, files, places of outputs, names of variants and metrics."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from onnxport.build.request import BuildOptions, new_bundle_options
from onnxport.build.stages import check_variants
from onnxport.cli.overview import report_folder
from onnxport.cli.pipeline_file import EXPORT, QUANTIZE, Step
from onnxport.compare import comparison
from onnxport.compare.data import read_data
from onnxport.compare.gates import parse_gate, refuse_unknown
from onnxport.compare.metrics import METRICS
from onnxport.compare.notes import PYTORCH
from onnxport.compare.report.baseline import read_baseline
from onnxport.compare.report.html import require_jinja2
from onnxport.compare.report.report import check_out
from onnxport.errors import CheckpointError, OnnxportError, UsageError
from onnxport.extras import require
from onnxport.quantize.plan import read_plan
from onnxport.quantize.precisions import PRECISIONS
from onnxport.runtime.bundle.reader import Bundle
from onnxport.runtime.bundle.variant_names import TARGETS, named
from onnxport.runtime.bundle.writer import check_place
from onnxport.runtime.sessions import Sessions

P = ParamSpec("P")
T = TypeVar("T")
_OF_VARIANTS = ("calibrate", "budget", "data", "threads", "kv")


@dataclass
class _Planned:
    """The variants of a bundle as it will be."""

    variants: dict[str, Any]
    default: str


@dataclass
class _Problems:
    """All that checks found."""

    found: list[OnnxportError] = field(default_factory=list)

    def of(self, name: str, check: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """What a check gives; None where it raised."""
        try:
            return check(*args, **kwargs)
        except OnnxportError as error:
            self.found.append(type(error)(f"{name}: {error}"))
            return None

    def raise_for(self, file: Path) -> None:
        """The error of all of them: wrong usage where one is, else of the kind of the first."""
        if self.found:
            kind = UsageError if any(isinstance(error, UsageError) for error in self.found) else type(self.found[0])
            raise kind(f"{file}: {'; '.join(map(str, self.found))}")


def check(file: Path, steps: Sequence[Step]) -> None:
    """Check what can be known before any work.

    Raises one error for everything that was found: UsageError, CheckpointError, DataError, BundleError, DeviceError or OutputError.
    """
    problems, first = _Problems(), steps[0]
    planned: _Planned | None = None
    if first.command != EXPORT:
        opened = problems.of("bundle", Bundle.open, first.params["bundle"])
        planned = None if opened is None else _Planned(dict(opened.variants), opened.default)
    for step in steps:
        if step.command == EXPORT:
            planned = _check_export(step, problems)
        elif step.command == QUANTIZE:
            _check_quantize(step, planned, problems)
        else:
            _check_compare(step, planned, problems)
    problems.raise_for(file)


def variant_of(step: Step) -> str:
    """The name of the variant that `quantize` adds."""
    precision, target = str(step.params["precision"]), step.params["target"]
    return precision if target is None or "@" in precision else named(precision, target)


def _check_export(step: Step, problems: _Problems) -> _Planned | None:
    given = step.params
    for package in ("torch", "onnx", "onnx_ir", "onnxscript", "safetensors"):
        problems.of(step.name, require, package, "export")
    made = problems.of(step.name, new_bundle_options, given["precision"], given["target"], *(given[name] for name in _OF_VARIANTS))
    problems.of("bundle", check_place, Path(given["out"]).absolute(), given["force"])
    problems.of("source", _check_source, given["source"])
    problems.of(f"{step.name}.adapter", _check_adapter, given["adapter"])
    problems.of(f"{step.name}.opset", _check_opset, given["opset"])
    _check_data(step, problems)
    if made is None:
        return None
    names = made[0].precisions
    if given["precision"] is None:  # a quantized source may carry another one
        return _Planned({named(precision, target): None for precision in PRECISIONS for target in TARGETS}, names[0])
    return _Planned(dict.fromkeys(names), names[0])


def _check_source(source: str) -> None:
    if not os.path.exists(source) and ":" not in source:
        from onnxport.export.resolve import resolve

        resolve(source)  # refuses it in its own words


def _check_adapter(folder: Path | None) -> None:
    if folder is not None and not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder; give the folder of a LoRA adapter, as PEFT saves it")


def _check_opset(opset: int | None) -> None:
    if opset is not None:
        from onnxport.export.trace.tracer import check_opset

        check_opset(opset)


def _check_quantize(step: Step, planned: _Planned | None, problems: _Problems) -> None:
    given, name = step.params, variant_of(step)
    problems.of(step.name, BuildOptions((name,), given["plan"], *(given[option] for option in _OF_VARIANTS)).check)
    if given["plan"] is not None:
        problems.of(f"{step.name}.plan", read_plan, given["plan"])
    _check_data(step, problems)
    if planned is not None:
        problems.of(step.name, check_variants, planned.variants, given["bundle"], name, given["force"])
        planned.variants[name] = None


def _check_compare(step: Step, planned: _Planned | None, problems: _Problems) -> None:
    given, has_baseline = step.params, step.params["baseline"] is not None
    problems.of(step.name, require_jinja2)
    problems.of(f"{step.name}.device", Sessions.on, given["device"])
    problems.of(f"{step.name}.out", check_out, report_folder(given["out"], given["bundle"]), given["force"])
    _check_data(step, problems)
    if given["source"] is not None:
        problems.of(f"{step.name}.source", _check_source, given["source"])
    if has_baseline:
        problems.of(f"{step.name}.baseline", read_baseline, given["baseline"])
    others = [other for path in given["others"] if (other := problems.of(f"{step.name}.with", Bundle.open, path))]
    gates = [gate for expr in given["gates"] if (gate := problems.of(f"{step.name}.gate", parse_gate, expr))]
    tolerances = [gate for expr in given["tolerances"] if (gate := problems.of(f"{step.name}.tolerance", parse_gate, expr))]
    if planned is None:
        return
    joining = {comparison.label(other): _Planned(dict(other.variants), other.default) for other in others}
    alone, device = given["source"] is None, given["device"]
    entered = problems.of(f"{step.name}.precision", comparison.entrants, planned, joining, given["precisions"], alone, device)
    if entered is None:
        return
    names = [*([] if alone else [PYTORCH]), *entered]
    for gate in [*gates, *tolerances]:
        problems.of(step.name, refuse_unknown, [gate], names, METRICS, has_baseline)
    for gate in tolerances:
        problems.of(step.name, comparison.accepted_gates, [], [gate], names)


def _check_data(step: Step, problems: _Problems) -> None:
    """Data is read, and thrown away: what is wrong in it would be told after the export otherwise."""
    for option in ("calibrate", "data"):
        if step.params.get(option) is not None:
            problems.of(f"{step.name}.{option}", read_data, step.params[option])
