"""Resolving of what the user named, a folder, a file, a factory or an object, to a Source."""

from __future__ import annotations

import importlib
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from onnxport.errors import CheckpointError, UsageError, one_line
from onnxport.export.adapters import CausalLM, Encoder, Module, Seq2Seq
from onnxport.export.checkpoints.plain import is_gguf
from onnxport.export.config_checks import read_json
from onnxport.export.families import MODULES, family
from onnxport.export.sentence_transformers import has_modules, transformer_folder
from onnxport.export.source import Source, read_tokenizers
from onnxport.export.user_code import contained
from onnxport.export.weights import is_weight_file
from onnxport.files import first_special, special

TEMPLATES = "additional_chat_templates"  # a folder that transformers' tokenizers read too
ARCHITECTURE = "torch.nn.Transformer"
_KNOWN = (
    f'"architecture": "{ARCHITECTURE}", and a "model_type" of transformers that is a language model, an encoder-decoder '
    "or an encoder of texts"
)
_POSSIBLE = "a folder with config.json and weights, package.module:factory or model.onnx"
_FILES = (".onnx", ".gguf", ".py", ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".zip", ".json")  # no names of models
_PART = r"\w[\w.-]*"
_HUB_NAME = re.compile(rf"({_PART}/)?{_PART}", re.ASCII)
_HUB_PAGE = re.compile(
    r"(https?://)?(www\.)?(huggingface\.co|hf\.co)/(?!(datasets|spaces|docs|blog|papers)/)"
    rf"(?P<name>{_PART}(/(?!(tree|blob|resolve|raw)/){_PART})?)(/(tree|blob|resolve|raw)/(?P<revision>[\w.-]+))?([/?#].*)?",
    re.ASCII,
)


def resolve(source: Any, allow_pickle: bool = False, lora: str | Path | None = None, allow_remote_code: bool = False) -> Source:
    """A folder, a file, `package.module:factory`, an adapter, or `(module, example inputs)`.

    lora: a folder of PEFT, merged into the weights of a folder or GGUF file of Hugging Face's models. allow_remote_code: a folder's own
    code is run.
    Errors: CheckpointError when it is there but cannot be exported, UsageError when there is no such thing.
    """
    adapter = None if lora is None else Path(lora)
    if isinstance(source, str | Path) and (os.path.exists(source) or not _looks_importable(str(source))):
        return _from_path(source, allow_pickle, adapter, allow_remote_code)
    if adapter is not None:
        raise UsageError(f"--adapter: {adapter} is merged into the weights of a folder, and the source is none")
    if isinstance(source, str | Path):
        return from_object(_call(str(source)), default_name=str(source).rpartition(":")[0].rpartition(".")[2])
    return from_object(source)


def _from_path(source: str | Path, allow_pickle: bool, lora: Path | None, allow_remote_code: bool) -> Source:
    path = Path(source)
    if not os.path.exists(path):  # Path's own raises where a folder above cannot be read
        name = str(path)
        if all(part.isidentifier() for part in name.split(".")) and Path(f"{name.replace('.', '/')}.py").is_file():
            raise UsageError(f"{name} is a module; write {name}:FACTORY, a function in it that returns an adapter or (module, inputs)")
        raise CheckpointError(_from_afar(str(source)) or f"{path} does not exist; give {_POSSIBLE}")
    _check_special(path)
    if lora is not None and not lora.is_dir():
        raise CheckpointError(f"--adapter: {lora} is no folder; give the folder of a LoRA adapter, as PEFT saves it")
    if not path.is_dir():
        return _from_file(path, lora)
    if not (files := _files_of(path)):
        return read_folder(path, allow_pickle, lora, allow_remote_code)
    _check_special(files[0])
    found = _from_file(files[0], lora)
    left = f"; left out: {', '.join(other.name for other in files[1:])}" if files[1:] else ""
    note = f"the folder has no weights of PyTorch: {files[0].relative_to(path)} is taken{left}"
    return replace(found, name=path.resolve().name, notes=(note, *found.notes))


def _check_special(path: Path) -> None:
    if (kind := special(path.stat().st_mode)) is not None:
        raise CheckpointError(f"{path} is {kind}, expected a regular file or a folder; give the model itself")


def _from_file(path: Path, lora: Path | None) -> Source:
    if path.suffix == ".onnx":
        if lora is not None:
            raise UsageError(f"--adapter: {lora} is merged into the weights of a folder, and {path} is an ONNX file")
        from onnxport.export.onnx_file.read import read_onnx

        return read_onnx(path)
    if is_gguf(path):
        from onnxport.export.checkpoints.gguf import opened

        with opened(path) as gguf:
            return gguf.finish(read_folder(gguf.folder, False, lora))
    raise CheckpointError(f"{path} is neither a folder with config.json and weights nor a file.onnx or file.gguf")


def _files_of(folder: Path) -> list[Path]:
    """Files of a folder without weights of PyTorch that are models by themselves, the one to take first; [] where it has none.

    ONNX files are in transformers.js's layout: that in float32 is called model.onnx, others model_fp16.onnx, model_quantized.onnx and the
    like. CheckpointError: there are several GGUF files.
    """
    try:
        if any(is_weight_file(path) for path in folder.iterdir()):
            return []
    except OSError:
        return []  # a reader of folders says why
    if not (folder / "config.json").is_file():
        found = sorted(folder.glob("*.gguf"))
        if len(found) > 1:
            raise CheckpointError(f"{folder} has several GGUF files: {', '.join(path.name for path in found[:8])}; give one of them")
        return found
    return next((files for place in (folder / "onnx", folder) if (files := sorted(place.glob("model*.onnx"), key=_preference))), [])


def _preference(path: Path) -> tuple[int, str]:
    names = ("model.onnx", "model_fp16.onnx")
    return names.index(path.name) if path.name in names else len(names), path.name


def _from_afar(source: str) -> str | None:
    """What to say of a source that is not here and has the form of a URL or of a model's name on a hub; None for others."""
    page = _HUB_PAGE.fullmatch(source)
    if page is None and "://" in source:
        return f"{source} is a URL, and nothing is fetched; download what is there, then give {_POSSIBLE}"
    name, revision = (source, None) if page is None else (page["name"], page["revision"])
    owner, _, model = name.rpartition("/")
    if page is None and (not _HUB_NAME.fullmatch(name) or Path(model).suffix in _FILES or (owner and os.path.exists(owner))):
        return None
    command = f"hf download {name}{'' if revision in (None, 'main') else f' --revision {revision}'} --local-dir {model}"
    how = f"run `{command}`, then export {model}"
    how = how if page or owner else f"give {_POSSIBLE}; for a model of this name on Hugging Face's hub {how}"
    return f"{source} does not exist here, and nothing is fetched from a hub; {how}"


def read_folder(folder: Path, allow_pickle: bool, lora: Path | None = None, allow_remote_code: bool = False) -> Source:
    """The Source of a folder with a config.json. CheckpointError lists the supported models where this one is none of them."""
    _check_files(folder)
    whole, folder = folder, transformer_folder(folder)
    for inner in (folder, folder / TEMPLATES):
        if inner != whole and inner.is_dir():
            _check_files(inner)
    path, adapter = folder / "config.json", folder / "adapter_config.json"
    if adapter.is_file():
        base = read_json(adapter).get("base_model_name_or_path")
        of = f"{base!r:.80}" if isinstance(base, str) and base else "a model that it does not name"
        raise CheckpointError(
            f"{folder} holds an adapter of {of} ({adapter.name}); export the folder of that model with --adapter {folder}"
        )
    if not path.is_file():
        raise CheckpointError(f"{folder} has no config.json; known for now: {_KNOWN}")
    config = read_json(path)
    architecture, model_type = config.get("architecture"), config.get("model_type")
    if architecture is not None:
        if architecture != ARCHITECTURE:
            raise CheckpointError(f"{path} has the architecture {architecture!r:.60}; known for now: {_KNOWN}")
        if lora is not None:
            raise UsageError(f"--adapter: {lora} is merged into a model of Hugging Face's, and {folder} is none")
        from onnxport.export.pytorch.folder import read as read_pytorch

        return read_pytorch(folder, config, allow_pickle)
    if model_type is None:
        raise CheckpointError(f"{path} has no architecture and no model_type; known for now: {_KNOWN}")
    if not isinstance(model_type, str):
        raise CheckpointError(f"{path} has the model_type {model_type!r:.60}; known for now: {_KNOWN}")
    from onnxport.export.checkpoints.folder import opened
    from onnxport.export.hugging_face.remote_code import own_code

    own = own_code(config, path, allow_remote_code)
    with opened(folder, own.config, allow_pickle, lora) as plain:
        source = plain.finish(_read_hugging_face(plain.folder, plain.config, allow_pickle, whole, own.runs))
    return replace(source, notes=(*own.notes, *source.notes))


def _read_hugging_face(folder: Path, config: dict[str, Any], allow_pickle: bool, whole: Path, own: bool) -> Source:
    """The Source of a folder with plain weights. whole: what the user named, or holds it. own: by the folder's code."""
    from onnxport.export.hugging_face.any_decoder import is_decoder_alone, other_decoder
    from onnxport.export.hugging_face.any_encoder import answers_at_once, other_encoder
    from onnxport.export.hugging_face.any_seq2seq import other_seq2seq
    from onnxport.export.hugging_face.folder import read

    if own:
        from onnxport.export.hugging_face.remote_code import own_family

        return read(own_family(folder, config), folder, config, allow_pickle, whole)
    path, model_type, embeds = folder / "config.json", config["model_type"], has_modules(whole)
    found = family(model_type) if model_type in MODULES else None
    at_once = embeds or ((found is None or found.kind != "encoder") and answers_at_once(model_type, config, path))
    decodes = found is None or found.kind == "causal" or is_decoder_alone(model_type, config)
    if not at_once and decodes and (found is None or found.problems(config)):
        found = other_seq2seq(model_type, config, path) or other_decoder(model_type, config, path) or found
    if found is None or (found.kind != "encoder" and at_once):
        found = other_encoder(model_type, config, path, _KNOWN, embeds)
    return read(found, folder, config, allow_pickle, whole)


def _check_files(folder: Path) -> None:
    """CheckpointError unless the files of a folder can be read without waiting: transformers opens what it finds."""
    try:
        found = first_special(folder)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror or error}; give a folder that you may read") from error
    if found is not None:
        raise CheckpointError(f"{found[0]} is {found[1]}, expected regular files in the folder of a model; copy the model elsewhere")


def from_object(value: Any, default_name: str = "") -> Source:
    """The Source of an adapter, or of `(module, example inputs)`. CheckpointError for anything else."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], nn.Module):
        value = Module(module=value[0], inputs=value[1])
    if isinstance(value, nn.Module):
        raise CheckpointError(f"a {type(value).__name__} without example inputs cannot be traced; return (module, inputs) or an adapter")
    if not isinstance(value, Seq2Seq | CausalLM | Encoder | Module):
        raise CheckpointError(f"got a {type(value).__name__}; return Seq2Seq, CausalLM, Encoder, Module or (module, inputs)")
    if isinstance(value, Module):
        family = f"{type(value.module).__module__}.{type(value.module).__qualname__}"
        return Source(value, value.name or default_name or type(value.module).__name__.lower(), family)
    return Source(
        adapter=value,
        name=value.name or default_name or type(value).__name__.lower(),
        family="torch.nn.Transformer" if isinstance(value, Seq2Seq) else "torch.nn.TransformerEncoder",
        task=value.task,
        tokenizers=read_tokenizers(value),
        settings={"embedding_scale": value.embedding_scale, "max_length": value.max_length},
    )


def _looks_importable(factory_path: str) -> bool:
    module, colon, factory = factory_path.rpartition(":")
    return bool(colon) and factory.isidentifier() and all(part.isidentifier() for part in module.split("."))


def _call(factory_path: str) -> Any:
    """What the factory returns, imported with the current directory on the path, which is taken off again."""
    module_name, _, factory_name = factory_path.rpartition(":")
    before = list(sys.path)
    sys.path.insert(0, str(Path.cwd()))
    try:
        importlib.invalidate_caches()
        try:
            with contained(f"importing {module_name}"):
                module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not (module_name == error.name or module_name.startswith(error.name + ".")):
                raise CheckpointError(f"importing {module_name} failed: {error}; install what it needs") from error
            raise UsageError(
                f"no module {module_name} here or installed; run the command where {module_name.split('.')[0]}.py is"
            ) from error
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(f"importing {module_name} failed: {type(error).__name__}: {one_line(error)}") from error
        factory = getattr(module, factory_name, None)
        if factory is None:
            raise UsageError(f"{module_name} has no {factory_name}; give a function that returns an adapter or (module, inputs)")
        if not callable(factory):
            raise UsageError(f"{factory_path} is a {type(factory).__name__}, not a function that returns an adapter or (module, inputs)")
        try:
            with contained(factory_path):
                return factory()
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(f"{factory_path} failed: {type(error).__name__}: {one_line(error)}") from error
    finally:
        sys.path[:] = before
