"""Classification of texts, or of pairs of them, by a model's own labels or by a caller's candidates.

Candidates are judged as in transformers' zero-shot-classification pipeline: each one in a template is a hypothesis about the text, and the
logit of entailment says how well it holds. A model of multiple choice has a logit for a text with each candidate itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxport.errors import BundleError, UsageError
from onnxport.progress import Progress, counted, silent
from onnxport.runtime.arrays import softmax
from onnxport.runtime.encoder import Encoder, Text, expect, finite, weighted
from onnxport.runtime.shown import Shown

LOGITS = "logits"
TEMPLATE = "This example is {}."


@dataclass(frozen=True, repr=False)
class Classification(Shown):
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
    labels, problem = encoder.config.labels, encoder.config.problem
    return [_result(logits, labels, problem) for logits in text_logits(encoder, texts, batch_size, stride)]


def text_logits(
    encoder: Encoder, texts: Sequence[Text], batch_size: int, stride: int | None, progress: Progress = silent
) -> list[np.ndarray]:
    """The logits of each text, float64 [labels], in order."""
    expect(encoder, "classification", (LOGITS,))
    windows, parts = encoder.windows(texts, stride), []
    told = counted(progress, "reading windows")
    for done, (window, outputs) in enumerate(encoder.each(windows, batch_size), start=1):
        parts.append((window.owner, len(window), finite(outputs[LOGITS].ravel(), window.owner)))
        told(done, len(windows))
    return weighted(parts, len(texts))


def _result(logits: np.ndarray, labels: tuple[str, ...], problem: str) -> Classification:
    names = labels or tuple(f"LABEL_{i}" for i in range(len(logits)))
    if len(names) != len(logits):
        raise BundleError(f"the model gives {len(logits)} logits, expected one for each of {len(names)} labels; export it again")
    shares = SCORES[problem](logits)
    order = np.argsort(-shares, kind="stable")
    scores = {names[i]: float(shares[i]) for i in order}
    holding = tuple(name for name, share in scores.items() if share >= 0.5) if problem == "multi" else (names[order[0]],)
    return Classification(names[order[0]], scores, holding)


@dataclass(frozen=True)
class Candidates:
    """What a text may be about. template: makes a hypothesis of one, which stands for `{}`. several: any number may hold. UsageError."""

    labels: tuple[str, ...]
    template: str = TEMPLATE
    several: bool = False

    def __post_init__(self) -> None:
        for label in self.labels:
            if not isinstance(label, str) or not label.strip():
                raise UsageError(f"candidates holds {label!r:.60}, expected texts")
        if not self.labels or len(set(self.labels)) < len(self.labels):
            raise UsageError(f"candidates is {list(self.labels)!r:.80}, expected one or more, each once")
        if not isinstance(self.template, str) or "{}" not in self.template:
            raise UsageError(f"hypothesis_template is {self.template!r:.80}, expected a text with {{}} where the candidate goes")

    @classmethod
    def of(cls, given: str | Sequence[str], template: str | None, several: bool) -> Candidates:
        """From what a caller gives; a text is split at its commas."""
        labels = [part.strip() for part in given.split(",") if part.strip()] if isinstance(given, str) else given
        return cls(tuple(labels), TEMPLATE if template is None else template, several)


def choose(
    encoder: Encoder, texts: Sequence[str], candidates: Sequence[Candidates], batch_size: int, stride: int | None
) -> list[Classification]:
    """A Classification a text by its candidates. UsageError: the model knows no entailment.

    Of a text that is longer than the model the candidate stands in every window, and logits are merged as in `classify`.
    """
    entails = None if encoder.task == "multiple-choice" else entailment(encoder.config.labels)
    expect(encoder, "classification" if entails is not None else "multiple-choice", (LOGITS,))
    pairs = [
        (text, label if entails is None else one.template.replace("{}", label))
        for text, one in zip(texts, candidates, strict=True)
        for label in one.labels
    ]
    parts = (
        (window.owner, len(window), finite(outputs[LOGITS].ravel(), window.owner))
        for window, outputs in encoder.each(encoder.windows(pairs, stride, cut_first=True), batch_size)
    )
    logits = iter(weighted(parts, len(pairs)))
    return [_chosen(np.stack([next(logits) for _ in one.labels]), one, entails) for one in candidates]


def entailment(labels: Sequence[str]) -> int:
    """The place of the label that means entailment. UsageError without one."""
    for i, label in enumerate(labels):
        if label.lower().startswith("entail"):
            return i
    known = ", ".join(labels) or "none"
    raise UsageError(
        f"candidates need a model of entailment, expected a label that begins with entail, this one's are {known:.100}; leave them out"
    )


def _chosen(logits: np.ndarray, candidates: Candidates, entails: int | None) -> Classification:
    """logits [candidates, labels] → shares of the candidates."""
    if entails is None:
        shares = softmax(logits[:, 0])
    elif candidates.several or len(candidates.labels) == 1:
        against = -1 if entails == 0 else 0  # contradiction, as that pipeline has it
        shares = np.array([softmax(row[[against, entails]])[1] for row in logits])
    else:
        shares = softmax(logits[:, entails])
    order = np.argsort(-shares, kind="stable")
    scores = {candidates.labels[i]: float(shares[i]) for i in order}
    best = candidates.labels[order[0]]
    return Classification(best, scores, tuple(n for n, s in scores.items() if s >= 0.5) if candidates.several else (best,))
