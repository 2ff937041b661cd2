"""The order of the stages: source → standard ONNX and golden answers → fused graphs → variants, each checked → bundle."""

import importlib
import importlib.metadata
import io
import platform
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxport import __version__, bounds
from onnxport.compare.gates import parse_gate
from onnxport.errors import OutputError, UsageError
from onnxport.runtime.bundle import Bundle
from onnxport.runtime.staging import Staging, bundle_folder, extended_bundle

if TYPE_CHECKING:
    from onnxport.export.result import Exported

Say = Callable[[str], None]
Graphs = dict[str, Any]  # role → onnx_ir.Model
PRECISIONS = tuple(bounds.BOUNDS)
CALIBRATED = ("int8-static", "int4-gptq", "auto")
CALIBRATABLE = {"int8", "int8-reduced", "fp16"}  # take calibration data, and the golden inputs where there is none
DEFAULT = ("fp32", "fp16", "int8")
VERSIONED = ("torch", "onnx", "onnxscript", "onnxruntime")
GOLDEN = "golden.npz"
CHAT = "chat_template.jinja"


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
    _check(precision, calibrate, budget, None, data)
    if calibrate is not None and "fp32" not in precision:
        raise UsageError("--calibrate: data is read through the fp32 variant: add fp32 to --precision")
    for package in ("torch", "onnx", "onnxscript", "safetensors"):
        _heavy(package, "export")
    exporter = _heavy("onnxport.export", "export")
    with bundle_folder(out, force) as staging:
        exported = exporter.export(source, task=task, opset=opset, allow_pickle=allow_pickle, progress=progress)
        progress("fuse")
        fused, fusions = _fuse(exported)
        search = _search_graphs(exported)
        _write_shared(staging, exported, search)
        staging.manifest = _manifest(exported, search, precision[0], Path(out).name)
        expected = exported.expected
        memory = _heavy("onnxport.memory", "export")
        memory.forget(exported.graphs)
        with memory.on_disk(fused, staging.path) as weights:
            making = _heavy("onnxport.making", "export")
            given = making.Given(calibrate, data, budget, threads, search_folder(out))
            make = making.Making(staging, fused, fusions, expected, given, weights.let_go, progress)
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
    _check((precision,), calibrate, budget, plan, data)
    ir = _heavy("onnx_ir", "export")
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
            fused["decoder"] = _heavy("onnxport.quantize.choice", "export").remove_choice(fused["decoder"])
        for name in bundle.variants[precision].files if precision in bundle.variants else ():
            (staging.path / name).unlink()
        if staging.manifest is not None:
            staging.manifest["variants"].pop(precision, None)
        making = _heavy("onnxport.making", "export")
        given = making.Given(calibrate, data, budget, threads, search_folder(place))
        making.Making(staging, fused, dict(base.fusions), {}, given, lambda: None, progress).add(precision, plan)
        progress("hash and publish")
    return Bundle.open(place)


def search_folder(bundle: str | Path) -> Path:
    """Where a search for a bundle's `auto` keeps what it has measured until it is done: beside the bundle."""
    bundle = Path(bundle).absolute()
    return bundle.with_name(f"{bundle.name}.search")


def _check(precision: tuple[str, ...], calibrate: Path | None, budget: str | None, plan: Path | None, data: Path | None) -> None:
    """UsageError for precisions that are not known, and for options that none of them takes or that one of them lacks."""
    if not precision:
        raise UsageError(f"no precision is named: expected some of {', '.join(PRECISIONS)}")
    unknown = [name for name in precision if name not in PRECISIONS]
    if unknown:
        raise UsageError(f"precision {unknown[0]!r} is not known: expected some of {', '.join(PRECISIONS)}")
    if "bf16" in precision:
        bounds.check_bf16()
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


def _heavy(module: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("onnxport"):
            raise
        raise UsageError(f"{error.name} is not installed, which this command needs: pip install 'onnxport[{extra}]'") from None


def _fuse(exported: "Exported") -> tuple[Graphs, dict[str, int]]:
    """The fused graphs, and how often each rule applied in all of them."""
    fuse = _heavy("onnxport.quantize.fusion", "export").fuse
    fused: Graphs = {}
    total: Counter[str] = Counter()
    for role, graph in exported.graphs.items():
        fused[role], counts = fuse(graph, role)
        total.update(counts)
    return fused, dict(total)


def _write_shared(staging: Staging, exported: "Exported", search: dict[str, bytes]) -> None:
    """Tokenizers, search graphs and golden answers: what all variants share."""
    for file, content in _shared(exported, search).items():
        path = staging.path / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


def _tokenizer_files(exported: "Exported") -> dict[str, str]:
    one = len(set(exported.tokenizers.values())) == 1
    return {side: "tokenizer.json" if one else f"{side}_tokenizer.json" for side in exported.tokenizers}


def _search_graphs(exported: "Exported") -> dict[str, bytes]:
    if exported.generation is None:
        return {}
    selection = _heavy("onnxport.quantize.selection", "export")
    graphs: dict[str, bytes] = selection.search_graphs(2 * exported.generation["layers"], exported.generation["vocab_size"])
    return graphs


def _shared(exported: "Exported", search: dict[str, bytes]) -> dict[str, bytes]:
    files = {name: exported.tokenizers[side] for side, name in _tokenizer_files(exported).items()}
    files |= {f"search/{name}.onnx": content for name, content in search.items()}
    if exported.chat is not None:
        files[CHAT] = exported.chat["template"].encode()
    buffer = io.BytesIO()
    arrays: dict[str, Any] = dict(sorted(exported.goldens.items()))
    np.savez_compressed(buffer, **arrays)  # no time of day in it: the bytes are repeatable
    return files | {GOLDEN: buffer.getvalue()}


def _manifest(exported: "Exported", search: dict[str, bytes], default: str, name: str) -> dict[str, Any]:
    versions = {package: importlib.metadata.version(package) for package in VERSIONED if _installed(package)}
    return {
        "name": exported.name or name,
        "task": exported.task,
        "family": exported.family,
        "default": default,
        "generation": exported.generation,
        "encoding": exported.settings.get("encoding"),
        "chat": None if exported.chat is None else {"template": CHAT, "tokens": exported.chat["tokens"]},
        "golden": GOLDEN,
        "tokenizers": _tokenizer_files(exported),
        "search": {graph: f"search/{graph}.onnx" for graph in search},
        "variants": {},
        "settings": exported.settings,
        "provenance": {
            "route": exported.route,
            "opset": exported.opset,
            "source": exported.source_hashes,
            "versions": {"onnxport": __version__, "python": platform.python_version(), **versions},
        },
    }


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
