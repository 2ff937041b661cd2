"""The stages of a build in their order: source → standard graphs and golden answers → fused graphs → variants → bundle."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxport.build.card import add_license, write_card
from onnxport.build.contents import VERSIONED, add_note, versions, write_contents
from onnxport.build.request import BuildOptions, in_making_order, new_bundle_options, own_cache, search_folder
from onnxport.build.work import WorkFolder, described, folder_hashes
from onnxport.errors import BundleError, CheckFailed, NotApplicable, OutputError, UsageError, one_line
from onnxport.extras import require
from onnxport.progress import Progress, silent
from onnxport.quantize.precisions import REFERENCE
from onnxport.runtime.bundle.reader import Bundle
from onnxport.runtime.bundle.variant_names import CPU, split
from onnxport.runtime.bundle.writer import Staging, bundle_folder, extended_bundle

if TYPE_CHECKING:
    from onnxport.build.variant import FusedGraphs, VariantBuilder
    from onnxport.export.exported import Exported

ALL_EXPERTS = "every expert is computed for every token, and the router's weights choose: right, but as slow as all experts together"
READERS = ("transformers", "tokenizers", "safetensors", "sentencepiece", "ml_dtypes", "numpy")  # what a source may be read by


def build(
    source: Any,
    out: str | Path,
    *,
    task: str | None = None,
    precision: tuple[str, ...] | None = None,
    opset: int | None = None,
    calibrate: Path | None = None,
    budget: str | None = None,
    data: Path | None = None,
    threads: int | None = None,
    kv: str | None = None,
    target: tuple[str, ...] = (CPU,),
    allow_pickle: bool = False,
    adapter: Path | None = None,
    allow_remote_code: bool = False,
    route: str | None = None,
    force: bool = False,
    keep_going: bool = False,
    resume: bool = False,
    progress: Progress = silent,
) -> Bundle:
    """Export `source` to a bundle at `out`.

    A variant that fails its checks is left out of the bundle, whose `failed` says why, unless it is fp32 or no other one passes.

    Args:
        source: what `onnxport.export.export` takes: a folder, `package.module:factory`, or an adapter.
        out: the bundle's folder; it appears whole or not at all.
        task: the bundle's task; None for the source's own.
        precision: the variants; the first becomes the default one. None for fp32, fp16 and int8, or where most weights are codes of 4 or 8
            bits already, for what carries these without loss, and fp32.
        opset: ONNX opset of the traced graphs; None for the exporter's own.
        calibrate: data for the schemes that are calibrated, a file as `compare` takes. Some of its texts become golden texts of a language
            model, and are not calibrated on.
        budget: what the variant `auto` may lose, a gate such as `bleu_drop<=0.3`.
        data: what the plans of `auto` are measured on; None for rows of `calibrate` that are not calibrated on.
        threads: for the measurements of `auto`; None for all there are.
        kv: "int8" for key/value caches of 8 bits in variants of 8 and 4 bits; None for the type of the graph.
        target: what the variants are for, of "cpu", "cuda" and "web"; int8 for CUDA is the variant int8@cuda. A precision such as
            "int8@cuda" names one by itself.
        allow_pickle: read PyTorch pickles too (weights only).
        allow_remote_code: run a folder's own code (`auto_map`), which can do whatever its user can.
        adapter: a LoRA adapter's folder, as PEFT saves it, merged into the weights of the source.
        route: as in `onnxport.export.export`; None for what suits the source.
        force: replace an existing bundle, unless it has a variant that fails now.
        keep_going: replace it also then.
        resume: what is finished stays in the folder `.OUT.work` beside `out` when the export ends too early, and an export of the same
            source, options and versions goes on with it.
        progress: called with the name of each stage as it begins.

    Raises:
        OnnxportError: UsageError, CheckpointError, DataError, ParityError, GateError, FusionError, DeviceError or OutputError; see
            onnxport.errors. Nothing is left behind, but what a search for `auto` has measured (see `search_folder`).
    """
    options, refused = new_bundle_options(precision, target, calibrate, budget, data, threads, kv)
    for package in ("torch", "onnx", "onnx_ir", "onnxscript", "safetensors"):
        require(package, "export")
    from onnxport.build.estimate import check_room
    from onnxport.export import export
    from onnxport.export.trace.tracer import check_opset
    from onnxport.quantize.calibration_inputs import judged_texts

    check_opset(opset)
    check_room(source, Path(out), options.precisions, resume, allow_pickle, task)
    reading: dict[str, Any] = {"task": task, "opset": opset, "allow_pickle": allow_pickle}
    reading |= {name: value for name, value in (("lora", adapter), ("route", route)) if value is not None}
    reading |= {"allow_remote_code": True} if allow_remote_code else {}
    reading |= {"texts": texts} if calibrate is not None and (texts := judged_texts(calibrate)) else {}
    with bundle_folder(out, force, progress, keep=resume) as staging, _work_folder(staging, source, reading, resume, progress) as work:
        fused = work.graphs() if work else None
        if fused is None:
            goldens = work.goldens() if work else None
            exported = export(source, **reading, progress=progress, goldens=goldens)
            progress("fuse")
            fused = _fuse(exported)
            if goldens is None:
                exported = replace(exported, notes=(*exported.notes, *_costs(fused)))
                write_contents(staging, exported, default=options.precisions[0], name=Path(out).name)
                if work:
                    work.keep_graphs(fused)
        add_license(staging, source)
        if precision is None and calibrate is None and target == (CPU,):
            options = _carrying(options, fused, staging)
        for name in refused:
            add_note(staging, f"{name} is left out: {split(name)[1]} has no kernels for it")
        _check_cache(options, fused)
        _add_variants(staging, fused, options, search_folder(out), work, progress)
        if kv is not None:
            own = [name for name in options.precisions if own_cache(name)]
            add_note(staging, f"key/value caches are {kv}" + (f"; {' and '.join(own)} keep their own" if own else ""))
        if not keep_going:
            _check_loses_nothing(staging, Path(out))
        progress("hash and publish")
        write_card(staging)
    return Bundle.open(out)


def _check_loses_nothing(staging: Staging, out: Path) -> None:
    """CheckFailed where a variant failed that the bundle at `out`, which is to be replaced, has."""
    assert staging.manifest is not None
    failed = staging.manifest.get("failed", {})
    if not failed or not os.path.lexists(out):
        return
    with contextlib.suppress(BundleError):  # a damaged one is no loss
        lost = [name for name in Bundle.read(out).variants if name in failed]
        if lost:
            reasons = "; ".join(f"variant {name}: {failed[name]}" for name in lost)
            raise CheckFailed(f"{reasons}; {out} has {' and '.join(lost)} and stays as it was: --keep-going replaces it all the same")


def _carrying(options: BuildOptions, fused: FusedGraphs, staging: Staging) -> BuildOptions:
    """The options with the precisions of a model whose weights are codes already, which the manifest notes; else as they are."""
    from onnxport.quantize.schemes.blocks.stored import carrying

    name = carrying(fused.graphs)
    if name is None:
        return options
    assert staging.manifest is not None
    left = ", ".join(one for one in options.precisions if one != REFERENCE)
    note = f"the weights are codes of few bits already, which {name} carries without loss: {left} are left out; --precision makes them"
    add_note(staging, note)
    staging.manifest["default"] = name
    return replace(options, precisions=(name, REFERENCE))


def _check_cache(options: BuildOptions, fused: FusedGraphs) -> None:
    """UsageError where caches are to be what the model's cannot become."""
    if options.kv is not None:
        from onnxport.quantize.schemes import int8_cache

        int8_cache.check(fused.graphs)


@contextlib.contextmanager
def _work_folder(staging: Staging, source: Any, reading: dict[str, Any], resume: bool, progress: Progress) -> Iterator[WorkFolder | None]:
    """What an export with `resume` keeps; None without. reading: the options that graphs depend on."""
    if not resume:
        yield None
        return
    progress("hash the source")
    key = {"source": folder_hashes(source), "options": described(reading), "version": versions((*VERSIONED, *READERS))}
    with WorkFolder(staging, key, progress) as work:
        yield work


def add_variant(
    path: Path,
    precision: str,
    *,
    plan: Path | None = None,
    calibrate: Path | None = None,
    budget: str | None = None,
    data: Path | None = None,
    threads: int | None = None,
    kv: str | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Bundle:
    """Add the variant `precision`, such as int8 or int8@cuda, to the bundle at `path`, made from its fp32 variant.

    The bundle is replaced whole or stays as it was.

    plan: a file that names the scheme of each module, in place of the precision's own. calibrate, budget, data, threads, kv: as in `build`.

    Raises:
        OnnxportError: as `build`; DataError for a plan or data that cannot be used, GateError when no plan is within the budget.
    """
    options = BuildOptions((precision,), plan, calibrate, budget, data, threads, kv)
    options.check()
    require("onnx_ir", "export")
    from onnxport.build.variant import VariantBuilder

    check_variants(Bundle.open(path).variants, path, precision, force)
    place = path.resolve()  # a link stays one, and "." is another folder once it is replaced
    with extended_bundle(place, progress) as staging:
        bundle = staging.preview()
        check_variants(bundle.variants, path, precision, force)  # what another command added while this one waited
        progress(f"read {REFERENCE}")
        fused = _read_fused(bundle if precision != REFERENCE else Bundle.open(place))  # weights are read when they are used
        _check_cache(options, fused)
        _remove_variant(staging, precision)
        VariantBuilder(staging, fused, options, search_folder(place), progress).add(precision)
        assert staging.manifest is not None
        staging.manifest["default"] = bundle.default
        progress("hash and publish")
        write_card(staging)
    return Bundle.open(place)


def check_variants(variants: Collection[str], path: Path, precision: str, force: bool) -> None:
    """OutputError where the bundle, `path` to its user, has the variant already, UsageError where it has none to make it from."""
    if precision in variants and not force:
        raise OutputError(f"{path} has a variant {precision} already: give --force to make it again")
    if REFERENCE not in variants:
        raise UsageError(f"{path} has no {REFERENCE} variant to make {precision} from: export with --precision {REFERENCE},{precision}")


def _fuse(exported: Exported) -> FusedGraphs:
    """The graphs as ONNX Runtime runs them on the CPU. The standard graphs lose their weights: they are used no more."""
    from onnxport.build.variant import FusedGraphs
    from onnxport.graph import store
    from onnxport.graph.logits_positions import pick_rows
    from onnxport.quantize.fusion import fuse

    graphs, rules = {}, Counter[str]()
    for role, graph in exported.graphs.items():
        graphs[role], counts = fuse(graph, role, CPU)
        rules.update(counts)
    if "decoder" in graphs:
        graphs["decoder"] = pick_rows(graphs["decoder"])
    store.forget(exported.graphs)
    return FusedGraphs(graphs, dict(rules), exported.expected)


def _costs(fused: FusedGraphs) -> Iterator[str]:
    """What costs more than it could."""
    from onnxport.quantize.fusion.experts import written_out

    if any(written_out(model.graph) for model in fused.graphs.values()):
        yield ALL_EXPERTS


def _add_variants(
    staging: Staging, fused: FusedGraphs, options: BuildOptions, folder: Path, work: WorkFolder | None, progress: Progress
) -> None:
    """The variants, in the manifest in the order of the options; a precision that is not for this model is left out, and noted.

    One that fails its checks is left out, too, and stands in the manifest under `failed`.

    Raises:
        NotApplicable, CheckFailed: there is no variant; CheckFailed: fp32 failed.
    """
    from onnxport.build.variant import VariantBuilder
    from onnxport.graph import store

    assert staging.manifest is not None
    left_out: dict[str, NotApplicable] = {}
    failed: dict[str, CheckFailed] = {}
    kept = None if work is None else work.weights
    with store.on_disk(fused.graphs, staging.path) if kept is None else contextlib.nullcontext(kept.release_weights) as release_weights:
        builder = VariantBuilder(staging, fused, options, folder, progress, release_weights)
        for name in in_making_order(options.precisions):
            staging.manifest["default"] = next(iter(staging.manifest["variants"]), name)  # a bundle in the making is read too
            try:
                _add(name, builder, options, work)
            except NotApplicable as reason:
                left_out[name] = reason
            except CheckFailed as reason:
                if name == REFERENCE:
                    raise
                failed[name] = reason
                progress(f"note: {name} fails its checks and is left out")
            release_weights()
    made = {name: staging.manifest["variants"][name] for name in options.precisions if name not in {*left_out, *failed}}
    if not made:
        raise next(iter([*failed.values(), *left_out.values()]))
    staging.manifest |= {"variants": made, "default": next(iter(made))}
    if failed:
        staging.manifest["failed"] = {name: _why(reason, name) for name, reason in failed.items()}
    for name, found in left_out.items():
        add_note(staging, f"{name} is left out: {_why(found, name)}")


def _why(reason: Exception, name: str) -> str:
    """An error's reason, without the variant's name and the advice at its end."""
    return one_line(reason).rsplit("; ", 1)[0].removeprefix(f"variant {name}: ")


def _add(name: str, builder: VariantBuilder, options: BuildOptions, work: WorkFolder | None) -> None:
    """One variant, taken over where an earlier export finished it. Raises what `VariantBuilder.add` does."""
    if work is None:
        builder.add(name)
        return
    made_with = options.of_variant(name)
    if work.variant(name, made_with):
        return
    try:
        builder.add(name, work.fitted(name, made_with))
    except (NotApplicable, CheckFailed) as reason:
        work.keep_variant(name, made_with, reason)
        raise
    work.keep_variant(name, made_with)


def _read_fused(bundle: Bundle) -> FusedGraphs:
    """The float32 graphs of a bundle, as they were before tokens were chosen in them."""
    import onnx_ir as ir

    from onnxport.build.variant import FusedGraphs
    from onnxport.graph.logits_positions import pick_rows
    from onnxport.graph.search_graphs import remove_choice

    reference = bundle.variants[REFERENCE]
    graphs = {role: ir.load(bundle.file(name)) for role, name in reference.graphs.items()}
    if "decoder" in graphs:
        graphs["decoder"] = pick_rows(remove_choice(graphs["decoder"]))
    return FusedGraphs(graphs, dict(reference.fusions))


def _remove_variant(staging: Staging, name: str) -> None:
    """Takes a variant, if it is there, out of the bundle in the making and those that failed; others keep what they share with it."""
    from onnxport.build.shared_files import owned, part

    assert staging.manifest is not None
    variants = staging.manifest["variants"]
    if name in variants:
        part(staging.path, name, variants)
        for file in owned(name, variants):
            (staging.path / file).unlink()
        del variants[name]
        if staging.manifest["default"] == name:  # a bundle in the making is read too
            staging.manifest["default"] = next(iter(staging.manifest["variants"]), name)
    if name in staging.manifest.get("failed", {}):
        del staging.manifest["failed"][name]
