"""Quality against references and agreement with another side. Shares run from 0 to 1; BLEU and chrF from 0 to 100, as sacrebleu gives them.

An output is a dict: generated {"text", "tokens"}, classified {"label"}, answered {"answer"}, or a list of floats (a vector).
"""

import re
import statistics
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

from onnxport.errors import UsageError

LOWER_IS_BETTER = frozenset({"perplexity"})
QUALITY = ("bleu", "chrf", "exact_match", "f1", "accuracy", "perplexity")  # the first that was measured leads the verdict

LABELS = {"bleu": "BLEU", "chrf": "chrF", "exact_match": "exact match", "f1": "F1", "accuracy": "accuracy", "perplexity": "perplexity"}


def quality(kind: str, outputs: Sequence[Any], references: Sequence[Any] | None) -> dict[str, float]:
    """Metrics of one side for data of `kind` (see `data.Dataset`); {} without references."""
    if references is None:
        return {}
    if kind == "pairs":
        return translation([output["text"] or "" for output in outputs], references)
    if kind == "questions":
        pairs = [(_answer(output), accepted) for output, accepted in zip(outputs, references, strict=True)]
        exact = [max((_normal(answer) == _normal(a) for a in accepted), default=not answer) for answer, accepted in pairs]
        f1 = [max((_f1(answer, a) for a in accepted), default=float(not answer)) for answer, accepted in pairs]
        return {"exact_match": statistics.fmean(exact), "f1": statistics.fmean(f1)}
    if kind == "labelled":
        hits = [str(output["label"]) == label for output, label in zip(outputs, references, strict=True) if "label" in output]
        return {"accuracy": statistics.fmean(hits)} if hits else {}
    return {}


def require_sacrebleu() -> Any:
    """The module, or a UsageError that names the extra to install."""
    try:
        import sacrebleu
    except ImportError as error:
        raise UsageError(f"quality metrics need sacrebleu ({error}); pip install onnxport[compare]") from error
    return sacrebleu


def translation(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """bleu (13a), chrf and exact_match (share equal to one of its references) of texts with one or more references each."""
    sacrebleu = require_sacrebleu()
    most = max(len(group) for group in references)
    streams = [[group[i] if i < len(group) else None for group in references] for i in range(most)]
    bleu, chrf = sacrebleu.metrics.BLEU(), sacrebleu.metrics.CHRF()
    texts = [text.strip() for text in hypotheses]
    exact = [text in {reference.strip() for reference in group} for text, group in zip(texts, references, strict=True)]
    return {
        "bleu": float(bleu.corpus_score(texts, streams).score),
        "chrf": float(chrf.corpus_score(texts, streams).score),
        "exact_match": statistics.fmean(exact),
    }


def signatures(references: Sequence[Sequence[str]]) -> dict[str, str]:
    """sacrebleu's signatures of the two scores, for a report that others can repeat."""
    sacrebleu = require_sacrebleu()
    found = {}
    for name, metric in (("bleu", sacrebleu.metrics.BLEU()), ("chrf", sacrebleu.metrics.CHRF())):
        most = max(len(group) for group in references)
        metric.corpus_score([""] * len(references), [[g[i] if i < len(g) else None for g in references] for i in range(most)])
        found[name] = str(metric.get_signature())
    return found


def drops(metrics: dict[str, float], reference: dict[str, float]) -> dict[str, float]:
    """`X_drop` for every quality metric that both have: positive when `metrics` is worse, whichever way X runs."""
    common = [name for name in QUALITY if name in metrics and name in reference]
    return {f"{n}_drop": (metrics[n] - reference[n]) * (1 if n in LOWER_IS_BETTER else -1) + 0.0 for n in common}


def agreement(outputs: Sequence[Any], reference: Sequence[Any]) -> dict[str, Any]:
    """`agreement`, the share of identical outputs, and for generated answers where the others part.

    Vectors have `cosine` (the mean) instead: two float computations are not identical, and need not be.
    first_difference: {"count", "median", "histogram": {position: count}}, positions counted from 0 in new tokens.
    """
    if not outputs:
        return {}
    if not isinstance(outputs[0], dict):
        return {"cosine": statistics.fmean(_cosine(a, b) for a, b in zip(outputs, reference, strict=True))}
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
    """What must be equal for two outputs to be identical: the text where there is one, else the ids, label or answer."""
    for name in ("label", "answer", "text", "tokens"):
        if output.get(name) is not None:
            return output[name]
    return output


def _cosine(a: Sequence[float], b: Sequence[float]) -> float:
    product = sum(x * y for x, y in zip(a, b, strict=True))
    length = sum(x * x for x in a) ** 0.5 * sum(y * y for y in b) ** 0.5
    return product / length if length else float(list(a) == list(b))


def _answer(output: dict[str, Any]) -> str:
    return output.get("answer") or output.get("text") or ""


def _normal(text: str) -> str:
    """SQuAD's normal form: lower case, no punctuation, no articles, single spaces."""
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def _f1(answer: str, accepted: str) -> float:
    """Harmonic mean of precision and recall over the words of two answers (Rajpurkar et al. 2016)."""
    words, expected = _normal(answer).split(), _normal(accepted).split()
    common = sum((Counter(words) & Counter(expected)).values())
    if not words or not expected:
        return float(words == expected)
    return 2 * common / (len(words) + len(expected))
