"""Byte-level BPE from vocab.json and merges.txt, as BART keeps it."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from onnxport.errors import CheckpointError, one_line
from onnxport.export.tokenizers import special_tokens

DEFAULTS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}


def convert(folder: Path) -> tuple[dict[str, Tokenizer], list[Path]]:
    """One tokenizer for both sides, and the files it came from. ({}, []) without any such file; CheckpointError when one is missing."""
    names = ["vocab.json", "merges.txt"]
    missing = [name for name in names if not (folder / name).is_file()]
    if len(missing) == len(names):
        return {}, []
    if missing:
        raise CheckpointError(f"{folder} has no {missing[0]}, which a byte-level BPE tokenizer needs; copy the whole folder")
    vocabulary, merges = (folder / name for name in names)
    ids = special_tokens.read_vocabulary(vocabulary)
    tokens = special_tokens.read(folder, ids, DEFAULTS)
    prefix, trim = bool(tokens.config.get("add_prefix_space", False)), bool(tokens.config.get("trim_offsets", True))
    try:
        made = Tokenizer(models.BPE(ids, _merges(merges), continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False))
    except Exception as e:  # the library raises bare Exception
        raise CheckpointError(f"{folder} has merges.txt and vocab.json that disagree ({one_line(e)}); copy them again") from e
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    made.decoder = decoders.ByteLevel()
    for token in tokens.added.values():
        (made.add_special_tokens if token.special else made.add_tokens)([token])
    ids |= {token.content: i for i, token in tokens.added.items()}
    end, start = tokens.named["sep_token"], tokens.named["cls_token"]
    made.post_processor = processors.RobertaProcessing((end, ids[end]), (start, ids[start]), trim, prefix)
    return dict.fromkeys(("source", "target"), made), sorted({vocabulary, merges, *tokens.files})


def _merges(path: Path) -> list[tuple[str, str]]:
    """Pairs of tokens, most important first."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise CheckpointError(f"{path} cannot be read ({e}); copy it again") from e
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    if wrong := [pair for pair in pairs if len(pair) != 2]:
        raise CheckpointError(f"{path} has the line {' '.join(wrong[0])!r}, expected two tokens; copy it again")
    return pairs  # type: ignore[return-value]
