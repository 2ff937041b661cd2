"""What a folder of sentence-transformers says of its vectors: modules.json, a pooling and perhaps a normalization."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from onnxport.errors import CheckpointError, one_line
from onnxport.export.tokenizers.folder import tokenizer_bytes

KINDS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last"}
OTHERS = ("pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens")

CAPITALS = "What THE Cat Saw"


def read_modules(folder: Path) -> dict[str, Any]:
    """`pooling`, `normalize` and `max_length`, as far as they are said. CheckpointError: what a bundle has not.

    A folder without modules.json says nothing: sentence-transformers then takes the mean of all tokens, not normalized.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return {}
    found: dict[str, Any] = {"normalize": False}
    for module in _json(path, list):
        if not isinstance(module, dict):
            raise CheckpointError(f"{path} holds {module!r:.40}, expected objects with type and path; copy it again")
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            found["pooling"] = _pooling(folder / str(module.get("path", "")) / "config.json")
        elif kind == "Normalize":
            found["normalize"] = True
        elif kind != "Transformer":
            raise CheckpointError(f"{path} has a {kind} module, expected Transformer, Pooling and Normalize; export its Transformer alone")
    path = folder / "sentence_bert_config.json"
    settings = _json(path, dict) if path.is_file() else {}
    most = settings.get("max_seq_length")
    if most is not None:
        if type(most) is not int or most < 1:
            raise CheckpointError(f"{path}: max_seq_length is {most!r:.40}, expected a number of tokens from 1")
        found["max_length"] = most
    if settings.get("do_lower_case") and not _lowers(folder / "tokenizer.json"):
        raise CheckpointError(f"{path}: do_lower_case is True and the tokenizer keeps capitals; give it a normalizer that lowers them")
    path = folder / "config_sentence_transformers.json"
    said = _json(path, dict) if path.is_file() else {}
    name = said.get("default_prompt_name")
    if name is not None and (said.get("prompts") or {}).get(name) != "":
        raise CheckpointError(
            f"{path}: default_prompt_name is {name!r:.40}, expected null: a bundle puts nothing before texts; do it yourself"
        )
    return found


def _lowers(path: Path) -> bool:
    """Whether a tokenizer gives capitals the ids of small letters; true where there is no tokenizer.json to ask."""
    if not path.is_file():
        return True
    reader = Tokenizer.from_str(tokenizer_bytes(path).decode())
    return reader.encode(CAPITALS).ids == reader.encode(CAPITALS.lower()).ids


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
        raise CheckpointError(f"{path} cannot be read as JSON ({one_line(error)}); copy it again") from error
    if not isinstance(value, kind):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}, expected {'a list' if kind is list else 'an object'}")
    return value
