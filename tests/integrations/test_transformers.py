"""The look-alike of transformers' pipeline, without that package; answers are held against it by `make test-drop-in`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from onnxport.errors import UsageError
from onnxport.integrations.transformers import pipeline
from onnxport.runtime import load
from support import tiny_bundles, tiny_encoder


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "labels"
    return tiny_encoder.write(out, "classification", tiny_encoder.table(3), labels=["bad", "fair", "good"], max_length=8)


def test_forms_of_inputs_and_results(labels: Path) -> None:
    made = pipeline("text-classification", model=labels, threads=1)
    with load(labels, threads=1) as model:
        best = [{"label": one.label, "score": pytest.approx(one.scores[one.label])} for one in model.classify(["a b", "c"])]
        every = [[{"label": name, "score": pytest.approx(score)} for name, score in one.scores.items()] for one in model.classify(["a b"])]
    assert made("a b") == best[:1] and made(["a b", "c"]) == best and made(("a b", "c")) == best
    assert made("a b", top_k=None) == every[0] and made(["a b"], top_k=None) == every
    assert list(made(text for text in ("a b", "c"))) == best and made([]) == []
    assert pipeline(model=labels, top_k=1)(["a b", "c"]) == [[one] for one in best]


def test_what_is_not_followed_is_named(labels: Path) -> None:
    with pytest.raises(UsageError, match="text-classification: fast is not followed"):
        pipeline("text-classification", model=labels, fast=True)
    with pytest.raises(UsageError, match="this bundle's is classification; expected text-classification or zero-shot-classification"):
        pipeline("fill-mask", model=labels)
    with pytest.raises(UsageError, match="model is None"):
        pipeline("fill-mask")
    with pytest.raises(UsageError, match="batch_size is 0"):
        pipeline(model=labels)(["a"], batch_size=0)


def test_a_task_s_name_tells_the_languages_of_a_model_of_several(tmp_path: Path) -> None:
    model = tiny_bundles.TinyModel("seq2seq")
    one_pair = tiny_bundles.write_bundle(tmp_path / "pair", model)
    assert pipeline("translation_en_to_de", model=one_pair)("w5 w9") == pipeline("translation", model=one_pair)("w5 w9")
    languages = {"ids": {"en": 10, "de": 11}, "before": [None], "after": [2], "target": "start", "source": "en"}
    several = tiny_bundles.write_bundle(tmp_path / "several", model, languages=languages)
    named, told = pipeline("translation_en_to_de", model=several), pipeline("translation", model=several)
    assert named("w5 w9") == told("w5 w9", src_lang="en", tgt_lang="de") != told("w5 w9", src_lang="de", tgt_lang="en")
    with pytest.raises(UsageError, match="src_lang is 'fr', this model has de, en"):
        pipeline("translation_fr_to_de", model=several)("w5")


@pytest.mark.parametrize("options", [{"top_k": 0}, {"topk": -1}, {"top_k": 1.5}, {"max_answer_len": 0}, {"max_answer_len": "x"}])
def test_numbers_of_answers_are_checked(options: dict[str, object], tmp_path: Path) -> None:
    reads = pipeline("question-answering", model=tiny_encoder.write(tmp_path / "qa", "question-answering", tiny_encoder.table(2)))
    with pytest.raises(UsageError, match="expected a whole number from 1"):
        reads(question="w5", context="w6 w7", **options)


def test_numbers_of_labels_are_checked(labels: Path) -> None:
    for bad in (-1, "x", 1.5):
        with pytest.raises(UsageError, match="top_k is .*, expected a whole number from 0"):
            pipeline(model=labels)("a b", top_k=bad)
    assert pipeline(model=labels)("a b", top_k=0) == []


def test_one_label_is_left_out_by_its_name(tmp_path: Path) -> None:
    bundle = tiny_encoder.write(tmp_path / "tokens", "token-classification", tiny_encoder.table(3), labels=["O", "B-X", "I-X"])
    every = pipeline(model=bundle)("a b c", ignore_labels=[])
    label = every[0]["entity"]
    assert pipeline(model=bundle)("a b c", ignore_labels=label) == [one for one in every if one["entity"] != label]
    with pytest.raises(UsageError, match="ignore_labels holds 3"):
        pipeline(model=bundle)("a b c", ignore_labels=[3])


def test_it_needs_neither_torch_nor_transformers(labels: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from onnxport.integrations.transformers import pipeline\n"
        f"print(len(pipeline(model={str(labels)!r})('a b', top_k=None)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout == "3\n", run.stderr
