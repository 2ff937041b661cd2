import sys

import pytest

from onnxport.compare import metrics
from onnxport.compare.differences import marked
from onnxport.errors import UsageError


def answers(*texts):
    return [{"text": text, "tokens": [len(word) for word in text.split()]} for text in texts]


def test_translation_is_scored_by_sacrebleu():
    import sacrebleu

    hypotheses, references = ["the cat sat on the mat", "a dog"], ["the cat sat on a mat", "a dog barks"]
    found = metrics.translation(hypotheses, [[r] for r in references])
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(hypotheses, [references]).score)
    assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(hypotheses, [references]).score)
    assert found["exact_match"] == 0


def test_any_of_several_references_counts():
    found = metrics.quality(
        "pairs",
        answers("guten tag liebe leute", "auf wiedersehen ihr lieben"),
        [["hallo", "guten tag liebe leute"], ["auf wiedersehen ihr lieben"]],
    )
    assert found["bleu"] == pytest.approx(100)
    assert found["exact_match"] == 1


def test_signatures_name_the_tokenizer():
    found = metrics.signatures([["a"], ["b", "c"]])
    assert "tok:13a" in found["bleu"]
    assert "nrefs:var" in found["bleu"]


def test_questions_are_scored_as_squad_does():
    outputs = [{"answer": "The Cat!"}, {"answer": "a big red dog"}, {"answer": ""}]
    found = metrics.quality("questions", outputs, [["cat"], ["red dog"], []])
    assert found["exact_match"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx((1 + 0.8 + 1) / 3)


def test_labels_give_accuracy():
    found = metrics.quality("labelled", [{"label": 1}, {"label": "b"}, {"label": "c"}], ["1", "c", "c"])
    assert found == {"accuracy": pytest.approx(2 / 3), "macro_f1": pytest.approx((1 + 0 + 2 / 3) / 3)}


def test_without_references_there_is_no_quality():
    assert metrics.quality("texts", answers("a"), None) == {}


def test_a_drop_is_positive_when_worse():
    found = metrics.drops({"bleu": 36.0, "perplexity": 9.0, "f1": 0.9}, {"bleu": 37.0, "perplexity": 8.0, "accuracy": 1.0})
    assert found == {"bleu_drop": 1.0, "perplexity_drop": 1.0}


def test_agreement_is_the_share_of_identical_answers():
    found = metrics.agreement(answers("a bb", "a bb ccc", "a", "x"), answers("a bb", "a bb cccc", "a bb", "x"))
    assert found["agreement"] == 0.5
    assert found["first_difference"] == {"count": 2, "median": 1.5, "histogram": {"1": 1, "2": 1}}


def test_vectors_have_a_cosine():
    assert metrics.agreement([[1.0, 0.0], [0.0, 0.0]], [[2.0, 0.0], [0.0, 0.0]]) == {"cosine": 1.0}
    assert metrics.agreement([[1.0, 0.0]], [[1.0, 0.0, 0.0]]) == {}  # of two models


@pytest.mark.parametrize("a, b, place", [([1, 2, 3], [1, 9, 3], 1), ([1, 2], [1, 2, 3], 2), ([], [1], 0)])
def test_first_difference(a, b, place):
    assert metrics.first_difference(a, b) == place


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(UsageError, match=r"pip install 'onnxport\[compare\]'"):
        metrics.translation(["a"], [["a"]])


def test_differing_words_are_marked_and_nothing_is_lost():
    text = "Das ist  ein Test."
    pieces = marked(text, "Das war ein Test!")
    assert "".join(piece for piece, _ in pieces) == text
    assert [piece.strip() for piece, differs in pieces if differs and piece.strip()] == ["ist", "."]


@pytest.mark.parametrize("name, heading", [("bleu", "BLEU"), ("chrf", "chrF"), ("f1", "F1"), ("exact_match", "Exact match")])
def test_headings_keep_the_capitals_of_names(name, heading):
    assert metrics.METRICS[name].heading == heading


@pytest.mark.parametrize(
    "name, value, in_a_sentence, finer, limit",
    [("bleu", -0.01, "0.0", "-0.01", 0.5), ("accuracy", 0.87654, "0.877", "0.8765", 0.01), ("perplexity", 20.0, "20.0", "20.00", 0.2)],
)
def test_a_row_says_how_a_metric_is_written_and_judged(name, value, in_a_sentence, finer, limit):
    metric = metrics.METRICS[name]
    assert (metric.number(value), metric.number(value, finer=1), metric.limit(20.0)) == (in_a_sentence, finer, limit)


def test_the_first_task_metric_that_was_measured_leads():
    assert metrics.lead_metric({"cosine": 1.0}) is None
    assert metrics.lead_metric({"cosine": 1.0, "f1": 0.5, "chrf": None}).name == "f1"


def test_guesses_of_a_draft_are_summed_over_all_answers():
    answers = [
        {"text": "a", "tokens": [1, 2, 3], "made": 4, "passes": 2, "guessed": 4, "accepted": 2},
        {"text": "", "tokens": [], "made": 1, "passes": 1, "guessed": 0, "accepted": 0},
    ]
    assert metrics.guesses(answers) == {"tokens_per_pass": 5 / 3, "acceptance": 0.5}
    assert metrics.guesses(answers[1:]) == {"tokens_per_pass": 1.0, "acceptance": None}
    assert metrics.guesses([{"text": "a", "tokens": [1]}]) == metrics.guesses([]) == metrics.guesses([[0.5]]) == {}
    assert metrics.guesses([{"made": 0, "passes": 0, "guessed": 0, "accepted": 0}]) == {"tokens_per_pass": None, "acceptance": None}
