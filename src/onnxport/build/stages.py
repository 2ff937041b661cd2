"""The order of the stages: source → standard ONNX and golden answers → fused graphs → variants, each checked → bundle."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxport.build.contents import Graphs, Say, manifest, search_graphs, write_shared
from onnxport.build.request import Given, check, search_folder
from onnxport.errors import OutputError, UsageError
from onnxport.extras import require
from onnxport.quantize.precisions import DEFAULT
from onnxport.runtime.bundle.reader import Bundle
from onnxport.runtime.bundle.writer import bundle_folder, extended_bundle

if TYPE_CHECKING:
    from onnxport.export.exported import Exported


def build(
    source: Any,
    out: str | Path,
    *,
    task: str | None = None,
    precision: tuple[str, ...] = DEFAULT,
    opset: int | None = None,
    calibrate: Path | None = None,
    budget: str | None = None,
    data: Path | None = None,
    threads: int | None = None,
    allow_pickle: bool = False,
    force: bool = False,
    progress: Say = lambda stage: None,
) -> Bundle:
    """Export `source` to a bundle at `out`.

    Args:
        source: what `onnxport.export.export` takes: a folder, `package.module:factory`, or an adapter.
        out: the bundle's folder; it appears whole or not at all.
        precision: the variants; the first becomes the default one.
        calibrate: data for the schemes that are calibrated, a file as `compare` takes.
        budget: what the variant `auto` may lose, a gate such as `bleu_drop<=0.3`.
        data: what the plans of `auto` are measured on; None for rows of `calibrate` that are not calibrated on.
        threads: for the measurements of `auto`; None for all there are.
        force: replace an existing bundle.
        progress: called with the name of each stage as it begins.

    Raises:
        UsageError, CheckpointError, DataError, ParityError, GateError, FusionError, DeviceError, OutputError: see onnxport.errors; nothing
        is left behind, but what a search for `auto` has measured (see `search_folder`).
    """
    check(precision, calibrate, budget, None, data)
    if calibrate is not None and "fp32" not in precision:
        raise UsageError("--calibrate: data is read through the fp32 variant: add fp32 to --precision")
    for package in ("torch", "onnx", "onnx_ir", "onnxscript", "safetensors"):
        require(package, "export")
    from onnxport import export as exporter
    from onnxport.build.variant import Making
    from onnxport.graph import store

    with bundle_folder(out, force) as staging:
        exported = exporter.export(source, task=task, opset=opset, allow_pickle=allow_pickle, progress=progress)
        progress("fuse")
        fused, fusions = _fuse(exported)
        search = search_graphs(exported)
        write_shared(staging, exported, search)
        staging.manifest = manifest(exported, search, precision[0], Path(out).name)
        expected = exported.expected
        store.forget(exported.graphs)
        with store.on_disk(fused, staging.path) as weights:
            given = Given(calibrate, data, budget, threads, search_folder(out))
            make = Making(staging, fused, fusions, expected, given, weights.let_go, progress)
            for name in sorted(precision, key=lambda name: name != "fp32"):  # the others may be calibrated through it
                make.add(name)
                weights.let_go()
            variants = staging.manifest["variants"]
            staging.manifest["variants"] = {name: variants[name] for name in precision}
        progress("hash and publish")
    return Bundle.open(out)


def add_variant(
    path: Path,
    precision: str,
    *,
    plan: Path | None = None,
    calibrate: Path | None = None,
    budget: str | None = None,
    data: Path | None = None,
    threads: int | None = None,
    force: bool = False,
    progress: Say = lambda stage: None,
) -> Bundle:
    """Add the variant `precision` to the bundle at `path`, made from its fp32 variant; the bundle is replaced whole or stays as it was.

    plan: a file that says what each module becomes, in place of the precision's recipe. calibrate, budget, data, threads: as in `build`.
    Errors: as `build`; DataError for a plan or data that cannot be used, GateError when no plan is within the budget.
    """
    check((precision,), calibrate, budget, plan, data)
    ir = require("onnx_ir", "export")
    from onnxport.build.variant import Making
    from onnxport.graph.search_graphs import remove_choice

    bundle = Bundle.open(path)
    if precision in bundle.variants and not force:
        raise OutputError(f"{path} has a variant {precision} already: give --force to make it again")
    if "fp32" not in bundle.variants:
        raise UsageError(f"{path} has no fp32 variant to make {precision} from: export with --precision fp32,{precision}")
    place = path.resolve()  # a link stays one, and "." is another folder once it is replaced
    with extended_bundle(place) as staging:
        progress("read fp32")
        base = bundle.variants["fp32"]
        fused = {role: ir.load(bundle.file(name)) for role, name in base.graphs.items()}
        if "decoder" in fused:
            fused["decoder"] = remove_choice(fused["decoder"])
        for name in bundle.variants[precision].files if precision in bundle.variants else ():
            (staging.path / name).unlink()
        if staging.manifest is not None:
            staging.manifest["variants"].pop(precision, None)
        given = Given(calibrate, data, budget, threads, search_folder(place))
        Making(staging, fused, dict(base.fusions), {}, given, lambda: None, progress).add(precision, plan)
        progress("hash and publish")
    return Bundle.open(place)


def _fuse(exported: "Exported") -> tuple[Graphs, dict[str, int]]:
    """The fused graphs, and how often each rule applied in all of them."""
    from onnxport.quantize.fusion import fuse

    fused: Graphs = {}
    total: Counter[str] = Counter()
    for role, graph in exported.graphs.items():
        fused[role], counts = fuse(graph, role, "cpu")
        total.update(counts)
    return fused, dict(total)
