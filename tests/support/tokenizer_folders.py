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


def mbart50_tokenizer(folder: Path, sentences: Sequence[str]) -> Any:
    """MBart50's tokenizer, of the characters and words of a few sentences, in a folder; English unless told otherwise."""
    import transformers

    model = sentencepiece.SentencePieceProcessor(model_proto=train([*sentences] * 8, 60))
    rows = [(model.id_to_piece(i), model.get_score(i)) for i in range(model.get_piece_size())]
    named = ["<s>", "<pad>", "</s>", "<unk>"]
    vocabulary = [*((name, 0.0) for name in named), *(row for row in rows if row[0] not in named)]
    tokenizer = transformers.MBart50Tokenizer(vocab=vocabulary)
    tokenizer.save_pretrained(folder)
    return tokenizer
