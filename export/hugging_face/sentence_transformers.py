"""The settings of vectors in a folder of sentence-transformers: pooling, normalization and the longest text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from onnxport.errors import CheckpointError
from onnxport.export.config_checks import read_json
from onnxport.export.tokenizers.folder import tokenizer_bytes

POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last"}
OTHER_POOLINGS = ("pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens")
CAPITALS = "What THE Cat Saw"


def read_modules(folder: Path) -> dict[str, Any]:
    """`pooling`, `normalize` and `max_length`, as far as the folder has them. CheckpointError: what a bundle cannot do.

    A folder without modules.json has none of them: sentence-transformers then takes the mean of all tokens, not normalized.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return {}
    settings: dict[str, Any] = {"normalize": False}
    for module in read_json(path, list):
        settings |= _module(module, path)
    if (longest := _max_length(folder)) is not None:
        settings["max_length"] = longest
    _check_prompt(folder / "config_sentence_transformers.json")
    return settings


def _module(module: Any, path: Path) -> dict[str, Any]:
    """The settings of one module in modules.json."""
    if not isinstance(module, dict):
        raise CheckpointError(f"{path} holds {module!r:.40}, expected objects with type and path; copy it again")
    kind = str(module.get("type", "")).rpartition(".")[2]
    if kind == "Pooling":
        return {"pooling": _pooling(path.parent / str(module.get("path", "")) / "config.json")}
    if kind == "Normalize":
        return {"normalize": True}
    if kind == "Transformer":
        return {}
    raise CheckpointError(f"{path} has a {kind} module, expected Transformer, Pooling and Normalize; export its Transformer alone")


def _pooling(path: Path) -> str:
    config = read_json(path)
    modes = [name for name in (*POOLINGS, *OTHER_POOLINGS) if config.get(name) is True]
    mode = config.get("pooling_mode")  # newer files name it
    if not modes and mode in ("mean", "cls", "lasttoken"):
        return {"lasttoken": "last"}.get(str(mode), str(mode))
    if len(modes) != 1 or modes[0] not in POOLINGS:
        known = ", ".join(POOLINGS)
        raise CheckpointError(f"{path} pools by {' and '.join(modes) or mode!r}, expected one of {known}; export as --task tensor")
    return POOLINGS[modes[0]]


def _max_length(folder: Path) -> int | None:
    """max_seq_length of sentence_bert_config.json, whose do_lower_case the tokenizer must follow."""
    path = folder / "sentence_bert_config.json"
    if not path.is_file():
        return None
    config = read_json(path)
    longest = config.get("max_seq_length")
    if longest is not None and (type(longest) is not int or longest < 1):
        raise CheckpointError(f"{path}: max_seq_length is {longest!r:.40}, expected a number of tokens from 1")
    if config.get("do_lower_case") and not _lowers(folder / "tokenizer.json"):
        raise CheckpointError(f"{path}: do_lower_case is True and the tokenizer keeps capitals; give it a normalizer that lowers them")
    return longest


def _check_prompt(path: Path) -> None:
    """CheckpointError where texts get a prompt by default."""
    config = read_json(path) if path.is_file() else {}
    name = config.get("default_prompt_name")
    if name is not None and (config.get("prompts") or {}).get(name) != "":
        raise CheckpointError(
            f"{path}: default_prompt_name is {name!r:.40}, expected null: a bundle puts nothing before texts; do it yourself"
        )


def _lowers(path: Path) -> bool:
    """Whether a tokenizer gives capitals the ids of small letters; true where there is no tokenizer.json to ask."""
    if not path.is_file():
        return True
    reader = Tokenizer.from_str(tokenizer_bytes(path).decode())
    return reader.encode(CAPITALS).ids == reader.encode(CAPITALS.lower()).ids
