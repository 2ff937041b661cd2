"""Marian's own tokenizer files, read with SentencePiece alone: what an application around a bare engine would do."""

import json
from pathlib import Path

import sentencepiece

END, UNKNOWN = "</s>", "<unk>"


class Marian:
    """source.spm, target.spm and vocab.json of a folder."""

    def __init__(self, folder: Path) -> None:
        self.ids: dict[str, int] = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        self.pieces = {i: piece for piece, i in self.ids.items()}
        self._source = sentencepiece.SentencePieceProcessor(model_file=str(folder / "source.spm"))
        self._target = sentencepiece.SentencePieceProcessor(model_file=str(folder / "target.spm"))

    def encode(self, inputs: list[str] | list[list[int]]) -> list[list[str]]:
        """Texts, or ids that end with </s> already -> pieces, </s> included."""
        texts = [one for one in inputs if isinstance(one, str)]
        encoded = iter(self._source.encode(texts, out_type=str))
        return [[*next(encoded), END] if isinstance(one, str) else [self.pieces[i] for i in one] for one in inputs]

    def decode(self, pieces: list[str]) -> str:
        """Pieces without </s> -> text."""
        text: str = self._target.decode([piece for piece in pieces if piece != UNKNOWN])
        return text
