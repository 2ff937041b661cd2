"""A SentencePiece model as parts of a tokenizer.json: its normalization, and its pieces as Unigram or BPE.

The ids of Marian's vocab.json are not those of the model, and its vocabulary also holds pieces that this model has not (those of
the other language). MarianTokenizer cuts text with the model alone, and then looks every piece up by its text; a run of characters
that the model does not know is one piece. A tokenizer.json says the same if such foreign pieces can only match a whole run:
the normalizer puts `START` and `END` around every run, and a foreign piece stands in the vocabulary between these two.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from onnxport.errors import CheckpointError, one_line
from onnxport.extras import require
from onnxport.runtime.tokenizer import UNKNOWN_FROM, UNKNOWN_IS

# Noncharacters, "intended for process-internal uses" (Unicode 23.7): in a text they are unknown characters like any other.
START, END, OPEN, CLOSE, BREAK, OTHER = MARKS = ("\ufdd0", "\ufdd1", "\ufdd3", UNKNOWN_FROM, "\ufdd5", "\ufdef")
PRIVATE = 0xF0000  # where the characters that stand for user-defined symbols begin
SPACE = "\u2581"
CLEAN_UP = (
    tuple((f" {mark}", mark) for mark in ".?!,") + ((" ' ", "'"),) + tuple((f" {end}", end) for end in ("n't", "'m", "'s", "'ve", "'re"))
)
UNIGRAM, BPE = 1, 2  # ModelProto.TrainerSpec.ModelType
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # ModelProto.SentencePiece.Type


@dataclass(frozen=True)
class SentencePiece:
    """A parsed .spm file. Pieces as (text, score, type), in the model's order."""

    path: Path
    pieces: tuple[tuple[str, float, int], ...]
    kind: int
    charsmap: bytes
    dummy_prefix: bool
    remove_extra_whitespaces: bool

    @cached_property
    def reachable(self) -> dict[str, float]:
        """Score of each piece that text can be cut into."""
        return {text: score for text, score, kind in self.pieces if kind in (NORMAL, USER_DEFINED)}

    @cached_property
    def symbols(self) -> dict[str, str]:
        """User-defined symbols, the longest first, each with the private character that stands for it: they win wherever they occur."""
        found = sorted(self.of_type(USER_DEFINED), key=lambda text: (-len(text), text))
        return {text: chr(PRIVATE + i) for i, text in enumerate(found)}

    def of_type(self, kind: int) -> list[str]:
        """Texts of the pieces of a type."""
        return [text for text, _, found in self.pieces if found == kind]

    @cached_property
    def alphabet(self) -> set[str]:
        """Characters that occur in pieces; for user-defined symbols those that stand for them."""
        return set().union(self.symbols.values(), *(text for text in self.reachable if text not in self.symbols))

    @cached_property
    def byte_fallback(self) -> bool:
        """Unknown characters become byte pieces."""
        return any(kind == BYTE for _, _, kind in self.pieces)


def read(path: Path) -> SentencePiece:
    """Parse a SentencePiece model. CheckpointError when it is damaged or uses what a tokenizer.json cannot say."""
    made: Any = require("sentencepiece.sentencepiece_model_pb2", "export", str(path)).ModelProto()
    try:
        made.ParseFromString(path.read_bytes())
        pieces = tuple((p.piece, p.score, p.type) for p in made.pieces)
    except Exception as e:  # protobuf's DecodeError has moved between its versions
        raise CheckpointError(f"{path} is not a SentencePiece model ({one_line(e)}); copy it again") from e
    trainer, normalizer = made.trainer_spec, made.normalizer_spec
    gaps = [
        *(["no pieces"] if NORMAL not in {kind for _, _, kind in pieces} else []),
        *([f"model type {trainer.model_type} (expected unigram or bpe)"] if trainer.model_type not in (UNIGRAM, BPE) else []),
        *(["whitespace as a suffix"] if trainer.treat_whitespace_as_suffix else []),
        *(["unescaped whitespace"] if not normalizer.escape_whitespaces else []),
        *(["a denormalizer"] if made.denormalizer_spec.precompiled_charsmap else []),
        *(["unused pieces"] if UNUSED in {kind for _, _, kind in pieces} else []),
    ]
    if gaps:
        raise CheckpointError(f"{path} has {', '.join(gaps)}, which a tokenizer.json cannot say; give a tokenizer.json instead")
    charsmap, prefix, extra = normalizer.precompiled_charsmap, normalizer.add_dummy_prefix, normalizer.remove_extra_whitespaces
    return SentencePiece(path, pieces, trainer.model_type, charsmap, prefix, extra)


def normalizer(model: SentencePiece, codes: Iterable[str] | None) -> normalizers.Normalizer:
    """SentencePiece's rules; with `codes` before them what MarianTokenizer does, who sets a code such as `>>de<<` at the start apart."""
    symbols = [normalizers.Replace(text, mark) for text, mark in model.symbols.items()]
    steps: list[Any] = [
        _replace(f"[\ufdd0-\ufdef{''.join(model.symbols.values())}]", OTHER),
        *([] if codes is None else _apart(codes)),
    ]
    steps += symbols  # before the rest, which leaves them alone
    if model.charsmap:
        # The library looks up whole grapheme clusters, SentencePiece the longest match: compose, but map one by one.
        steps += [
            normalizers.NFC(),
            normalizers.Prepend(BREAK),  # not by Replace: whole-text steps lose what that inserts before the first character
            _replace(r"(?!\A)(?=[^\x00-\x7f])", BREAK),
            normalizers.Precompiled(model.charsmap),
            normalizers.Replace(BREAK, ""),
            normalizers.NFC(),
            *symbols,  # those that came out of other characters
        ]
    if model.remove_extra_whitespaces:
        steps += [_replace(" {2,}", " "), _replace(rf"\A +|(?<={CLOSE}) +", "")]
    if model.dummy_prefix:
        steps.append(_replace(rf"\A(?![{OPEN}{CLOSE}]|\z)|(?<={CLOSE})(?!\z)", SPACE))
    steps.append(normalizers.Replace(" ", SPACE))
    if model.remove_extra_whitespaces:
        steps.append(_replace(rf"{SPACE}+\z", ""))
    if not model.byte_fallback:
        run = _unknown(model)
        steps += [_replace(f"(?<!{run})(?={run})", START), _replace(f"(?<={run})(?!{run})", END)]
    return normalizers.Sequence(steps)


def _apart(codes: Iterable[str]) -> list[Any]:
    """A code at the very start is one token whatever it holds: OPEN name CLOSE if the vocabulary has it, else CLOSE alone."""
    known = "|".join(re.escape(code[2:-2]) for code in codes)
    return [
        _replace(rf"\A>>(?!(?:{known})<<)[\s\S]*?<<" if known else r"\A>>[\s\S]*?<<", CLOSE),
        *([_replace(rf"\A>>(?=(?:{known})<<)", OPEN), _replace(rf"\A{OPEN}[\s\S]*?\K<<", CLOSE)] if known else []),
    ]


def vocabulary(
    model: SentencePiece, ids: dict[str, int], entries: dict[str, str], unknown: str, special: Iterable[str]
) -> list[tuple[str, float]]:
    """Texts and scores in the order of `ids`, which must be 0, 1, 2...; `entries`: how a token is written where not as itself.

    Pieces of the model that `ids` lacks still cut the text, but they are unknown: they follow behind `UNKNOWN_FROM`.
    """
    lowest = min(model.reachable.values())
    never = {token: 2 * len(token) * lowest - 100 for token in (*special, *model.of_type(BYTE))}  # any other path scores better

    def written(piece: str) -> tuple[str, float]:
        return model.symbols.get(piece, piece), model.reachable[piece]

    rows = []
    for token in sorted(ids, key=ids.__getitem__):
        if token in entries or token in never:
            rows.append((entries.get(token, token), never.get(token, 0.0)))
        else:
            rows.append(written(token) if token in model.reachable else (f"{START}{token}{END}", 0.0))
    missing = sorted(set(model.reachable) - set(ids))
    if missing or model.byte_fallback:
        rows += [(UNKNOWN_FROM, 0.0), (UNKNOWN_IS + unknown, 0.0), *map(written, missing)]
    return rows


def unigram(model: SentencePiece, rows: list[tuple[str, float]], unknown: int) -> models.Model:
    """The best-scoring cut of a text, unknown characters in a row together."""
    return models.Unigram(rows, unknown, model.byte_fallback)


def bpe(model: SentencePiece, rows: list[tuple[str, float]], unknown: str) -> models.Model:
    """Merges in the order of the scores of what they make: SentencePiece merges any two neighbours that make a piece."""
    scores = {text: score for text, score, kind in model.pieces if kind == NORMAL}
    pairs = [(-score, text, i) for text, score in scores.items() for i in range(1, len(text)) if text[:i] in scores and text[i:] in scores]
    merges = [(text[:i], text[i:]) for _, text, i in sorted(pairs)]
    ids = {text: i for i, (text, _) in enumerate(rows)}
    return models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=model.byte_fallback, ignore_merges=True)


def splitter(model: SentencePiece) -> pre_tokenizers.PreTokenizer | None:
    """Cuts where the library's models would look further than SentencePiece does, or None."""
    parts = []
    if model.kind == BPE:
        parts += [f"{START}[^{END}]*{END}", rf"\A{OPEN}[^{CLOSE}]*{CLOSE}|\A{CLOSE}"]
    elif model.byte_fallback:  # a special token's text, made by the normalizer of characters that the model does not know
        parts.append(_unknown(model))
    return pre_tokenizers.Split(Regex("|".join(parts)), "isolated") if parts else None


def decoder(model: SentencePiece, reader: SentencePiece, clean_up: bool) -> decoders.Decoder:
    """MarianTokenizer's text of pieces: control pieces are nothing, spaces at both ends go (what Python's str.strip takes).

    model: whose tokenizer this is; reader: the model that MarianTokenizer joins pieces with, which is the source's for a shared vocabulary.
    """
    control = "|".join(re.escape(piece) for piece in reader.of_type(CONTROL))
    space = r"[\s\x1c-\x1f\x85]"
    steps: list[Any] = [
        *([_cut(rf"\A(?:{control})\z")] if control else []),
        *(decoders.Replace(mark, text) for mark, text in ((START, ""), (END, ""), (OPEN, ">>"), (CLOSE, "<<"), (SPACE, " "))),
        *(decoders.Replace(mark, text) for text, mark in model.symbols.items()),
        *([decoders.ByteFallback()] if reader.byte_fallback else []),
        decoders.Fuse(),
        _cut(rf"\A{space}+|{space}+\z"),
        *((decoders.Replace(before, after) for before, after in CLEAN_UP) if clean_up else ()),
    ]
    return decoders.Sequence(steps)


def _unknown(model: SentencePiece) -> str:
    """A regular expression for one character that is in no piece and no mark of ours."""
    known = "".join(re.escape(c) if c.isascii() and not c.isalnum() else c for c in sorted(model.alphabet | {SPACE}))
    return f"[^{known}{OPEN}{CLOSE}{START}]"


def _replace(pattern: str, content: str) -> normalizers.Normalizer:
    return normalizers.Replace(Regex(pattern), content)


def _cut(pattern: str) -> decoders.Decoder:
    return decoders.Replace(Regex(pattern), "")
