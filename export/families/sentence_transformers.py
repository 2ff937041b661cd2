"""What a folder of sentence-transformers says of its vectors: modules.json, a pooling and perhaps a normalization."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from onnxport.errors import CheckpointError

KINDS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last"}
OTHERS = ("pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens")


def read_modules(folder: Path) -> dict[str, Any]:
    """`pooling`, `normalize` and `max_length`, as far as they are said. CheckpointError: a module or a pooling that a bundle has not.

    A folder without modules.json says nothing: sentence-transformers then takes the mean of all tokens, not normalized.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return {}
    found: dict[str, Any] = {"normalize": False}
    for module in _json(path, list):
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            found["pooling"] = _pooling(folder / str(module.get("path", "")) / "config.json")
        elif kind == "Normalize":
            found["normalize"] = True
        elif kind != "Transformer":
            raise CheckpointError(f"{path} has a {kind} module, expected Transformer, Pooling and Normalize; export its Transformer alone")
    settings = folder / "sentence_bert_config.json"
    if settings.is_file() and (most := _json(settings, dict).get("max_seq_length")):
        found["max_length"] = int(most)
    return found


def _pooling(path: Path) -> str:
    config = _json(path, dict)
    chosen = [name for name in (*KINDS, *OTHERS) if config.get(name) is True]
    mode = config.get("pooling_mode")  # newer files name it
    if not chosen and mode in ("mean", "cls", "lasttoken"):
        return {"lasttoken": "last"}.get(str(mode), str(mode))
    if len(chosen) != 1 or chosen[0] not in KINDS:
        known = ", ".join(KINDS)
        raise CheckpointError(f"{path} pools by {' and '.join(chosen) or mode!r}, expected one of {known}; export as --task tensor")
    return KINDS[chosen[0]]


def _json(path: Path, kind: type) -> Any:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({str(error).splitlines()[0]}); copy it again") from error
    if not isinstance(value, kind):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}, expected {'a list' if kind is list else 'an object'}")
    return value
