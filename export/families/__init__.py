"""One file per family: its config reader and the table of its weight names."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxport.errors import CheckpointError

if TYPE_CHECKING:
    from onnxport.export.source import Source

Reader = Callable[[Path, dict[str, Any], bool], "Source"]


def _pytorch(folder: Path, config: dict[str, Any], allow_pickle: bool) -> Source:
    from onnxport.export.families.pytorch_folder import read

    return read(folder, config, allow_pickle)


def _hugging_face(folder: Path, config: dict[str, Any], allow_pickle: bool) -> Source:
    from onnxport.export.families.hugging_face_folder import read

    module = str(config["model_type"]).replace("-", "_")
    return read(importlib.import_module(f"onnxport.export.families.{module}").FAMILY, folder, config, allow_pickle)


def _other(folder: Path, model_type: str, config: dict[str, Any], known: str, allow_pickle: bool) -> Source:
    from onnxport.export.families.hugging_face_folder import read
    from onnxport.export.families.other_encoder import other_encoder
    from onnxport.export.transformers_library import import_transformers

    import_transformers()
    return read(other_encoder(model_type, config, folder / "config.json", known), folder, config, allow_pickle)


ARCHITECTURES: dict[str, Reader] = {"torch.nn.Transformer": _pytorch}
FAMILIES = tuple(  # a module each
    "bart bert camembert distilbert gpt2 llama marian mistral mt5 qwen2 qwen3 roberta t5 xlm-roberta xlnet".split()
)
MODEL_TYPES: dict[str, Reader] = dict.fromkeys(FAMILIES, _hugging_face)


def read_folder(folder: Path, allow_pickle: bool) -> Source:
    """The Source of a folder with a config.json; CheckpointError names what is known when it is none of it."""
    path = folder / "config.json"
    known = ", ".join([f'"architecture": "{name}"' for name in ARCHITECTURES] + [f'"model_type": "{name}"' for name in MODEL_TYPES])
    if not path.is_file():
        raise CheckpointError(f"{folder} has no config.json; known for now: {known}")
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, numbers of thousands of digits, or nested without end
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds a JSON {type(config).__name__}, not an object")
    for key, readers in (("architecture", ARCHITECTURES), ("model_type", MODEL_TYPES)):
        name = config.get(key)
        if isinstance(name, str) and name in readers:
            return readers[name](folder, config, allow_pickle)
        if isinstance(name, str) and key == "model_type":
            return _other(folder, name, config, known, allow_pickle)
        if name is not None:
            raise CheckpointError(f"{path} has the {key} {name!r:.60}; known for now: {known}")
    raise CheckpointError(f"{path} has no architecture and no model_type; known for now: {known}")
