"""`compare`: the variants of a bundle, and the original in PyTorch, measured against each other."""

import difflib
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from onnxport.compare import machine, measure, metrics
from onnxport.compare.examples import differing
from onnxport.compare.gates import evaluate, parse_gate
from onnxport.compare.report import Report, check_out
from onnxport.compare.report.baseline import changes, read_baseline
from onnxport.compare.report.html import require_jinja2
from onnxport.compare.verdict import best, verdicts
from onnxport.compare.workload import GOLDEN, Workload, workload
from onnxport.errors import UsageError
from onnxport.runtime.bundle import Bundle
from onnxport.runtime.session import cores

PYTORCH = "pytorch"


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
) -> Report:
    """Measures quality, agreement, speed, memory and size of a bundle's variants and writes report.json, report.md and report.html.

    The reference is the fp32 variant (the bundle's default where there is none); with `source`, the original model in PyTorch joins as
    `pytorch` and is the reference. A reference that `precisions` leaves out is measured all the same.

    data: evaluation file (see `read_data`); without it only speed, memory, size and agreement are measured.
    batches: batch sizes to time; `throughput` and `speedup` are those of the first.  threads: for every side; default: all it may use.
    out: folder for the reports, or None to write none.  limit: at most so many rows, evenly spaced over the file.
    gates: `[VARIANT.]METRIC OP NUMBER`; failing ones are in the report, and `Report.raise_for_gates` raises for them.
    beam: beams of every side, 1 is greedy; None for the model's own number. Nothing is ever drawn at random.
    progress: told the name of each stage.

    Raises UsageError (gates, variants, missing extras), BundleError, DataError, DeviceError, OutputError.
    """
    tell = progress or (lambda stage: None)
    parsed = [parse_gate(expr) for expr in gates]
    if not batches or min(batches) < 1:
        raise UsageError(f"batches are {list(batches)}; expected sizes from 1, such as 1,8")
    opened = Bundle.open(bundle)
    earlier = read_baseline(baseline) if baseline is not None else None
    work = workload(opened, data, limit, beam, max_new_tokens)
    if work.kind == "pairs":
        metrics.require_sacrebleu()
    if out is not None:
        require_jinja2()
        check_out(out, force)
    threads = threads or cores()
    reference, names = _variants(opened, precisions, source)
    specs = {name: _spec(opened, name, device, source, threads) for name in names}
    sizes = {name: opened.variants[name].bytes for name in names if name != PYTORCH}
    before = machine.describe()
    paths = [os.getcwd()] if source is not None else []  # a source may be a module in the current folder
    batches = batches[:1] if work.method == "run" else batches  # golden inputs have a batch of their own
    measured, outputs, versions = measure.measured(specs, work, batches, reference, sizes, tell, paths)
    before["versions"] |= versions
    for name, values in measured.items():
        if earlier is not None:
            values["change"] = changes(values, earlier["variants"].get(name, {}))
    report = Report(
        bundle=opened.name,
        task=opened.task,
        reference=reference,
        variants=measured,
        gates=evaluate(parsed, measured, reference),
        machine=before,
        verdict=verdicts(measured, reference),
        recommended=best(measured, reference) if len(measured) > 1 else None,
        data={"name": work.name, "kind": work.kind, "count": len(work.inputs), "rows": work.rows, "built_in": work.built_in},
        method=_method(work, batches, threads),
        examples={name: differing(work, outputs[name], outputs[reference]) for name in names if name != reference},
        notes=_notes(work, measured, reference, before),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    if out is not None:
        tell("writing the report")
        report.write(out, force=force)
    return report


def _variants(bundle: Bundle, precisions: Sequence[str] | None, source: str | None) -> tuple[str, list[str]]:
    """The reference and all names to measure, the reference first."""
    names = list(precisions or bundle.variants)
    for name in names:
        if name not in bundle.variants:
            close = difflib.get_close_matches(name, bundle.variants, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UsageError(f"the bundle has no variant {name!r}; it holds {', '.join(bundle.variants)}{hint}")
    plain = "fp32" if "fp32" in bundle.variants else bundle.default
    reference = PYTORCH if source is not None else plain
    return reference, list(dict.fromkeys([reference, *names]))


def _spec(bundle: Bundle, name: str, device: str, source: str | None, threads: int) -> dict[str, Any]:
    if name == PYTORCH:
        return {"kind": "pytorch", "source": str(source), "threads": threads}
    return {"kind": "bundle", "path": str(bundle.path), "precision": name, "device": device, "threads": threads}


def _method(work: Workload, batches: Sequence[int], threads: int) -> dict[str, Any]:
    method: dict[str, Any] = {
        "threads": threads,
        "batches": list(batches),
        "unit": work.unit,
        "launches": measure.LAUNCHES,
        "processes": "each side in a process of its own; sides alternate run by run; medians, with warm-up",
        "size_bytes": "the variant's graphs and weights, tokenizers and search graphs; golden answers are not counted",
        "first_output_ms": "from the start of the process, imports included, to the first answer",
    }
    if work.generates:
        method |= {"beam": work.natural["beam"], "natural": work.natural, "fixed": work.fixed}
        method["throughput"] = f"{work.fixed['max_new_tokens']} new tokens a row, at batch size {batches[0]}"
        method["latency_ms"] = "single inputs, each answered to its natural end"
    if work.kind == "pairs" and work.references:
        method["signatures"] = metrics.signatures(work.references)
        method["bleu"] = f"{work.rows} rows, {len(work.inputs)} sources measured; BLEU against all references of a source"
    return method


def _notes(work: Workload, variants: Mapping[str, Mapping[str, Any]], reference: str, facts: Mapping[str, Any]) -> list[str]:
    """What a reader must know before trusting the figures."""
    notes = []
    if work.kind == GOLDEN:
        notes.append(f"Measured on the bundle's own {len(work.inputs)} golden inputs: quality on other data is not known.")
    elif work.built_in:
        notes.append(f"No data was given: measured on {len(work.inputs)} {work.name}, so nothing is known of the quality. Give --data.")
    elif len(work.inputs) < 100:
        notes.append(f"Only {len(work.inputs)} inputs were measured: quality figures may move by several points on other data.")
    if PYTORCH in variants and work.generates:
        notes.append("pytorch is the original class as it is, which decodes without a key/value cache: the longer the answers, the slower.")
    load, cpus = (facts["load_average"] or [0])[0], facts["available_cpus"]
    if load > cpus + 0.5:
        worst = "; PyTorch, whose threads wait for one another, suffers most" if PYTORCH in variants else ""
        notes.append(
            f"The machine was busy (load {load:.1f} on {cpus} CPUs): speeds and ratios are rough{worst}. Measure again on a quiet one."
        )
    for name, values in variants.items():
        spread = values["speedup_spread"]
        if name != reference and spread["high"] > 1.5 * spread["low"]:
            notes.append(f"Noisy: {name} was between {spread['low']:.2f} and {spread['high']:.2f} times as fast from run to run.")
    return notes
