"""Classification of texts, or of pairs of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxport.errors import BundleError
from onnxport.runtime.arrays import softmax
from onnxport.runtime.encoder import Encoder, Text, expect, finite, weighted

LOGITS = "logits"


@dataclass(frozen=True)
class Classification:
    """label: the best one. scores: label → probability, best first; of a regression its values as they are.

    labels: all that hold: the best one, or where several may hold at once those with a probability of one half and more.
    """

    label: str
    scores: dict[str, float]
    labels: tuple[str, ...]


# What transformers' text-classification pipeline does for each problem_type; the sigmoid is written so that it cannot overflow.
SCORES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "single": softmax,
    "multi": lambda logits: 0.5 * (1 + np.tanh(logits / 2)),
    "regression": lambda logits: logits,
}


def classify(encoder: Encoder, texts: Sequence[Text], batch_size: int, stride: int | None) -> list[Classification]:
    """A Classification a text, in order.

    The logits of a text that is longer than the model are the mean of its windows' logits, each weighted by its tokens (the mean pooling
    over parts of long texts in Sun et al. 2019, How to Fine-Tune BERT for Text Classification). Of a pair the second text is cut.
    """
    expect(encoder, "classification", (LOGITS,))
    parts = (
        (window.owner, len(window), finite(outputs[LOGITS].ravel(), window.owner))
        for window, outputs in encoder.each(encoder.windows(texts, stride), batch_size)
    )
    return [_result(logits, encoder.config.labels, encoder.config.problem) for logits in weighted(parts, len(texts))]


def _result(logits: np.ndarray, labels: tuple[str, ...], problem: str) -> Classification:
    names = labels or tuple(f"LABEL_{i}" for i in range(len(logits)))
    if len(names) != len(logits):
        raise BundleError(f"the model gives {len(logits)} logits, expected one for each of {len(names)} labels; export it again")
    shares = SCORES[problem](logits)
    order = np.argsort(-shares, kind="stable")
    scores = {names[i]: float(shares[i]) for i in order}
    holding = tuple(name for name, share in scores.items() if share >= 0.5) if problem == "multi" else (names[order[0]],)
    return Classification(names[order[0]], scores, holding)
