"""Token classification: labels of tokens become entities, spans of a text.

The rules are those of transformers' token-classification pipeline (transformers 5, pipelines/token_classification.py), its names in
brackets. Each token has a softmax over the labels; special tokens have none. "none" (none) gives every token its label. "simple" joins
neighbours of one type; a label that begins with B- begins an entity. "first", "average" and "max" label whole words before that: by the
word's first token, by the mean of its tokens' shares, by its surest token. A token continues a word where its name says so (WordPiece's
##), else where no space stands before it. Of windows that overlap, the longest of overlapping entities stays, then the surest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass

import numpy as np

from onnxport.errors import BundleError, UsageError
from onnxport.runtime.arrays import softmax
from onnxport.runtime.encoder import Encoder, Window, expect, finite
from onnxport.runtime.options import many
from onnxport.runtime.shown import Shown

LOGITS = "logits"
OUTSIDE = "O"  # the label of what is no entity


@dataclass(frozen=True, repr=False)
class Entity(Shown):
    """label: of its tokens, without B- and I- unless they are not joined. text: the text's characters from start to end. score: 0 to 1."""

    label: str
    score: float
    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Span:
    """An entity and its tokens. index: the place of the first among the tokens read at once. names: of tokens, by word.

    A token that the tokenizer does not know has the text's characters for a name. Where words were not put together each token is one.
    """

    entity: Entity
    index: int
    names: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class _Part:
    """A token, or those of a word: its shares of the labels, its characters, its names, and whether it continues the word before it."""

    shares: np.ndarray
    start: int
    end: int
    index: int
    names: tuple[str, ...]
    continues: bool = False


# shares of a word's tokens → those of the word
WORDS: dict[str, Callable[[list[np.ndarray]], np.ndarray]] = {
    "first": lambda shares: shares[0],
    "average": lambda shares: np.mean(shares, axis=0),
    "max": lambda shares: max(shares, key=np.max),
}
AGGREGATIONS = ("none", "simple", *WORDS)


def ignored_labels(given: object) -> frozenset[str]:
    """The labels that a caller leaves out: one, or many. UsageError for what is none."""
    expected = "a label or a list of labels"
    found = [given] if isinstance(given, str) else many(given, "ignore_labels", expected)
    for one in found:
        if not isinstance(one, str):
            raise UsageError(f"ignore_labels holds {one!r:.60}, expected {expected}")
    return frozenset(found)


def entities(
    encoder: Encoder, texts: Sequence[str], aggregation: str, ignored: Set[str], batch_size: int, stride: int | None
) -> list[list[Entity]]:
    """The entities of each text in order; ignored: labels that are none. UsageError, TextError, DataError (the model answers NaN)."""
    return [[one.entity for one in row] for row in spans(encoder, texts, aggregation, ignored, batch_size, stride)]


def spans(
    encoder: Encoder, texts: Sequence[str], aggregation: str, ignored: Set[str], batch_size: int, stride: int | None
) -> list[list[Span]]:
    """`entities`, with their tokens."""
    expect(encoder, "token-classification", (LOGITS,))
    if aggregation not in AGGREGATIONS:
        raise UsageError(f"aggregation is {aggregation!r}, expected one of {', '.join(AGGREGATIONS)}")
    windows = encoder.windows(texts, stride)
    found: list[list[list[Span]]] = [[] for _ in texts]
    for window, logits in _answered(encoder, windows, batch_size):
        text = texts[window.owner]
        made = _joined(_parts(encoder, window, logits, text), aggregation, _labels(encoder, logits), text)
        found[window.owner].append([one for one in made if one.entity.label not in ignored])
    return [_without_overlaps(sum(parts, [])) if len(parts) > 1 else sum(parts, []) for parts in found]


def tags(encoder: Encoder, sentences: Sequence[Sequence[str]], batch_size: int, stride: int | None) -> list[list[str]]:
    """The label of each word of sentences that are words already, by the word's first token; "O" for a word without tokens.

    A word in two windows has the label of the one in which it stands farther from the edge. Errors: as `entities`.
    """
    expect(encoder, "token-classification", (LOGITS,))
    found = [[OUTSIDE] * len(words) for words in sentences]
    depths = [[-1] * len(words) for words in sentences]
    for window, logits in _answered(encoder, encoder.word_windows(sentences, stride), batch_size):
        labels, best = _labels(encoder, logits), logits.argmax(1)
        words = [
            None if special else word for word, special in zip(window.encoding.word_ids, window.encoding.special_tokens_mask, strict=True)
        ]
        seen = [word for word in words if word is not None]
        for token, word in enumerate(words):
            if word is None or (token and words[token - 1] == word):
                continue
            depth = min(word - seen[0], seen[-1] - word)
            if depth > depths[window.owner][word]:
                depths[window.owner][word], found[window.owner][word] = depth, labels[int(best[token])]
    return found


def _answered(encoder: Encoder, windows: Sequence[Window], batch_size: int) -> Iterator[tuple[Window, np.ndarray]]:
    """Every window in its order, and its logits float32 [tokens, labels]."""
    answers = {id(window): finite(outputs[LOGITS][: len(window)], window.owner) for window, outputs in encoder.each(windows, batch_size)}
    for window in windows:
        yield window, answers[id(window)]


def _labels(encoder: Encoder, logits: np.ndarray) -> tuple[str, ...]:
    """The names of the logits. BundleError where these are not as many."""
    labels = encoder.config.labels or tuple(f"LABEL_{i}" for i in range(logits.shape[1]))
    if len(labels) != logits.shape[1]:
        raise BundleError(f"the model gives {logits.shape[1]} logits, expected one for each of {len(labels)} labels; export it again")
    return labels


def _parts(encoder: Encoder, window: Window, logits: np.ndarray, text: str) -> list[_Part]:
    """The tokens of a window that are not special."""
    assert encoder.tokenizer is not None  # windows were made with it
    encoding, named = window.encoding, encoder.tokenizer.marks_continuations
    parts = []
    for i, (token, (start, end)) in enumerate(zip(encoding.ids, window.offsets, strict=True)):
        if encoding.special_tokens_mask[i]:
            continue
        name = encoding.tokens[i]
        if encoder.tokenizer.known([token])[0] == encoder.config.unknown_id:
            continues, name = False, text[start:end]
        elif named:
            continues = len(encoding.tokens[i]) != end - start
        else:
            continues = start > 0 and " " not in text[start - 1 : start + 1]
        parts.append(_Part(softmax(logits[i]), start, end, i, (name,), continues))
    return parts


def _joined(parts: list[_Part], aggregation: str, labels: Sequence[str], text: str) -> list[Span]:
    """Entities of all labels, those that are ignored too."""
    if aggregation in WORDS:
        groups: list[list[_Part]] = []
        for part in parts:
            if groups and part.continues:
                groups[-1].append(part)
            else:
                groups.append([part])
        shares = WORDS[aggregation]
        parts = [
            _Part(
                shares([one.shares for one in group]),
                group[0].start,
                group[-1].end,
                group[0].index,
                tuple(name for one in group for name in one.names),
            )
            for group in groups
        ]
    best = [int(part.shares.argmax()) for part in parts]
    single = [
        Span(Entity(labels[i], float(part.shares[i]), part.start, part.end, text[part.start : part.end]), part.index, (part.names,))
        for part, i in zip(parts, best, strict=True)
    ]
    return single if aggregation == "none" else _grouped(single, text)


def _grouped(single: Sequence[Span], text: str) -> list[Span]:
    """Neighbours of one type as one, whose score is their mean."""
    groups: list[list[Span]] = []
    for one in single:
        label = one.entity.label
        if groups and not label.startswith("B-") and _type(label) == _type(groups[-1][-1].entity.label):
            groups[-1].append(one)
        else:
            groups.append([one])
    return [_one(group, text) for group in groups]


def _one(group: Sequence[Span], text: str) -> Span:
    first, start, end = group[0], group[0].entity.start, group[-1].entity.end
    score = float(np.mean([one.entity.score for one in group]))
    entity = Entity(first.entity.label.split("-", 1)[-1], score, start, end, text[start:end])
    return Span(entity, first.index, tuple(word for one in group for word in one.names))


def _type(label: str) -> str:
    """A label without B- or I-."""
    return label[2:] if label.startswith(("B-", "I-")) else label


def _without_overlaps(found: list[Span]) -> list[Span]:
    """Of those that overlap the one before them, the longest, then the surest."""
    kept: list[Span] = []
    for one in sorted(found, key=lambda span: span.entity.start):
        if kept and kept[-1].entity.start <= one.entity.start < kept[-1].entity.end:
            kept[-1] = max(kept[-1], one, key=lambda span: (span.entity.end - span.entity.start, span.entity.score))
        else:
            kept.append(one)
    return kept
