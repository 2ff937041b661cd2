"""ONNX files of whatever exporter as a source: their checks before anything runs, what lies beside them, and their standard graph."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
from google.protobuf.message import DecodeError
from onnxscript import version_converter

from onnxport.errors import CheckpointError, UsageError, one_line
from onnxport.export.config_checks import read_json
from onnxport.export.onnx_file.old_softmax import unflatten
from onnxport.export.onnx_file.stored_weights import to_float
from onnxport.export.sentence_transformers import MODULES, classifying, read_modules
from onnxport.export.source import OnnxFile, Source
from onnxport.export.tokenizers.folder import READY, FolderTokenizers, hugging_face
from onnxport.export.user_code import silence
from onnxport.export.weights import file_hash
from onnxport.runtime.bundle.manifest import EncodingConfig

FAMILY = "onnx"
BESIDE = (".json", ".txt", ".model", ".jinja")  # what tokenizers are made of
OLDEST = 18  # opset: reductions take their axes as an input from here on, as the nodes of int8 do
HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
FLOAT = ir.DataType.FLOAT


def read_onnx(path: Path) -> Source:
    """The file, and the tokenizer, config and pooling beside it (or above it where the folder is called onnx). CheckpointError."""
    proto = _parsed(path)
    hashes = {path.name: file_hash(path)}
    hashes |= {name: file_hash(data) for name, data in _data_files(proto, path)}
    above = path.parent.parent if path.absolute().parent.name == "onnx" else path.parent

    def beside(name: str) -> Path:
        return next((folder / name for folder in (path.parent, above) if (folder / name).is_file()), path.parent / name)

    config = read_json(beside("config.json")) if beside("config.json").is_file() else {}
    texts = read_modules(beside(MODULES).parent)
    file = OnnxFile(path, proto, config, texts, tuple(dict.fromkeys((path.parent, above))))
    name = path.stem if path.stem != "model" else path.absolute().parent.name
    return Source(file, name, FAMILY, hashes=hashes)


def tokenizers(file: OnnxFile) -> FolderTokenizers:
    """The tokenizers beside the file, as transformers loads them; none without a tokenizer.json. CheckpointError."""
    if not any((folder / READY).is_file() for folder in file.folders):
        return FolderTokenizers()
    kind = str(file.config.get("model_type", ""))
    if len(file.folders) == 1:
        return hugging_face(file.folders[0], kind)
    with tempfile.TemporaryDirectory() as together:  # transformers reads one folder
        places: dict[str, str] = {}
        for folder in reversed(file.folders):
            for path in folder.iterdir():
                if path.suffix in BESIDE and path.is_file():
                    (link := Path(together) / path.name).unlink(missing_ok=True)
                    link.symlink_to(path.resolve())
                    places[str(link)] = str(path)
        try:
            return hugging_face(Path(together), kind)
        except CheckpointError as error:
            text = str(error)
            for ours, theirs in [*sorted(places.items(), reverse=True), (together, str(file.folders[-1]))]:
                text = text.replace(ours, theirs)
            raise CheckpointError(text) from error


def _parsed(path: Path) -> onnx.ModelProto:
    """CheckpointError unless the file is an ONNX model with a graph that answers something."""
    again = "export it again, or copy it whole"
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except (DecodeError, ValueError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not an ONNX file, or a damaged one; {again}") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    if not proto.ir_version or not proto.graph.output or not proto.opset_import:
        raise CheckpointError(f"{path} holds no ONNX graph with outputs; {again}")
    newest = onnx.defs.onnx_opset_version()
    for entry in proto.opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version > newest:
            raise CheckpointError(f"{path} is written in opset {entry.version}, expected at most {newest}; export it with an older opset")
    if unnamed := [kind for kind, values in (("input", proto.graph.input), ("output", proto.graph.output)) for v in values if not v.name]:
        raise CheckpointError(f"{path} has an {unnamed[0]} without a name; {again}")
    return proto


def _data_files(proto: onnx.ModelProto, path: Path) -> Iterator[tuple[str, Path]]:
    """Files of external data by name, each once. CheckpointError for one that is missing, too short, or elsewhere."""
    needed: dict[str, int] = {}
    for tensor in tensors(proto):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        info = {entry.key: entry.value for entry in tensor.external_data}
        name, offset, length = info.get("location", ""), info.get("offset", "0"), info.get("length", "0")
        if not name or not offset.isdigit() or not length.isdigit():
            raise CheckpointError(f"{path}: the external data of {tensor.name} is not described; export the model again")
        needed[name] = max(needed.get(name, 0), int(offset) + int(length))
    # a file's own folder, and where a link to it leads: a hub's cache has files and their data side by side, as links to one folder
    folders = (path.absolute().parent.resolve(), path.resolve().parent)
    for name, size in sorted(needed.items()):
        file = path.parent / name
        inside = Path(os.path.normpath(file.absolute())).is_relative_to(path.absolute().parent)
        if not inside or not any(file.resolve().is_relative_to(folder) for folder in folders):
            raise CheckpointError(f"{path} reads its weights from {name}, expected a file in its own folder; export the model again")
        if not file.is_file():
            raise CheckpointError(f"{path} needs {name}, which is not beside it; copy both into one folder")
        if file.stat().st_size < size:
            raise CheckpointError(f"{file} has {file.stat().st_size} bytes, expected {size}; copy it whole")
        yield name, file


def is_half(proto: onnx.ModelProto) -> bool:
    """Whether a model computes in half precision somewhere."""
    halves = {int(kind) for kind in HALF}
    return any(v.type.tensor_type.elem_type in halves for v in proto.graph.input) or any(t.data_type in halves for t in tensors(proto))


def tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All tensors of a model: weights and constants, those of inner graphs and functions too."""
    yield from _of_graph(proto.graph)
    for function in proto.functions:
        yield from _of_nodes(function.node)


def _of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Any) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for graph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from _of_graph(graph)


def encoding(file: OnnxFile, task: str, rows: int | None, labels: int | None) -> EncodingConfig:
    """How the runtime handles texts. rows: of the token table; labels: the last dimension of `logits`."""
    config = file.config
    positions = config.get("max_position_embeddings")
    if config.get("model_type") in ("roberta", "xlm-roberta", "camembert") and isinstance(positions, int):
        positions -= int(config.get("pad_token_id") or 0) + 1  # positions begin behind the padding's own
    pad = int(config.get("pad_token_id") or 0)
    found = replace(file.texts.encoding(task), max_length=file.texts.max_length or positions, pad_id=pad, vocab_size=rows)
    if rows is not None and (found.mask_id or 0) >= rows:
        found = replace(found, mask_id=None)
    if labels is not None:
        names = config.get("id2label")
        known = isinstance(names, dict) and labels is not None and set(names) == {str(i) for i in range(labels)}
        texts = tuple(str(names[str(i)]) for i in range(labels or 0)) if known and isinstance(names, dict) else ()
        return classifying(found, texts, config, labels) if task == "classification" else replace(found, labels=texts)
    return found


def with_data(path: Path) -> ir.Model:
    """The graph of a file whose external data has been checked: links are followed here, since onnx_ir follows none out of a folder."""
    folder = path.absolute().parent
    proto = onnx.load(str(path), load_external_data=False)
    places = [entry for one in tensors(proto) for entry in one.external_data if entry.key == "location"]
    files = {entry.value: (folder / entry.value).resolve() for entry in places}
    base = os.path.commonpath([folder.resolve(), *(file.parent for file in files.values())])
    for entry in places:
        entry.value = os.path.relpath(files[entry.value], base)
    model = ir.from_proto(proto)
    ir.external_data.set_base_dir(model.graph, base)
    return model


def load(file: OnnxFile, opset: int | None) -> ir.Model:
    """The standard graph; its weights stay in their files until they are read. CheckpointError, UsageError (opset)."""
    try:
        model = with_data(file.path)
        with silence():
            _plain(model)
            _convert(model, file, opset)
            passes.ShapeInferencePass()(model)
            unflatten(model.graph)
    except (CheckpointError, UsageError):
        raise
    except Exception as error:
        raise CheckpointError(
            f"{file.path} holds a graph that cannot be read ({one_line(error, 200, deepest=True)}); export it with another exporter"
        ) from error
    widen(model)
    to_float(model.graph)
    return model


def _plain(model: ir.Model) -> None:
    """No functions, no constants as nodes, no weights that are inputs too, no names twice."""
    for value in [value for value in model.graph.inputs if value.name in model.graph.initializers]:
        model.graph.inputs.remove(value)
    ir.passes.Sequential(
        passes.InlinePass(),
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedFunctionsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.LiftSubgraphInitializersToMainGraphPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
        passes.RemoveUnusedOpsetsPass(),
    )(model)


def _convert(model: ir.Model, file: OnnxFile, opset: int | None) -> None:
    found = model.opset_imports.get("", file.opset)
    wanted = opset if opset is not None else max(found, OLDEST)
    if wanted < found:
        raise UsageError(f"opset {wanted}: {file.path} is written in {found} already; leave --opset out")
    if wanted == found:
        return
    reason = f"its nodes are still of opset {found}"
    with contextlib.suppress(RuntimeError, ValueError, NotImplementedError):
        version_converter.convert_version(model, wanted, fallback=True)
    if model.opset_imports.get("") != wanted:
        raise CheckpointError(
            f"{file.path} cannot be brought from opset {found} to {wanted} ({reason}); export it with opset {OLDEST} or newer"
        )


def widen(model: ir.Model) -> None:
    """float16 and bfloat16 become float32, inputs and outputs too; edits the model."""
    graphs = [model.graph, *(graph for node in model.graph.all_nodes() for graph in _inner(node))]
    for graph in graphs:
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype in HALF:
                value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
                value.type = ir.TensorType(FLOAT)
        for value in [*graph.inputs, *graph.outputs, *(value for node in graph for value in node.outputs)]:
            if value.dtype in HALF:
                value.type = ir.TensorType(FLOAT)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.type == ir.AttributeType.INT and name in ("to", "dtype") and attribute.value in (*map(int, HALF),):
                    node.attributes[name] = ir.AttrInt64(name, int(FLOAT))
                elif attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype in HALF:
                    node.attributes[name] = ir.AttrTensor(name, ir.tensor(attribute.value.numpy().astype(np.float32)))


def _inner(node: ir.Node) -> list[ir.Graph]:
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.value)
        elif attribute.type == ir.AttributeType.GRAPHS:
            found += attribute.value
    return found
