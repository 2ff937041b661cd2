import random

import numpy as np
import pytest
import sacrebleu

from onnxport.compare import bootstrap, metrics, scores
from onnxport.compare.bootstrap import RESAMPLES, Statistic, interval, mean

WORDS = "the a cat dog sat on mat barks loudly und so weiter".split()


def corpus(seed, count, wrong=0.5):
    """Hypotheses, some equal to a reference and some empty or very short, and one or two references each."""
    rng = random.Random(seed)

    def text(least, most):
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(least, most)))

    references = [[text(1, 9) for _ in range(rng.randint(1, 2))] for _ in range(count)]
    return [text(0, 9) if rng.random() < wrong else group[0] for group in references], references


def theirs(hypotheses, references):
    streams = scores.references_by_place(references)
    found = sacrebleu.metrics.BLEU(), sacrebleu.metrics.CHRF()
    return [metric.corpus_score(hypotheses, streams).score for metric in found]


def test_scores_from_counts_are_those_of_sacrebleu():
    for seed in range(150):
        hypotheses, references = corpus(seed, 1 + seed % 4)
        found = scores.of_texts(hypotheses, references)
        assert [found["bleu"].value, found["chrf"].value] == pytest.approx(theirs(hypotheses, references), abs=1e-9)


def test_a_sample_is_scored_as_a_corpus_of_its_own():
    hypotheses, references = corpus(1, 30)
    found = scores.of_texts(hypotheses, references)
    draws = bootstrap._draws(30)
    resampled = [found[name].resampled() for name in ("bleu", "chrf")]
    for number in (0, 1, 537, RESAMPLES - 1):
        drawn = np.repeat(np.arange(30), draws[number])
        assert len(drawn) == 30
        wanted = theirs([hypotheses[i] for i in drawn], [references[i] for i in drawn])
        assert [one[number] for one in resampled] == pytest.approx(wanted, abs=1e-9)


def test_the_interval_of_a_mean_is_that_of_theory():
    rng = np.random.default_rng(5)
    own, base = (rng.random(2000) < 0.8).astype(float), (rng.random(2000) < 0.84).astype(float)
    difference = base - own
    found = interval(mean(own), mean(base), -1)
    spread = 1.96 * difference.std() / 2000**0.5
    assert found["low"] == pytest.approx(difference.mean() - spread, abs=0.15 * spread)
    assert found["high"] == pytest.approx(difference.mean() + spread, abs=0.15 * spread)
    assert found["n"] == 2000


def test_the_same_answers_never_differ():
    one = mean(np.arange(50.0))
    assert interval(one, one, -1) == {"low": 0.0, "high": 0.0, "p": 1.0, "n": 50}


def test_samples_are_paired_and_repeatable():
    noise = np.random.default_rng(0).normal(size=400) * 100
    found = interval(mean(noise), mean(noise + 1), -1)  # each input is worse by 1, whatever it is
    assert (found["low"], found["high"]) == (pytest.approx(1), pytest.approx(1))
    assert found["p"] < 0.01
    again = interval(mean(noise), mean(noise[::-1]), -1)
    bootstrap._draws.cache_clear()
    assert interval(mean(noise), mean(noise[::-1]), -1) == again


def test_p_and_interval_agree_on_significance():
    rng = np.random.default_rng(1)
    for shift in np.linspace(0, 0.4, 12):
        found = interval(mean(rng.normal(size=150)), mean(rng.normal(size=150) + shift), -1)
        inside = found["low"] <= 0 <= found["high"]
        assert inside == (found["p"] >= 0.05) or abs(found["p"] - 0.05) < 0.01


def test_one_input_tells_nothing_of_chance():
    assert interval(mean(np.ones(1)), mean(np.zeros(1)), -1) is None
    assert metrics.drop_intervals({"f1": mean(np.ones(1))}, {"f1": mean(np.ones(1))}) == {}


def test_perplexity_is_over_tokens_and_worse_when_higher():
    found = scores.of_likelihoods(
        [{"negative_log": 2.0, "tokens": 4}, {"negative_log": 0.0, "tokens": 0}, {"negative_log": 9.0, "tokens": 6}]
    )
    worse = scores.of_likelihoods(
        [{"negative_log": 3.0, "tokens": 4}, {"negative_log": 0.0, "tokens": 0}, {"negative_log": 9.0, "tokens": 6}]
    )
    assert found["perplexity"].value == pytest.approx(np.exp(1.1))
    assert metrics.drop_intervals(worse, found)["perplexity_drop_ci"]["low"] >= 0
    assert scores.of_likelihoods([{"negative_log": 0.0, "tokens": 0}]) == {}


def test_recall_asks_for_the_own_passage():
    passages = np.eye(12, dtype=np.float32)
    questions = passages[[0, 1, 2]] + 0.1
    questions[1] = passages[5] + 0.5 * passages[1]  # second nearest
    questions[2] = 0  # every passage is as near: not found
    found = metrics.values(scores.of_retrieval(questions, passages, [0, 1, 2]))
    assert found == {"recall_at_1": pytest.approx(1 / 3), "recall_at_10": pytest.approx(2 / 3)}
    assert scores.of_retrieval(questions * np.nan, passages, [0, 1, 2])["recall_at_10"].value == 0


def test_macro_f1_counts_only_labels_of_the_sample():
    found = scores.of_labels(["a", "b", "b", "c"], ["a", "a", "b", "c"])["macro_f1"]
    assert found.value == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    only = Statistic(found.rows[:1], found.combine)
    assert only.value == 1
