"""Files that all variants of a bundle share, and their bytes: golden answers, tokenizers, layers behind a pooling."""

from __future__ import annotations

import math

from onnxport.build.estimate.model import MASKED, POOLED, Model
from onnxport.compare.texts import golden_texts, token_rows
from onnxport.runtime.tokenizer import TextTokenizer

GOLDEN, LAYERS, TOKENIZER = "golden.npz", "layers.npz", "tokenizer.json"
COMPRESSED = 0.94  # of floats: they hardly get smaller
CASES, OF_TEXTS = 2_500, 2_500  # bytes of names, shapes and ids, and of those of texts
LARGE, SMALL = 100_000, 1_000  # vocabularies of which fewer, or more, positions are kept
# positions of golden answers of models that generate, by vocabulary: of a small one, of others, of a large one
POSITIONS = {"causal": (30, 16, 10), "seq2seq": (26, 14, 9)}
KNOWN = {"causal": 800_000, "seq2seq": 250_000}  # bytes of what is kept of their answers to texts
IDS, TEXTS = 27, 280  # tokens of golden answers of an encoder without a tokenizer, and of its texts beside the kit's
SHORT, WIDE, WIDE_TEXTS = 32, 4096, 41  # tokens of one of the kit's; numbers of an answer a token, above which so many are kept
LONGEST, SECOND, LONG_WIDE = 1024, 1.5, 12  # tokens of a long text, how many with a second one, and where answers are wide
# files that a tokenizer.json is made of, and how many of its bytes each byte becomes
SOURCES = {
    "vocab.txt": 2.05,
    "spiece.model": 1.8,
    "sentencepiece.bpe.model": 1.8,
    "tokenizer.model": 1.8,
    "vocab.json": 1.0,
    "merges.txt": 1.6,
}
SIDES = {"source.spm": 1.8, "target.spm": 1.8}


def files(model: Model) -> dict[str, int]:
    """Files, and their bytes."""
    layers = sum(path.stat().st_size for path in model.whole.glob("*_Dense/*") if path.suffix in (".safetensors", ".bin"))
    return {GOLDEN: _goldens(model)} | _tokenizers(model) | ({LAYERS: layers} if model.embeds and layers else {})


def _tokenizers(model: Model) -> dict[str, int]:
    if model.tokenizer is not None:
        return {TOKENIZER: model.tokenizer.stat().st_size}
    sides = {f"{name.partition('.')[0]}_{TOKENIZER}": (name, factor) for name, factor in SIDES.items()}
    found = {made: _grown(model, name, factor) for made, (name, factor) in sides.items()}
    if all(found.values()):
        return found
    one = sum(_grown(model, name, factor) for name, factor in SOURCES.items())
    return {TOKENIZER: one} if one else {}


def _grown(model: Model, name: str, factor: float) -> int:
    path = model.folder / name
    return int(factor * path.stat().st_size) if path.is_file() else 0


def _goldens(model: Model) -> int:
    """Answers at a few positions."""
    if model.kind != "encoder":
        rows = model.number("decoder_vocab_size", "vocab_size")
        positions = POSITIONS[model.kind][0 if rows <= SMALL else 1 if rows <= LARGE else 2]
        return math.ceil(COMPRESSED * 4 * rows * positions) + CASES + (KNOWN[model.kind] if model.tokenizer is not None else 0)
    width = _width(model)
    return math.ceil(COMPRESSED * 4 * width * _positions(model, width)) + CASES + (OF_TEXTS if model.tokenizer is not None else 0)


def _width(model: Model) -> int:
    """Numbers of an encoder's answer for each token."""
    if not model.name:
        return model.width
    labels = model.config.get("id2label")
    known = len(labels) if isinstance(labels, dict) else 0
    return model.number("vocab_size") if model.ends(MASKED) else model.number("num_labels") or known or 2


def _positions(model: Model, width: int) -> int:
    """Tokens of an encoder's golden answers; where it answers once a text, the texts."""
    texts = [] if model.tokenizer is None else token_rows(golden_texts(), TextTokenizer(model.tokenizer.read_bytes()), None, None)
    if model.ends(*POOLED):
        return len(texts) + 6
    own = 0 if not model.traced else LONG_WIDE if width > WIDE else round(SECOND * longest(model))
    if not texts:
        return IDS + own
    return own + (WIDE_TEXTS if width > WIDE else TEXTS + sum(min(SHORT, len(text)) for text in texts))


def longest(model: Model) -> int:
    """Tokens of the long golden text of a class whose own code is traced."""
    return min(LONGEST, model.number("max_position_embeddings") or LONGEST)
