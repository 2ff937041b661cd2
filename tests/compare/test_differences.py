"""Where answers part: which partings are shown, and what is told of each."""

import pytest
from tokenizers import Tokenizer, decoders, models

from onnxport.compare.differences import candidates, divergences, informative
from onnxport.compare.workload import Workload
from onnxport.runtime.bundle.reader import Bundle
from support.compare_samples import write_bundle
from support.paths import TESTS

WORDS = ["<pad>", "<s>", "</s>", "▁Hallo", "▁du", "▁Sie", "▁Welt", "chen", "!"]
HALLO, DU, SIE, WELT, CHEN, MARK = range(3, 9)
END = 2


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<pad>"))
    tokenizer.add_special_tokens(WORDS[:3])
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return Bundle.open(write_bundle(folder))


def answer(*tokens):
    return {"tokens": list(tokens), "text": " ".join(WORDS[i] for i in tokens), "score": 0.0}


def side(probabilities):
    return {"kind": "class", "class": "support.fake_scoring:Scoring", "options": {"probabilities": probabilities}}


def parted(bundle, reference, variant, base=None, own=None):
    specs = {"fp32": side(base), "int8": side(own)}
    work = Workload("generate", "texts", "texts", [f"text {i}" for i in range(len(reference))], None)
    return divergences(specs, work, {"fp32": reference, "int8": variant}, "fp32", bundle, [str(TESTS)])


BASE = {str(DU): 0.4, str(SIE): 0.3, str(END): 0.2, str(WELT): 0.1}
OWN = {str(SIE): 0.5, str(DU): 0.25, str(CHEN): 0.15}


def test_the_tokens_and_what_both_sides_think_of_them(bundle):
    found = parted(bundle, [answer(HALLO, DU, MARK), answer(WELT)], [answer(HALLO, SIE), answer(WELT)], BASE, OWN)
    assert list(found) == ["int8"] and len(found["int8"]) == 1
    parting = found["int8"][0]
    assert {name: parting[name] for name in ("index", "input", "position", "prefix", "why")} == {
        "index": 0, "input": "text 0", "position": 1, "prefix": "Hallo", "why": "earliest",
    }  # fmt: skip
    reference, variant = parting["reference"], parting["variant"]
    assert reference["token"] == {"id": DU, "text": " du", "end": False} and reference["rest"] == " du!"
    assert variant["token"] == {"id": SIE, "text": " Sie", "end": False} and variant["rest"] == " Sie"
    assert (reference["own"], reference["other"]) == pytest.approx((0.4, 0.3))
    assert (variant["own"], variant["other"]) == pytest.approx((0.5, 0.25))
    assert [(top["id"], top["probability"]) for top in reference["top"]] == [
        (DU, pytest.approx(0.4)), (SIE, pytest.approx(0.3)), (END, pytest.approx(0.2)),
    ]  # fmt: skip
    assert variant["top"][2]["text"] == "chen"


def test_an_answer_that_ends_earlier_chose_the_end(bundle):
    parting = parted(bundle, [answer(HALLO)], [answer(HALLO, SIE)], BASE, OWN)["int8"][0]
    assert parting["reference"]["token"] == {"id": END, "text": None, "end": True}
    assert parting["reference"]["own"] == pytest.approx(0.2) and parting["variant"]["other"] == pytest.approx(1e-3)
    assert parting["reference"]["rest"] == ""


def test_a_side_that_cannot_score_says_so_and_the_other_is_shown(bundle):
    parting = parted(bundle, [answer(HALLO, DU)], [answer(HALLO, SIE)], None, OWN)["int8"][0]
    assert parting["reference"]["own"] is None and "has no score()" in parting["reference"]["reason"]
    assert parting["variant"]["own"] == pytest.approx(0.5) and parting["variant"]["reason"] is None


def test_nobody_is_started_where_all_answers_are_the_same(bundle):
    specs = {"fp32": {"kind": "class", "class": "no_such_module:No"}, "int8": {}}
    work = Workload("generate", "texts", "texts", ["a"], None)
    assert divergences(specs, work, {"fp32": [answer(DU)], "int8": [answer(DU)]}, "fp32", bundle) == {"int8": []}


def test_other_tasks_have_no_tokens_to_part_at(bundle):
    assert divergences({"a": {}, "b": {}}, Workload("classify", "texts", "t", ["a"], None), {}, "a", bundle) == {"b": []}


def test_many_partings_give_two_of_each_kind():
    def parting(index, position, own, other):
        return {"index": index, "position": position, "reference": {"own": own, "other": other}, "variant": {"own": None, "other": None}}

    gaps = [(0, 0.5, 0.1), (1, 0.5, 0.1), (5, 0.31, 0.3), (5, 0.3, 0.32), (9, 0.6, 0.2), (9, 0.9, 0.001), (9, 0.2, 0.8)]
    shown = informative([parting(i, *gap) for i, gap in enumerate(gaps)])
    assert [(p["why"], p["index"]) for p in shown] == [
        ("earliest", 0), ("earliest", 1), ("closest", 2), ("closest", 3), ("widest", 5), ("widest", 6),
    ]  # fmt: skip


def test_of_many_differing_answers_only_some_are_asked_for():
    """The earliest and some of all the others: a bad variant costs no more than a good one. What differs in ids alone is no difference."""
    base, own = ([answer(*[HALLO] * (i % 40), token) for i in range(200)] for token in (DU, SIE))
    own[0] = answer(SIE) | {"text": base[0]["text"]}
    rows = candidates(own, base, True)
    assert len(rows) == len(set(rows)) == 24 and 0 not in rows
    assert rows[:8] == [40, 80, 120, 160, 1, 41, 81, 121]
    assert candidates([answer(DU, SIE)], [answer(DU)], False) == []  # a model without an end: nothing can be scored there
