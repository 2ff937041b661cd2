"""Reranking: the documents of a query in the order of their scores, by a classifier of pairs with one output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxport.errors import UsageError
from onnxport.runtime.encoder import Encoder
from onnxport.runtime.shown import Shown
from onnxport.runtime.tasks.classification import LOGITS, classify


@dataclass(frozen=True, repr=False)
class Ranked(Shown):
    """A document's place in the list that was given, and its score as `classify` gives it."""

    index: int
    score: float


def rerank(encoder: Encoder, query: str, documents: Sequence[str], top_k: int | None, batch_size: int, stride: int | None) -> list[Ranked]:
    """The documents, best first, at most `top_k`; of equal scores the earlier one first. UsageError; errors of `classify`."""
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise UsageError(f"top_k is {top_k!r}, expected a whole number from 1")
    width = encoder.outputs.get(LOGITS, (None,))[-1]
    if encoder.task == "classification" and width != 1:
        raise UsageError(f"this model gives {width} scores a pair, expected one: rerank is for models with one output; use classify")
    scores = [next(iter(one.scores.values())) for one in classify(encoder, [(query, text) for text in documents], batch_size, stride)]
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    return [Ranked(i, scores[i]) for i in order[:top_k]]
