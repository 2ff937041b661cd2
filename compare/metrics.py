"""The names of metrics, quality against references, and agreement with another side.

An output is a dict: generated {"text", "tokens"}, classified {"label"}, answered {"answer"}, or a list of floats (a vector).
"""

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from onnxport.compare import scores
from onnxport.compare.scores import Statistics, require_sacrebleu

LOWER_IS_BETTER = frozenset({"perplexity"})
# The first that was measured leads the verdict.
QUALITY = ("bleu", "chrf", "exact_match", "f1", "accuracy", "macro_f1", "perplexity", "recall_at_1", "recall_at_10")
DROPS = (*QUALITY, "cosine")
SIGNS = {name: 1 if name in LOWER_IS_BETTER else -1 for name in DROPS}  # of a drop

LABELS = {
    "bleu": "BLEU",
    "chrf": "chrF",
    "exact_match": "exact match",
    "f1": "F1",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "perplexity": "perplexity",
    "recall_at_1": "recall at 1",
    "recall_at_10": "recall at 10",
}


def measured(kind: str, outputs: Sequence[Any], references: Sequence[Any] | None) -> Statistics:
    """The statistics of one side for data of `kind` (see `data.Dataset`); {} without references, and for vectors."""
    if references is None or not outputs or not isinstance(outputs[0], dict):
        return {}
    if kind == "pairs":
        return scores.of_texts([output["text"] or "" for output in outputs], references)
    if kind == "questions":
        return scores.of_answers([output.get("answer") or output.get("text") or "" for output in outputs], references)
    if kind == "labelled" and "label" in outputs[0]:
        return scores.of_labels([str(output["label"]) for output in outputs], references)
    return {}


def quality(kind: str, outputs: Sequence[Any], references: Sequence[Any] | None) -> dict[str, float]:
    """Metrics of one side for data of `kind` (see `data.Dataset`); {} without references."""
    return values(measured(kind, outputs, references))


def values(found: Statistics) -> dict[str, float]:
    """The metrics themselves."""
    return {name: statistic.value for name, statistic in found.items()}


def translation(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """See `scores.of_texts`."""
    return values(scores.of_texts(hypotheses, references))


def signatures(references: Sequence[Sequence[str]]) -> dict[str, str]:
    """sacrebleu's signatures of the two scores, for a report that others can repeat."""
    sacrebleu = require_sacrebleu()
    found = {}
    for name, metric in (("bleu", sacrebleu.metrics.BLEU()), ("chrf", sacrebleu.metrics.CHRF())):
        metric.corpus_score([""] * len(references), scores.references_by_place(references))
        found[name] = str(metric.get_signature())
    return found


def drops(metrics: dict[str, float], reference: dict[str, float]) -> dict[str, float]:
    """`X_drop` for every quality metric that both have: positive when `metrics` is worse, whichever way X runs."""
    common = [name for name in DROPS if name in metrics and name in reference]
    return {f"{n}_drop": SIGNS[n] * (metrics[n] - reference[n]) + 0.0 for n in common}


def agreement(outputs: Sequence[Any], reference: Sequence[Any]) -> dict[str, Any]:
    """`agreement`, the share of identical outputs, and for generated answers where the others part.

    Vectors have `cosine` (the mean) instead: two float computations are not identical, and need not be.
    first_difference: {"count", "median", "histogram": {position: count}}, positions counted from 0 in new tokens.
    """
    if not len(outputs):
        return {}
    if not isinstance(outputs[0], dict):
        return dict(values(scores.of_vectors(outputs, reference)))
    same = [identity(a) == identity(b) for a, b in zip(outputs, reference, strict=True)]
    found: dict[str, Any] = {"agreement": statistics.fmean(same)}
    if "tokens" in outputs[0]:
        places = [
            first_difference(a["tokens"], b["tokens"])
            for a, b, equal in zip(outputs, reference, same, strict=True)
            if not equal and a["tokens"] != b["tokens"]
        ]
        if places:
            histogram = {str(place): count for place, count in sorted(Counter(places).items())}
            found["first_difference"] = {"count": len(places), "median": statistics.median(places), "histogram": histogram}
    return found


def first_difference(tokens: Sequence[int], other: Sequence[int]) -> int:
    """The first position at which two different sequences of ids part; the shorter one's end counts as a token."""
    pairs = zip(tokens, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(tokens), len(other)))


def identity(output: dict[str, Any]) -> Any:
    """What must be equal for two outputs to be identical: the text where there is one, else the ids, labels or answer."""
    for name in ("labels", "label", "answer", "text", "tokens"):
        if output.get(name) is not None:
            return output[name]
    return output
