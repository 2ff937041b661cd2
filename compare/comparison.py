"""The comparison: `compare` measures variants of one or more bundles against a reference and reports what it found."""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

from onnxport.compare import notes
from onnxport.compare.differences import differing, divergences
from onnxport.compare.gates import Gate, evaluate, parse_gate, quality_of_gate, refuse_unknown
from onnxport.compare.measure import machine, measurement
from onnxport.compare.metrics import METRICS
from onnxport.compare.notes import PYTORCH
from onnxport.compare.report.baseline import changes, differences, read_baseline
from onnxport.compare.report.html import require_jinja2
from onnxport.compare.report.report import Report, check_out
from onnxport.compare.scores import require_sacrebleu
from onnxport.compare.verdict import recommend, verdicts
from onnxport.compare.workload import workload
from onnxport.errors import UsageError
from onnxport.progress import Progress, silent
from onnxport.runtime.bundle.reader import Bundle, unreplaced
from onnxport.runtime.bundle.variant_names import for_device, suits
from onnxport.runtime.processor import cores

TRIES = 3  # of a comparison whose bundle is replaced meanwhile
Entrant = tuple[Bundle, str]  # a bundle and one of its variants


class Holder(Protocol):
    """What has variants: a bundle, or one that is yet to be made."""

    @property
    def variants(self) -> Mapping[str, Any]:
        """By name."""

    @property
    def default(self) -> str:
        """The variant that is run where none is named."""


H = TypeVar("H", bound=Holder)


def compare(
    bundle: str | Path,
    data: str | Path | None = None,
    precisions: Sequence[str] | None = None,
    device: str = "cpu",
    source: str | None = None,
    batches: Sequence[int] = (1, 8),
    threads: int | None = None,
    out: str | Path | None = None,
    gates: Sequence[str] = (),
    baseline: str | Path | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
    *,
    force: bool = False,
    beam: int | None = None,
    max_new_tokens: int | None = None,
    others: Sequence[str | Path] = (),
    tolerances: Sequence[str] = (),
) -> Report:
    """Measures quality, agreement, speed, memory and size of a bundle's variants and writes report.json, report.md, report.html and, where
    there are gates, report.xml.

    The reference is the fp32 variant (the bundle's default where there is none); with `source`, the original model in PyTorch joins as
    `pytorch` and is the reference. A reference that `precisions` leaves out is measured all the same.

    data: evaluation file (see `read_data`); without it only speed, memory, size and agreement are measured.
    batches: batch sizes to time; `throughput` and `speedup` are those of the first.  threads: for every side; default: all it may use.
    out: folder for the reports, or None to write none.  limit: at most so many rows, evenly spaced over the file.
    gates: `[VARIANT.]METRIC OP NUMBER`; failing ones are in the report, and `Report.raise_for_gates` raises for them.
    beam: beams of every side, 1 is greedy; None for the model's own number. Nothing is ever drawn at random.
    tolerances: gates on quality that are accepted: verdicts follow them, and the gates on quality, instead of the built-in tolerances.
    others: bundles of the same task whose variants join as NAME/VARIANT and are held against this bundle's reference.
    baseline: an earlier report: `X_change` of a variant is what became of X since.
    progress: called with the name of each stage.

    A bundle that another command replaces meanwhile is measured anew. Raises UsageError (gates, variants, missing extras), BundleError,
    DataError, DeviceError, OutputError.
    """
    progress = progress or silent

    def again() -> None:
        progress("note: a bundle was replaced while it was measured: everything is measured anew")

    def measured() -> Report:
        return _measured(
            bundle, data, precisions, device, source, batches, threads, out, gates, baseline, limit, progress,
            force=force, beam=beam, max_new_tokens=max_new_tokens, others=others, tolerances=tolerances,
        )  # fmt: skip

    report = unreplaced([bundle, *others], measured, TRIES, again, by_content=True)
    if out is not None:
        progress("writing the report")
        report.write(out, force=force)
    return report


def _measured(
    bundle: str | Path,
    data: str | Path | None,
    precisions: Sequence[str] | None,
    device: str,
    source: str | None,
    batches: Sequence[int],
    threads: int | None,
    out: str | Path | None,
    gates: Sequence[str],
    baseline: str | Path | None,
    limit: int | None,
    progress: Progress,
    *,
    force: bool,
    beam: int | None,
    max_new_tokens: int | None,
    others: Sequence[str | Path],
    tolerances: Sequence[str],
) -> Report:
    """The report of `compare`, not yet written."""
    parsed, tolerated = ([parse_gate(expr) for expr in given] for given in (gates, tolerances))
    if not batches or min(batches) < 1:
        raise UsageError(f"batches are {list(batches)}; expected sizes from 1, such as 1,8")
    opened = Bundle.open(bundle)
    joining = open_others(opened, others)
    earlier = read_baseline(baseline) if baseline is not None else None
    threads = threads or cores()
    entered = entrants(opened, joining, precisions, reference=source is None, device=device)
    specs = {PYTORCH: _spec(opened, PYTORCH, device, source, threads)} if source is not None else {}
    specs |= {name: _spec(other, variant, device, source, threads) for name, (other, variant) in entered.items()}
    reference = next(iter(specs))
    refuse_unknown([*parsed, *tolerated], list(specs), METRICS, earlier is not None)
    accepted = accepted_gates(parsed, tolerated, list(specs))
    work = workload(opened, data, limit, beam, max_new_tokens, list(joining.values()))
    if work.kind == "pairs" and work.generates:
        require_sacrebleu()
    if out is not None:
        require_jinja2()
        check_out(out, force)
    sizes = {name: _bytes(other, variant) for name, (other, variant) in entered.items()}
    facts = machine.describe()
    paths = [os.getcwd()] if source is not None else []  # a source may be a module in the current folder
    batches = batches[:1] if work.method == "run" else batches  # golden inputs have a batch of their own
    measured = measurement.measured(specs, work, batches, reference, sizes, progress, paths)
    variants, outputs = measured.variants, measured.outputs
    facts["versions"] |= measured.versions
    conditions: dict[str, Any] = {
        "bundle": opened.name,
        "task": opened.task,
        "reference": reference,
        "machine": facts,
        "data": {"name": work.name, "kind": work.kind, "count": work.count, "rows": work.rows, "built_in": work.built_in},
        "method": notes.method(work, batches, threads) | {"accepted": [gate.expr for gate in accepted]},
    }
    busy = machine.busy(facts, variants)
    sentences = notes.notes(work, variants, busy) + notes.of_others(opened, joining, work)
    sentences += [note for note in [machine.saturation_note(facts, variants)] if note and device == "cpu"]
    if earlier is not None:
        sentences += differences(earlier, conditions)
        _add_changes(variants, earlier["variants"])
    if work.generates:
        progress("looking where answers part")
    alike = [name for name in specs if name == PYTORCH or notes.tokenizers(entered[name][0]) == notes.tokenizers(opened)]
    recommended = recommend(variants, reference, accepted)
    return Report(
        **conditions,
        variants=variants,
        gates=evaluate(parsed, variants, reference),
        verdict=verdicts(variants, reference, notes.INPUT_NOUNS.get(work.kind, "inputs"), accepted),
        recommended=recommended.name if len(variants) > 1 else None,
        recommended_for=recommended.why,
        unclear=list(recommended.unclear),
        busy=busy,
        examples={name: differing(work, outputs[name], outputs[reference]) for name in variants if name != reference},
        divergence=divergences({name: specs[name] for name in alike}, work, outputs, reference, opened, paths),
        evidence=_evidence(entered),
        notes=sentences,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def open_others(bundle: Bundle, paths: Sequence[str | Path]) -> dict[str, Bundle]:
    """Bundles to compare with `bundle`, by names of their own: each's name, numbered where it is taken. UsageError: another task."""
    by_name: dict[str, Bundle] = {}
    for path in paths:
        other = Bundle.open(path)
        if other.task != bundle.task:
            raise UsageError(f"{path} is for {other.task}, {bundle.path} for {bundle.task}; compare bundles of one task")
        plain = label(other)
        taken, number = {bundle.name, *by_name}, 2
        name = plain
        while name in taken:
            name, number = f"{plain}-{number}", number + 1
        by_name[name] = other
    return by_name


def label(bundle: Bundle) -> str:
    """A bundle's name, as it stands before its variants in names."""
    return re.sub(r"[^\w.-]+", "-", bundle.name) or "other"


def entrants(
    bundle: H, others: Mapping[str, H], precisions: Sequence[str] | None, reference: bool, device: str = "cpu"
) -> dict[str, tuple[H, str]]:
    """The variants to measure, by name: the bundle's under their own, those of others as NAME/VARIANT.

    precisions: such names; a variant's alone means that of every bundle that has it, and a precision's the device's own variant; None is
    all that were made for the device; CHECKED+DRAFT is a variant of the bundle for which another guesses. reference: the bundle's fp32 (its
    default where there is none) is measured in any case, and comes first.
    UsageError: a name that no bundle has.
    """
    pairs = [name for name in precisions or () if "+" in name and all(part in bundle.variants for part in name.split("+", 1))]
    every: dict[str, tuple[H, str]] = {name: (bundle, name) for name in [*bundle.variants, *pairs]}
    every |= {f"{label}/{name}": (other, name) for label, other in others.items() for name in other.variants}
    if precisions is not None:
        precisions = [for_device(name, device, every) for name in precisions]
    for name in precisions or ():
        if not any(name in (full, variant) for full, (_, variant) in every.items()):
            close = difflib.get_close_matches(name, every, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            subject, verb = ("bundles have", "they hold") if others else ("bundle has", "it holds")
            raise UsageError(f"the {subject} no variant {name!r}; {verb} {', '.join(every)}{hint}")
    plain = for_device("fp32" if "fp32" in bundle.variants else bundle.default, device, bundle.variants)
    named = [
        full
        for full, (owner, variant) in every.items()
        if (suits(variant, device, owner.variants) if precisions is None else full in precisions or variant in precisions)
    ]
    return {name: every[name] for name in dict.fromkeys([plain] * reference + named)}


def accepted_gates(gates: Sequence[Gate], tolerances: Sequence[Gate], variants: Sequence[str]) -> list[Gate]:
    """What is accepted of quality: the tolerances, and the gates that are on quality. UsageError: a tolerance that is not."""
    for gate in tolerances:
        if not quality_of_gate(gate.split(variants)[1], METRICS):
            raise UsageError(f"--tolerance {gate.expr}: is not about quality; expected such as 'bleu_drop<=1', 'agreement>=0.98'")
    return [*tolerances, *(gate for gate in gates if quality_of_gate(gate.split(variants)[1], METRICS))]


def _spec(bundle: Bundle, name: str, device: str, source: str | None, threads: int) -> dict[str, Any]:
    """The spec of a side, see `worker`."""
    if name == PYTORCH:
        return {"kind": "pytorch", "source": str(source), "threads": threads}
    checked, _, draft = name.partition("+")
    spec = {"kind": "bundle", "path": str(bundle.path), "precision": checked, "device": device, "threads": threads}
    return spec | ({"draft": draft} if draft else {})


def _bytes(bundle: Bundle, name: str) -> int:
    """All that a side needs on disk: what variants share counts once."""
    checked, _, draft = name.partition("+")
    return bundle.variants[checked].bytes + sum(bundle.files[file].bytes for file in (bundle.variants[draft].files if draft else ()))


def _add_changes(variants: dict[str, dict[str, Any]], earlier: dict[str, dict[str, Any]]) -> None:
    """Adds `change` and `X_change` since a baseline to the metrics of every variant."""
    for name, values in variants.items():
        values["change"] = changes(values, earlier.get(name, {}))
        values |= {f"{metric}_change": change for metric, change in values["change"].items()}


def _evidence(entered: dict[str, Entrant]) -> dict[str, dict[str, Any]]:
    """What was learned when variants were made, with their plans; variants without any are left out."""
    variants = {name: bundle.variants[variant] for name, (bundle, variant) in entered.items() if variant in bundle.variants}
    return {name: {**one.evidence, "plan": dict(one.plan)} for name, one in variants.items() if one.evidence}
