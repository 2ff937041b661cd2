"""One file per family: its config reader and the table of its weight names."""

from __future__ import annotations

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


ARCHITECTURES: dict[str, Reader] = {"torch.nn.Transformer": _pytorch}


def read_folder(folder: Path, allow_pickle: bool) -> Source:
    """The Source of a folder with a config.json; CheckpointError names what is known when it is none of it."""
    path = folder / "config.json"
    known = ", ".join(f'"architecture": "{name}"' for name in ARCHITECTURES)
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
    name = config.get("architecture")
    if name is None:
        kind = config.get("model_type")
        found = f"a Hugging Face config of model_type {kind!r}" if kind is not None else "no architecture"
        raise CheckpointError(f"{path} has {found}; known for now: {known}")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise CheckpointError(f"{path} has the architecture {name!r}; known for now: {known}")
    return ARCHITECTURES[name](folder, config, allow_pickle)
