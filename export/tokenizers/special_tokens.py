"""Special and added tokens of a Hugging Face folder, read from its JSON files as transformers reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from onnxport.errors import CheckpointError
from onnxport.export.config_checks import read_json

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")  # transformers' order
FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


@dataclass(frozen=True)
class SpecialTokens:
    """named: eos_token → `</s>` and so on. added: id → added token. files: what was read. config: of tokenizer_config.json."""

    named: dict[str, str]
    added: dict[int, AddedToken]
    files: tuple[Path, ...]
    config: dict[str, Any]


def read(folder: Path, ids: Mapping[str, int], defaults: Mapping[str, str]) -> SpecialTokens:
    """Tokens that are found in text before anything else; those that `ids` lacks get the next ids.

    CheckpointError names all that have two ids.
    """
    files = {name: read_json(folder / name) for name in FILES if (folder / name).is_file()}
    config = files.get(FILES[0], {})
    named: dict[str, Any] = {**defaults, **config}
    added_by_id: dict[int, dict[str, Any]] = {}
    if "added_tokens_decoder" in config:  # then the two older files are not read
        added_by_id = {int(i): token for i, token in config["added_tokens_decoder"].items()}
    else:
        named |= files.get(FILES[1], {})
        added_by_id = {int(i): {"content": text} for text, i in files.get(FILES[2], {}).items()}
    texts = {name: content(named[name]) for name in named if name.endswith("_token") and content(named[name])}
    extra = named.get("extra_special_tokens") or named.get("additional_special_tokens") or []
    special = list(dict.fromkeys([*(texts[n] for n in NAMES if n in texts), *texts.values(), *map(content, _values(extra))]))
    flags = {content(value): value for value in [*named.values(), *_values(extra)] if isinstance(value, dict) and "content" in value}
    flags |= {token["content"]: token for token in added_by_id.values()}
    added_ids = {token["content"]: i for i, token in added_by_id.items()}
    problems = [f"added token {t!r} has id {i}, the vocabulary says {ids[t]}" for t, i in added_ids.items() if ids.get(t, i) != i]
    following = max([*ids.values(), *added_ids.values()], default=-1) + 1
    for token in special:
        if token not in added_ids:
            added_ids[token] = ids.get(token, following)
            following = max(following, added_ids[token] + 1)
    if problems:
        raise CheckpointError(f"{folder} has tokens that disagree: {'; '.join(problems)}; copy its tokenizer files again")
    added = {i: _token(text, flags.get(text, {}), text in special) for text, i in sorted(added_ids.items(), key=lambda pair: pair[1])}
    return SpecialTokens(texts, added, tuple(folder / name for name in files), config)


def read_vocabulary(path: Path) -> dict[str, int]:
    """Token → id, the ids 0, 1, 2... each once. CheckpointError names what is not so."""
    ids: dict[str, int] = read_json(path)
    if wrong := [token for token, i in ids.items() if not isinstance(i, int) or isinstance(i, bool) or i < 0]:
        raise CheckpointError(f"{path} has ids that are not whole numbers, first for {wrong[0]!r}; copy it again")
    if len(set(ids.values())) != len(ids):
        raise CheckpointError(f"{path} has {len(ids)} tokens and {len(set(ids.values()))} different ids, expected one each; copy it again")
    if ids and max(ids.values()) >= len(ids):
        raise CheckpointError(f"{path} has ids up to {max(ids.values())} for {len(ids)} tokens, expected no gaps; copy it again")
    return ids


def _values(extra: Any) -> list[Any]:
    return list(extra.values()) if isinstance(extra, dict) else list(extra)


def content(value: Any) -> str:
    """The text of a token that is a string or an object with its flags; "" for neither."""
    return value if isinstance(value, str) else value.get("content", "") if isinstance(value, dict) else ""


def _token(text: str, flags: dict[str, Any], special: bool) -> AddedToken:
    taken = {name: bool(flags.get(name, False)) for name in ("lstrip", "rstrip", "single_word", "normalized")}
    return AddedToken(text, special=special, **taken)
