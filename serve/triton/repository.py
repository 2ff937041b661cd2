"""A bundle becomes a model of a Triton model repository: NAME/config.pbtxt and NAME/1/, written whole or not at all.

Source: "Model Repository" in Triton's documentation. In the Python backend the runtime answers, with text in and out. In the ONNX Runtime
backend the graph of an encoder answers, with arrays in and out.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from onnxport.errors import OutputError, UsageError
from onnxport.progress import Progress, silent
from onnxport.runtime import Model, load
from onnxport.runtime.bundle.manifest import MANIFEST
from onnxport.runtime.bundle.publish import publish, recover_output, workspace
from onnxport.runtime.memory.external_data import locations
from onnxport.runtime.sessions import is_older
from onnxport.serve.kserve.interface import Spec, interface
from onnxport.serve.triton.config import Config

VERSION, CONFIG, LABELS = "1", "config.pbtxt", "labels.txt"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
GRAPHS = ("model", "encoder")  # roles of graphs that answer alone


def write(
    bundle: str | Path,
    repository: str | Path,
    name: str | None = None,
    precision: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    onnxruntime: str | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Path:
    """Write a model into a repository and give its folder.

    name: of the model, the bundle's own by default. onnxruntime: the version that the user's Triton has, for its ONNX Runtime backend in
    place of the Python backend. The rest as `load`.
    Errors: those of `load`; UsageError: a name that is none, or a model that the backend cannot answer; OutputError.
    """
    progress(f"loading {bundle}")
    with load(bundle, precision=precision, device=device, threads=threads, verify=True) as model:
        name = model.bundle.name if name is None else name
        if not NAME.fullmatch(name):
            raise UsageError(f"the model's name is {name!r:.60}, expected letters, digits, dots, dashes and underscores; give --name")
        place = Path(repository).absolute() / name
        recover_output(place)
        _check(place, force)
        with workspace(place, progress) as folder:
            _check(place, force)
            made = folder / name
            (made / VERSION).mkdir(parents=True)
            progress(f"writing {place}")
            if onnxruntime is None:
                _python(model, made, name, device, threads)
            else:
                _onnx(model, made, name, device, onnxruntime)
            publish(made, place)
    return place


def _check(place: Path, force: bool) -> None:
    """OutputError where something is there that may not be replaced."""
    if not place.exists():
        return
    if not (place / CONFIG).is_file():
        raise OutputError(f"{place}: holds no {CONFIG}, expected a model of a Triton repository or nothing; choose another --out or --name")
    if not force:
        raise OutputError(f"{place} exists: choose another --out or --name, or give --force")


def _python(model: Model, made: Path, name: str, device: str, threads: int | None) -> None:
    """The runtime with its bundle, for the Python backend."""
    shutil.copyfile(Path(__file__).with_name("model.py"), made / VERSION / "model.py")
    folder = made / VERSION / "bundle"
    for file in model.bundle.files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        model.bundle.copy(file, folder / file)
    shutil.copyfile(model.bundle.path / MANIFEST, folder / MANIFEST)
    found = interface(model)
    batched = model.task != "tensor"
    outputs = [one for one in found.outputs if not (batched and one.name == "labels")]
    parameters = {"precision": model.precision, "device": device} | ({} if threads is None else {"threads": str(threads)})
    labels = _labels(model, made, outputs)
    _configure(made, Config(name, "python", found.inputs, outputs, batched, device, parameters, labels))


def _labels(model: Model, made: Path, outputs: list[Spec]) -> Mapping[str, str]:
    """The names of the columns of scores, in a file, for Triton's own classification of outputs."""
    names = model.bundle.encoding.labels
    if not names or "scores" not in {one.name for one in outputs}:
        return {}
    (made / LABELS).write_text("".join(f"{' '.join(one.split())}\n" for one in names), encoding="utf-8")
    return {"scores": LABELS}


def _onnx(model: Model, made: Path, name: str, device: str, version: str) -> None:
    """The graph alone, for the ONNX Runtime backend. UsageError."""
    variant = model.bundle.variants[model.precision]
    role = next((one for one in GRAPHS if one in variant.graphs), None)
    if model.engine is not None or role is None:
        raise UsageError(f"the task of {name} is {model.task}, which one graph does not answer; leave --onnxruntime out")
    if not re.match(r"\d+\.\d+", version):
        raise UsageError(f"--onnxruntime is {version!r:.30}, expected a version such as 1.23: that of your Triton, see its release notes")
    if variant.min_onnxruntime is not None and is_older(version, variant.min_onnxruntime):
        raise UsageError(
            f"variant {model.precision} needs onnxruntime {variant.min_onnxruntime} or newer, found {version}; "
            "leave --onnxruntime out, or take a newer Triton"
        )
    graph = PurePosixPath(variant.graphs[role])
    content = model.bundle.content(str(graph))
    (made / VERSION / "model.onnx").write_bytes(content)
    for location in sorted(locations(content)):
        target = made / VERSION / location
        target.parent.mkdir(parents=True, exist_ok=True)
        model.bundle.copy(str(graph.parent / location), target)
    encoder = model.encoding()
    found = interface(model)
    inputs = [replace(one, optional=False) for one in found.inputs if one.name in encoder.inputs]
    outputs = [one for one in found.outputs if one.name in encoder.outputs]
    batched = all(one.shape[:1] == (-1,) and len(one.shape) > 1 for one in (*inputs, *outputs)) and model.task != "tensor"
    _configure(made, Config(name, "onnxruntime", inputs, outputs, batched, device, {}, {}))


def _configure(made: Path, config: Config) -> None:
    (made / CONFIG).write_text(config.text(), encoding="utf-8")
