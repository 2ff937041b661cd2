"""Folders with tokenizer files as the families of Hugging Face keep them, trained on a few sentences."""

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import sentencepiece


def train(sentences: Iterable[str], size: int, **options: Any) -> bytes:
    """A SentencePiece model; `options` as SentencePieceTrainer names them (model_type, byte_fallback, normalization_rule_name)."""
    model = io.BytesIO()
    fixed: dict[str, Any] = {"num_threads": 1, "hard_vocab_limit": options.get("model_type") == "bpe", "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, vocab_size=size, **(fixed | {"character_coverage": 0.9995} | options)
    )
    return model.getvalue()


def pieces(model: bytes) -> list[str]:
    """The pieces of a model in its own order."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [processor.id_to_piece(i) for i in range(processor.get_piece_size())]


def marian_vocabulary(*models: bytes, first: Sequence[str] = ()) -> dict[str, int]:
    """Ids as Marian's tools give them: `</s>` 0, `<unk>` 1, `first` (language codes), the pieces of every model once, `<pad>` last."""
    apart = ("</s>", "<unk>", "<s>", "<pad>")
    mixed = sorted({piece for model in models for piece in pieces(model)} - {*apart, *first}, key=lambda piece: (len(piece), piece))
    return {piece: i for i, piece in enumerate(["</s>", "<unk>", *first, *mixed, "<pad>"])}


def marian_tokenizer(
    folder: Path,
    sentences_source: Iterable[str],
    sentences_target: Iterable[str],
    size: int,
    *,
    separate: bool = False,
    codes: Sequence[str] = (),
    config: dict[str, Any] | None = None,
    **options: Any,
) -> dict[str, int]:
    """Write source.spm, target.spm, vocab.json and tokenizer_config.json; `size` pieces a side. The (source) vocabulary comes back.

    `separate`: a vocabulary a side, with target_vocab.json; `codes`: language codes such as `>>de<<`; `config`: more keys of
    tokenizer_config.json; `options`: of the SentencePiece trainer, for both sides.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source, target = train(sentences_source, size, **options), train(sentences_target, size, **options)
    (folder / "source.spm").write_bytes(source)
    (folder / "target.spm").write_bytes(target)
    vocabulary = marian_vocabulary(source, first=codes) if separate else marian_vocabulary(source, target, first=codes)
    _write_json(folder / "vocab.json", vocabulary)
    if separate:
        _write_json(folder / "target_vocab.json", marian_vocabulary(target))
    fixed = {"tokenizer_class": "MarianTokenizer", "model_max_length": 512, "source_lang": "en", "target_lang": "de"}
    _write_json(folder / "tokenizer_config.json", fixed | {"separate_vocabs": separate} | (config or {}))
    return vocabulary


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")


NAMED = ("<s>", "<pad>", "</s>", "<unk>")  # the first tokens of vocabularies that fairseq made
MODEL = "sentencepiece.bpe.model"
LANGUAGE_FAMILIES = {"m2m100": "m2m_100", "nllb": "m2m_100", "mbart50": "mbart", "mbart": "mbart", "plbart": "plbart"}  # → model_type


def language_tokenizer(folder: Path, family: str, sentences: Sequence[str], size: int = 60) -> Any:
    """transformers' tokenizer of a family that translates between many languages, in a folder with the family's own files.

    family: one of LANGUAGE_FAMILIES. size: pieces of the SentencePiece model. Its source language is the family's own default, so it may
    be None.
    """
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    model = train([*sentences] * 8, size, **({"model_type": "bpe"} if family == "nllb" else {}))
    made: Any
    if family in ("m2m100", "plbart"):  # written in Python: they read the model's file
        (folder / MODEL).write_bytes(model)
    if family == "m2m100":
        _write_json(folder / "vocab.json", {token: i for i, (token, _) in enumerate(_fairseq_rows(model))})
        made = transformers.M2M100Tokenizer(str(folder / "vocab.json"), str(folder / MODEL))
    elif family == "plbart":
        made = transformers.PLBartTokenizer(str(folder / MODEL))
    elif family == "nllb":
        ids = {token: i for i, (token, _) in enumerate(_fairseq_rows(model))}
        made = transformers.NllbTokenizer(vocab=ids, merges=_merges(ids))
    else:
        cls = {"mbart": transformers.MBartTokenizer, "mbart50": transformers.MBart50Tokenizer}[family]
        made = cls(vocab=_fairseq_rows(model))
    made.save_pretrained(folder)
    return made


def _fairseq_rows(model: bytes) -> list[tuple[str, float]]:
    """Pieces and their scores, behind the tokens that fairseq puts first."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    rows = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(processor.get_piece_size())]
    return [*((token, 0.0) for token in NAMED), *(row for row in rows if row[0] not in NAMED)]


def _merges(ids: dict[str, int]) -> list[tuple[str, str]]:
    """The pairs of pieces that make another, in the order of what they make: that in which BPE learned them."""
    cuts = ((piece[:cut], piece[cut:]) for piece in ids if piece not in NAMED for cut in range(1, len(piece)))
    return [pair for pair in cuts if pair[0] in ids and pair[1] in ids]
