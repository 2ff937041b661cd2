"""What the user named → one Source."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxport.errors import CheckpointError, UsageError, one_line
from onnxport.export.adapters import CausalLM, Encoder, Module, Seq2Seq
from onnxport.export.families import MODULES, family
from onnxport.export.source import Source, read_tokenizers

if TYPE_CHECKING:
    pass


def resolve(source: Any, allow_pickle: bool = False) -> Source:
    """A folder, `package.module:factory`, an adapter, or `(module, example inputs)`.

    Errors: CheckpointError when it is there but cannot be exported, UsageError when there is no such thing.
    """
    if isinstance(source, str) and not Path(source).exists() and _looks_importable(source):
        made = _call(source)
        found = from_object(made, default_name=source.rpartition(":")[0].rpartition(".")[2])
        return found
    if isinstance(source, str | Path):
        return _from_path(Path(source), allow_pickle)
    return from_object(source)


def _looks_importable(text: str) -> bool:
    module, colon, factory = text.rpartition(":")
    return bool(colon) and factory.isidentifier() and all(part.isidentifier() for part in module.split("."))


def _call(text: str) -> Any:
    """What the factory returns, imported with the current directory on the path, which is taken off again."""
    from onnxport.export.user_code import contained

    module_name, _, factory_name = text.rpartition(":")
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
            raise UsageError(f"{text} is a {type(factory).__name__}, not a function that returns an adapter or (module, inputs)")
        try:
            with contained(text):
                return factory()
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(f"{text} failed: {type(error).__name__}: {one_line(error)}") from error
    finally:
        sys.path[:] = before


def _from_path(path: Path, allow_pickle: bool) -> Source:
    if not path.exists():
        name = str(path)
        if all(part.isidentifier() for part in name.split(".")) and Path(f"{name.replace('.', '/')}.py").is_file():
            raise UsageError(f"{name} is a module; write {name}:FACTORY, a function in it that returns an adapter or (module, inputs)")
        raise CheckpointError(f"{path} does not exist; give a folder with config.json and weights, package.module:factory or model.onnx")
    if path.suffix == ".onnx" and not path.is_dir():
        from onnxport.export.onnx_file.read import read_onnx

        return read_onnx(path)
    if not path.is_dir():
        raise CheckpointError(f"{path} is neither a folder with config.json and weights nor a file.onnx")

    return read_folder(path, allow_pickle)


def from_object(made: Any, default_name: str = "") -> Source:
    """A Source from an adapter, or from a module with example inputs."""
    import torch

    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], torch.nn.Module):
        made = Module(module=made[0], inputs=made[1])
    if isinstance(made, torch.nn.Module):
        raise CheckpointError(f"a {type(made).__name__} without example inputs cannot be traced; return (module, inputs) or an adapter")
    if not isinstance(made, Seq2Seq | CausalLM | Encoder | Module):
        raise CheckpointError(f"got a {type(made).__name__}; return Seq2Seq, CausalLM, Encoder, Module or (module, inputs)")
    if isinstance(made, Module):
        family = f"{type(made.module).__module__}.{type(made.module).__qualname__}"
        return Source(made, made.name or default_name or type(made.module).__name__.lower(), family)
    kind = "torch.nn.Transformer" if isinstance(made, Seq2Seq) else "torch.nn.TransformerEncoder"
    tokenizers = read_tokenizers(made)
    hashes: dict[str, str] = {}
    settings = {"embedding_scale": made.embedding_scale, "max_length": made.max_length}
    return Source(made, made.name or default_name or type(made).__name__.lower(), kind, made.task, hashes, tokenizers, settings)


ARCHITECTURE = "torch.nn.Transformer"
_KNOWN = ", ".join([f'"architecture": "{ARCHITECTURE}"', *(f'"model_type": "{name}"' for name in MODULES)])


def read_folder(folder: Path, allow_pickle: bool) -> Source:
    """The Source of a folder with a config.json; CheckpointError names what is known when it is none of it."""
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no config.json; known for now: {_KNOWN}")
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, numbers of thousands of digits, or nested without end
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds a JSON {type(config).__name__}, not an object")
    architecture, model_type = config.get("architecture"), config.get("model_type")
    if architecture is not None:
        if architecture != ARCHITECTURE:
            raise CheckpointError(f"{path} has the architecture {architecture!r:.60}; known for now: {_KNOWN}")
        from onnxport.export.pytorch.folder import read as read_pytorch

        return read_pytorch(folder, config, allow_pickle)
    if model_type is None:
        raise CheckpointError(f"{path} has no architecture and no model_type; known for now: {_KNOWN}")
    if not isinstance(model_type, str):
        raise CheckpointError(f"{path} has the model_type {model_type!r:.60}; known for now: {_KNOWN}")
    from onnxport.export.hugging_face.folder import read as read_hugging_face

    if model_type in MODULES:
        return read_hugging_face(family(model_type), folder, config, allow_pickle)
    from onnxport.export.hugging_face.any_encoder import other_encoder
    from onnxport.export.transformers_library import import_transformers

    import_transformers()
    return read_hugging_face(other_encoder(model_type, config, path, _KNOWN), folder, config, allow_pickle)
