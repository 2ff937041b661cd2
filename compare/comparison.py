"""`compare`: the variants of a bundle, and the original in PyTorch, measured against each other."""

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from onnxport.compare import machine, measure, metrics, told
from onnxport.compare.divergence import divergences
from onnxport.compare.entrants import entrants, open_others
from onnxport.compare.examples import differing
from onnxport.compare.gates import evaluate, parse_gate
from onnxport.compare.report import Report, check_out
from onnxport.compare.report.baseline import changes, differences, read_baseline
from onnxport.compare.report.html import require_jinja2
from onnxport.compare.verdict import best, verdicts
from onnxport.compare.workload import workload
from onnxport.errors import UsageError
from onnxport.runtime.bundle import Bundle
from onnxport.runtime.session import cores

PYTORCH = told.PYTORCH


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
    progress: measure.Progress | None = None,
    *,
    force: bool = False,
    beam: int | None = None,
    max_new_tokens: int | None = None,
    others: Sequence[str | Path] = (),
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
    others: bundles of the same task whose variants join as NAME/VARIANT and are held against this bundle's reference.
    baseline: an earlier report: `X_change` of a variant is what became of X since.
    progress: told the name of each stage.

    Raises UsageError (gates, variants, missing extras), BundleError, DataError, DeviceError, OutputError.
    """
    tell = progress or (lambda stage: None)
    parsed = [parse_gate(expr) for expr in gates]
    if not batches or min(batches) < 1:
        raise UsageError(f"batches are {list(batches)}; expected sizes from 1, such as 1,8")
    opened = Bundle.open(bundle)
    joining = open_others(opened, others)
    earlier = read_baseline(baseline) if baseline is not None else None
    work = workload(opened, data, limit, beam, max_new_tokens, list(joining.values()))
    if work.kind == "pairs" and work.generates:
        metrics.require_sacrebleu()
    if out is not None:
        require_jinja2()
        check_out(out, force)
    threads = threads or cores()
    entered = entrants(opened, joining, precisions, reference=source is None)
    specs = {PYTORCH: _spec(opened, PYTORCH, device, source, threads)} if source is not None else {}
    specs |= {name: _spec(other, variant, device, source, threads) for name, (other, variant) in entered.items()}
    reference = next(iter(specs))
    sizes = {name: other.variants[variant].bytes for name, (other, variant) in entered.items()}
    before = machine.describe()
    paths = [os.getcwd()] if source is not None else []  # a source may be a module in the current folder
    batches = batches[:1] if work.method == "run" else batches  # golden inputs have a batch of their own
    measured, outputs, versions = measure.measured(specs, work, batches, reference, sizes, tell, paths)
    before["versions"] |= versions
    about: dict[str, Any] = {
        "bundle": opened.name,
        "task": opened.task,
        "reference": reference,
        "machine": before,
        "data": {"name": work.name, "kind": work.kind, "count": work.count, "rows": work.rows, "built_in": work.built_in},
        "method": told.method(work, batches, threads),
    }
    notes = told.notes(work, measured, reference, before) + told.of_others(opened, joining, work)
    notes += [note for note in [machine.saturation_note(before, measured)] if note and device == "cpu"]
    if earlier is not None:
        notes += differences(earlier, about)
        for name, values in measured.items():
            values["change"] = changes(values, earlier["variants"].get(name, {}))
            values |= {f"{metric}_change": change for metric, change in values["change"].items()}
    if work.generates:
        tell("looking where answers part")
    alike = [name for name in specs if name == PYTORCH or told.tokenizers(entered[name][0]) == told.tokenizers(opened)]
    report = Report(
        **about,
        variants=measured,
        gates=evaluate(parsed, measured, reference),
        verdict=verdicts(measured, reference, told.OF.get(work.kind, "inputs")),
        recommended=best(measured, reference) if len(measured) > 1 else None,
        examples={name: differing(work, outputs[name], outputs[reference]) for name in measured if name != reference},
        divergence=divergences({name: specs[name] for name in alike}, work, outputs, reference, opened, paths),
        evidence={
            name: {**one.evidence, "plan": dict(one.plan)}
            for name, (other, variant) in entered.items()
            if (one := other.variants[variant]).evidence
        },
        notes=notes,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    if out is not None:
        tell("writing the report")
        report.write(out, force=force)
    return report


def _spec(bundle: Bundle, name: str, device: str, source: str | None, threads: int) -> dict[str, Any]:
    if name == PYTORCH:
        return {"kind": "pytorch", "source": str(source), "threads": threads}
    return {"kind": "bundle", "path": str(bundle.path), "precision": name, "device": device, "threads": threads}
