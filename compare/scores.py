"""The metrics of every task, counted as statistics: outputs of one side in, `Statistic` by name out.

Shares run from 0 to 1; BLEU and chrF from 0 to 100.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxport.compare.bootstrap import Statistic, mean, ratio
from onnxport.extras import require

RECALLS = (1, 10)
NDCG = 10  # places of a ranking that count
_ORDERS = 4  # of BLEU's n-grams

Statistics = dict[str, Statistic]


def require_sacrebleu() -> Any:
    """The module, or a UsageError that names the extra to install."""
    return require("sacrebleu", "compare", "a metric of texts")


def of_texts(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Statistics:
    """bleu (13a), chrf and exact_match (share equal to one of its references) of texts with one or more references each.

    What is counted in a sentence is sacrebleu's; how counts become a score is its default too (BLEU with exponential smoothing, chrF2).
    """
    sacrebleu = require_sacrebleu()
    texts = [text.strip() for text in hypotheses]
    streams = references_by_place(references)
    counts = {
        name: np.array(metric._extract_corpus_statistics(texts, streams), np.float64)
        for name, metric in (("bleu", sacrebleu.metrics.BLEU()), ("chrf", sacrebleu.metrics.CHRF()))
    }
    exact = [text in {reference.strip() for reference in group} for text, group in zip(texts, references, strict=True)]
    return {"bleu": Statistic(counts["bleu"], bleu), "chrf": Statistic(counts["chrf"], chrf), "exact_match": mean(np.array(exact))}


def references_by_place(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """References as sacrebleu takes them: all first ones, all second ones, ...; None where a text has fewer."""
    most = max(len(group) for group in references)
    return [[group[i] if i < len(group) else None for group in references] for i in range(most)]


def bleu(sums: np.ndarray) -> np.ndarray:
    """BLEU of sums [..., 10]: lengths of system and reference, n-grams that are right and all n-grams, by n (Papineni et al. 2002).

    An order without any right n-gram counts as 1/2, 1/4, ... of one (mteval-v13a's smoothing, sacrebleu's default).
    """
    own, other, right, every = sums[..., 0], sums[..., 1], sums[..., 2 : 2 + _ORDERS], sums[..., 2 + _ORDERS :]
    halves = 0.5 ** np.cumsum((right == 0) & (every > 0), -1)
    precisions = np.where(right > 0, right, halves) / np.maximum(every, 1)
    short = np.exp(np.minimum(0, 1 - other / np.maximum(own, 1e-300)))
    whole = (every > 0).all(-1) & (right > 0).any(-1) & (own > 0)
    return np.where(whole, 100 * short * np.exp(np.log(precisions).mean(-1)), 0.0)


def chrf(sums: np.ndarray) -> np.ndarray:
    """chrF2 of sums [..., 18]: of each order from 1 to 6 the n-grams of system and reference and those in both (Popović 2015)."""
    own, other, both = (sums[..., i::3] for i in range(3))
    counted = (own > 0) & (other > 0)
    orders = np.maximum(counted.sum(-1), 1)
    precision, recall = (np.where(counted, both / np.maximum(n, 1), 0.0).sum(-1) / orders for n in (own, other))
    return np.asarray(100 * 5 * precision * recall / np.maximum(4 * precision + recall, 1e-300))


def of_answers(answers: Sequence[str], accepted: Sequence[Sequence[str]]) -> Statistics:
    """exact_match and f1 by SQuAD's definitions: the best over a question's answers; without any, only an empty answer is right."""
    pairs = list(zip(answers, accepted, strict=True))
    exact = [max((normal(answer) == normal(a) for a in group), default=not answer) for answer, group in pairs]
    f1 = [max((_f1(answer, a) for a in group), default=float(not answer)) for answer, group in pairs]
    return {"exact_match": mean(np.array(exact)), "f1": mean(np.array(f1))}


def normal(text: str) -> str:
    """SQuAD's normal form: lower case, no punctuation, no articles, single spaces."""
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def _f1(answer: str, accepted: str) -> float:
    """Harmonic mean of precision and recall over the words of two answers (Rajpurkar et al. 2016)."""
    words, expected = normal(answer).split(), normal(accepted).split()
    common = sum((Counter(words) & Counter(expected)).values())
    if not words or not expected:
        return float(words == expected)
    return 2 * common / (len(words) + len(expected))


def of_labels(outputs: Sequence[str], labels: Sequence[str]) -> Statistics:
    """accuracy, and macro_f1: the mean F1 of all labels that occur in the sample, as the right one or as an output."""
    names = {name: i for i, name in enumerate(dict.fromkeys([*labels, *outputs]))}
    own, true = (np.array([names[name] for name in side]) for side in (outputs, labels))
    rows = np.zeros((len(labels), 3, len(names)))
    places = np.arange(len(labels))
    rows[places, 0, own] = 1  # the output
    rows[places, 1, true] = 1  # the right label
    rows[places, 2] = rows[:, 0] * rows[:, 1]  # both
    return {"accuracy": mean(own == true), "macro_f1": Statistic(rows.reshape(len(labels), -1), _macro_f1)}


def _macro_f1(sums: np.ndarray) -> np.ndarray:
    own, true, both = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, 0)
    there = own + true
    return np.asarray((2 * both / np.maximum(there, 1)).sum(-1) / np.maximum((there > 0).sum(-1), 1))


def of_likelihoods(likelihoods: Sequence[dict[str, Any]]) -> Statistics:
    """perplexity of {"negative_log", "tokens"} a text: exp of the mean negative log-likelihood a token. {} where no text has a token."""
    rows = np.array([[one["negative_log"], one["tokens"]] for one in likelihoods], np.float64)
    return {"perplexity": Statistic(rows, lambda sums: np.exp(ratio(sums)))} if rows[:, 1].sum() else {}


def of_retrieval(questions: Any, passages: Any, passage_of: Sequence[int]) -> Statistics:
    """recall_at_k: the share of questions whose own passage is among the k nearest by cosine; ties count against it.

    questions, passages: vectors [n, hidden].  passage_of: each question's own passage.
    """
    queries, documents = unit(questions), unit(passages)
    ranks = np.zeros(len(queries), np.int64)
    for start in range(0, len(queries), 256):  # questions x passages is not held at once
        scores = queries[start : start + 256] @ documents.T
        own = scores[np.arange(len(scores)), passage_of[start : start + 256]]
        ranks[start : start + 256] = (~(scores < own[:, None])).sum(1) - 1  # NaN counts against it too
    return {f"recall_at_{k}": mean(ranks < k) for k in RECALLS}


def of_vectors(vectors: Any, reference: Any) -> Statistics:
    """cosine: of each vector with the reference's of the same text; {} where the two differ in size."""
    own, other = np.asarray(vectors, np.float64), np.asarray(reference, np.float64)
    if own.shape != other.shape:
        return {}
    cosines = (unit(own) * unit(other)).sum(1)
    return {"cosine": mean(np.where((own == other).all(1), 1.0, cosines))}


def unit(vectors: Any) -> np.ndarray:
    """float64 vectors of length 1; of 0 they stay."""
    array = np.asarray(vectors, np.float64)
    return np.asarray(array / np.maximum(np.linalg.norm(array, axis=1, keepdims=True), 1e-300))


def of_entities(found: Sequence[Sequence[Any]], expected: Sequence[Sequence[Any]]) -> Statistics:
    """f1, precision and recall over entities, each [label, begin, end] of its text; an entity is right where all three are.

    seqeval's default (micro) average: entities of all texts are counted together.
    """
    rows = []
    for own, true in zip(found, expected, strict=True):
        right, made = {tuple(one) for one in true}, {tuple(one) for one in own}
        rows.append([len(made & right), len(made), len(right)])
    counts = np.array(rows, np.float64)
    return {
        "f1": Statistic(counts, lambda sums: 2 * sums[..., 0] / np.maximum(sums[..., 1] + sums[..., 2], 1)),
        "precision": Statistic(counts, lambda sums: sums[..., 0] / np.maximum(sums[..., 1], 1)),
        "recall": Statistic(counts, lambda sums: sums[..., 0] / np.maximum(sums[..., 2], 1)),
    }


def of_tags(found: Sequence[Sequence[str]], expected: Sequence[Sequence[str]]) -> Statistics:
    """`of_entities` of tags, a tag a word; see `chunks`."""
    return of_entities([chunks(tags) for tags in found], [chunks(tags) for tags in expected])


def chunks(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """The entities of IOB, IOE or IOBES tags: label, first and last word; by the rules of seqeval's default mode, which are conlleval's.

    An entity ends before a tag B, S or O, behind a tag E or S, and where the label changes; whatever else is inside begins one.
    """
    found: list[tuple[str, int, int]] = []
    before, label, begin = "O", "", 0
    for i, tag in enumerate([*tags, "O"]):
        kind, other = tag[0], tag[1:].split("-", 1)[-1] or "_"
        inside, differs = before not in "O.", label != other
        if before in "ES" or (before in "BI" and kind in "BSO") or (inside and differs):
            found.append((label, begin, i - 1))
        if kind in "BS" or (before in "ESO" and kind in "EI") or (kind not in "O." and differs):
            begin = i
        before, label = kind, other
    return found


def of_rankings(scores: Sequence[Sequence[float]], relevance: Sequence[Sequence[float]]) -> Statistics:
    """accuracy_at_1, the share of queries whose best document is relevant, and ndcg_at_10, the normalized discounted cumulative gain
    (Järvelin and Kekäläinen 2002) with a document's relevance as its gain, over queries with a relevant document; ties count against both.
    """
    first, gains = [], []
    for own, true in zip(scores, relevance, strict=True):
        if not any(true):
            continue
        order = sorted(range(len(own)), key=lambda i: (-own[i], true[i]))  # NaN is sorted nowhere, sides refuse it
        first.append(true[order[0]] > 0)
        gains.append(_gain([true[i] for i in order]) / _gain(sorted(true, reverse=True)))
    return {"ndcg_at_10": mean(np.array(gains)), "accuracy_at_1": mean(np.array(first))} if first else {}


def _gain(relevance: Sequence[float]) -> float:
    return float(sum(gain / np.log2(i + 2) for i, gain in enumerate(relevance[:NDCG])))


def of_choices(found: Sequence[str], expected: Sequence[str]) -> Statistics:
    """accuracy: the share of answers that are the expected one, small letters and capitals alike."""
    return {"accuracy": mean(np.array([own.strip().lower() == true.strip().lower() for own, true in zip(found, expected, strict=True)]))}
