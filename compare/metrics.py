"""The table of metrics, quality against references, and agreement with another side.

To add a metric, add a row to `_ROWS` and count it in `scores`; reports, verdicts, gates and baselines follow.

An output is a dict: generated {"text", "tokens"}, classified {"label"}, answered {"answer"}, {"entities"}, {"tags"}, {"ranking", "scores"},
or a list of floats (a vector).
"""

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxport.compare import bootstrap, scores
from onnxport.compare.scores import Statistics


@dataclass(frozen=True)
class Metric:
    """How a metric is named, written and judged.

    label: its name within a sentence.  share: from 0 to 1 and shown in percent; others are numbers.
    digits: after the point within a sentence.  unit: behind a loss in a sentence.
    lower_is_better: less of it is better.  of_task: it tells how well a task is done, so a verdict may rest on it.
    tolerance: how much worse still counts as the same quality; `relative`: as a share of the reference's value.
    """

    name: str
    label: str
    share: bool = True
    digits: int = 3
    unit: str = ""
    lower_is_better: bool = False
    of_task: bool = True
    tolerance: float = 0.01
    relative: bool = False

    @property
    def heading(self) -> str:
        """The label at the head of a column: names that have capitals of their own keep them."""
        return self.label.capitalize() if self.label.islower() else self.label

    def number(self, value: float, finer: int = 0) -> str:
        """A value in a sentence, with `finer` more digits: what is just beyond a limit must not look like the limit. Never -0.0."""
        places = self.digits + finer
        return f"{round(value, places) + 0.0:.{places}f}"

    def drop(self, value: float, reference: float) -> float:
        """How much worse `value` is than the reference's."""
        return self.sign * (value - reference) + 0.0

    @property
    def sign(self) -> int:
        """Of a drop: 1 where less of the metric is better, else -1."""
        return 1 if self.lower_is_better else -1

    def limit(self, reference: float) -> float:
        """The largest drop that still counts as the same quality."""
        return self.tolerance * reference if self.relative else self.tolerance


_ROWS = (  # of those with `of_task`, the first that was measured leads the verdict
    Metric("bleu", "BLEU", share=False, digits=1, unit=" BLEU", tolerance=0.5),
    Metric("chrf", "chrF", share=False, digits=1, unit=" chrF", tolerance=0.5),
    Metric("exact_match", "exact match"),
    Metric("f1", "F1"),
    Metric("ndcg_at_10", "nDCG at 10"),
    Metric("accuracy_at_1", "accuracy at 1"),
    Metric("accuracy", "accuracy"),
    Metric("macro_f1", "macro F1"),
    Metric("precision", "precision"),
    Metric("recall", "recall"),
    Metric("perplexity", "perplexity", share=False, digits=1, lower_is_better=True, relative=True),
    Metric("recall_at_1", "recall at 1"),
    Metric("recall_at_10", "recall at 10"),
    Metric("cosine", "cosine", of_task=False),
)
METRICS = {metric.name: metric for metric in _ROWS}


def percent(share: float) -> str:
    """A share in percent, rounded to a tenth: what is not all is never written as 100%, what is not nothing never as 0%."""
    text = f"{100 * share:.1f}"
    if share < 1 and text == "100.0":
        return ">99.9%"
    if share > 0 and text == "0.0":
        return "<0.1%"
    return f"{float(text):g}%"


def lead_metric(values: Mapping[str, Any]) -> Metric | None:
    """The first task metric that has a value: what a verdict speaks of."""
    return next((metric for metric in _ROWS if metric.of_task and values.get(metric.name) is not None), None)


def task_statistics(kind: str, outputs: Sequence[Any], references: Sequence[Any] | None) -> Statistics:
    """The statistics of one side for data of `kind` (see `data.Dataset`); {} without references, and for vectors."""
    if references is None or not outputs or not isinstance(outputs[0], dict):
        return {}
    needed, count = _COUNTED.get(kind, ("", None))
    if count is None or (needed and needed not in outputs[0]):
        return {}
    return count(outputs, references)


# kind of data → the field that outputs must have, and how they are counted
_COUNTED: dict[str, tuple[str, Callable[[Sequence[Any], Sequence[Any]], Statistics]]] = {
    "pairs": ("", lambda outputs, right: scores.of_texts([one["text"] or "" for one in outputs], right)),
    "questions": ("", lambda outputs, right: scores.of_answers([one.get("answer") or one.get("text") or "" for one in outputs], right)),
    "labelled": ("label", lambda outputs, right: scores.of_labels([str(one["label"]) for one in outputs], right)),
    "words": ("label", lambda outputs, right: scores.of_choices([one["label"] for one in outputs], right)),
    "choices": ("label", lambda outputs, right: scores.of_choices([one["label"] for one in outputs], right)),
    "entities": ("entities", lambda outputs, right: scores.of_entities([one["entities"] for one in outputs], right)),
    "tags": ("tags", lambda outputs, right: scores.of_tags([one["tags"] for one in outputs], right)),
    "rankings": ("scores", lambda outputs, right: scores.of_rankings([one["scores"] for one in outputs], right)),
}


def quality(kind: str, outputs: Sequence[Any], references: Sequence[Any] | None) -> dict[str, float]:
    """Metrics of one side for data of `kind` (see `data.Dataset`); {} without references."""
    return values(task_statistics(kind, outputs, references))


def values(by_name: Statistics) -> dict[str, float]:
    """The metrics themselves."""
    return {name: statistic.value for name, statistic in by_name.items()}


def translation(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """See `scores.of_texts`."""
    return values(scores.of_texts(hypotheses, references))


def signatures(references: Sequence[Sequence[str]]) -> dict[str, str]:
    """sacrebleu's signatures of the two scores, for a report that others can repeat."""
    sacrebleu = scores.require_sacrebleu()
    by_name = {}
    for name, metric in (("bleu", sacrebleu.metrics.BLEU()), ("chrf", sacrebleu.metrics.CHRF())):
        metric.corpus_score([""] * len(references), scores.references_by_place(references))
        by_name[name] = str(metric.get_signature())
    return by_name


def drops(own: Mapping[str, float], reference: Mapping[str, float]) -> dict[str, float]:
    """`X_drop` of every metric X that both have: positive where `own` is worse, whichever way X runs."""
    return {f"{m.name}_drop": m.drop(own[m.name], reference[m.name]) for m in _ROWS if m.name in own and m.name in reference}


def drop_intervals(own: Statistics, reference: Statistics) -> dict[str, dict[str, float]]:
    """`X_drop_ci` of every metric X that both have: see `bootstrap.interval`; metrics of fewer than two inputs are left out."""
    intervals = {m.name: bootstrap.interval(own[m.name], reference[m.name], m.sign) for m in _ROWS if m.name in own and m.name in reference}
    return {f"{name}_drop_ci": interval for name, interval in intervals.items() if interval is not None}


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
    shares: dict[str, Any] = {"agreement": statistics.fmean(same)}
    if "tokens" in outputs[0]:
        positions = [
            first_difference(a["tokens"], b["tokens"])
            for a, b, equal in zip(outputs, reference, same, strict=True)
            if not equal and a["tokens"] != b["tokens"]
        ]
        if positions:
            histogram = {str(position): count for position, count in sorted(Counter(positions).items())}
            shares["first_difference"] = {"count": len(positions), "median": statistics.median(positions), "histogram": histogram}
    return shares


def guesses(outputs: Sequence[Any]) -> dict[str, Any]:
    """`tokens_per_pass` of a row whose tokens a draft guesses, and `acceptance`, the share of guesses that came true; {} of other sides.

    A pass of the model gives a token of its own and the guesses that came true. `acceptance` is None where nothing was guessed.
    """
    if not len(outputs) or not isinstance(outputs[0], dict) or "guessed" not in outputs[0]:
        return {}
    made, passes, guessed, accepted = (sum(one[name] for one in outputs) for name in ("made", "passes", "guessed", "accepted"))
    return {"tokens_per_pass": made / passes if passes else None, "acceptance": accepted / guessed if guessed else None}


def first_difference(tokens: Sequence[int], other: Sequence[int]) -> int:
    """The first position at which two different sequences of ids part; the shorter one's end counts as a token."""
    pairs = zip(tokens, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(tokens), len(other)))


def identity(output: dict[str, Any]) -> Any:
    """What must be equal for two outputs to be identical: the text where there is one, else the ids, labels or answer."""
    for name in ("entities", "tags", "ranking", "labels", "label", "answer", "text", "tokens"):
        if output.get(name) is not None:
            return output[name]
    return output
