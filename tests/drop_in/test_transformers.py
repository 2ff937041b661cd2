"""Pipelines beside those of transformers, on tiny folders: `make test-drop-in`.

Four tasks left transformers with version 5; their originals are those of version 4, asked in a process of their own.
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.pipelines.text_generation import ReturnType

from onnxport.errors import TextError, UsageError
from onnxport.integrations import transformers as ours
from support import causal_folders, hf_folders
from support import task_folders as folders
from support.drop_in_folders import LONG, bundled
from support.paths import ROOT

OLDER = ROOT / "build" / "drop-in" / "older"
TEXTS = ["the cat sat on a mat", "Ada came to London. It didn't move", "x", "a dog, a door"]
NEW_TEXT = ReturnType.NEW_TEXT
LABELS = ("contradiction", "neutral", "entailment")
CHAT = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
TALK = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "the cat sat"}]


def same(found: Any, expected: Any) -> None:
    """The same forms and texts, and numbers that are close."""
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for name, value in expected.items():
            same(found[name], value)
    elif isinstance(expected, list):
        assert isinstance(found, list) and len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    elif isinstance(expected, float | np.floating):
        assert found == pytest.approx(float(expected), abs=2e-5, rel=1e-3)
    else:
        assert type(found) is type(expected) and found == expected


class Pair:
    """A pipeline of theirs and of ours over one folder."""

    def __init__(self, task: str, folder: Path, **options: Any) -> None:
        self.theirs: Any = transformers.pipeline(task, model=str(folder), device="cpu", **options)
        self.ours = ours.pipeline(task, model=bundle(folder), **options)

    def check(self, *args: Any, **options: Any) -> None:
        same(self.ours(*args, **options), self.theirs(*args, **options))


def bundle(folder: Path) -> Path:
    made = folder.with_name(f"{folder.name}-bundle")
    return made if made.exists() else bundled(folder)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipelines")


@pytest.fixture(scope="module", params=["bert", "roberta"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def folder_of(room: Path, family: str, head: str, **options: Any) -> Path:
    folder = room / "-".join([family, head, *options])
    return folder if folder.exists() else folders.write(folder, family, head, **options)


@pytest.mark.parametrize("head", ["single", "multi", "regression", "score"])
def test_text_classification(room: Path, head: str) -> None:
    pair = Pair("text-classification", folder_of(room, "bert", head))
    for options in ({}, {"top_k": None}, {"top_k": 1}, {"top_k": 2}, {"function_to_apply": "none"}, {"function_to_apply": "sigmoid"}):
        pair.check(TEXTS[0], **options)
        pair.check(TEXTS, **options)
    pair.check({"text": "the cat", "text_pair": "a mat"})
    pair.check([{"text": "the cat", "text_pair": "a mat"}, {"text": "x"}], top_k=2)
    pair.check([[["the cat", "a mat"]]])
    pair.check([LONG * 3, ""], truncation=True, max_length=20, batch_size=2)
    given = Pair("sentiment-analysis", folder_of(room, "bert", head), top_k=2)
    given.check(TEXTS[0])
    given.check(TEXTS)


def test_zero_shot_classification(room: Path) -> None:
    pair = Pair("zero-shot-classification", folder_of(room, "bert", "single", labels=LABELS))
    for options in ({}, {"multi_label": True}, {"hypothesis_template": "it is {}"}):
        pair.check(TEXTS[0], candidate_labels=["sport", "a cat"], **options)
        pair.check(TEXTS, candidate_labels="sport, a cat, x", **options)
    pair.check(TEXTS[0], ["sport"])
    pair.check(LONG * 3, ["sport", "a long one"])  # cut, but never the label


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
def test_token_classification(room: Path, family: str, strategy: str) -> None:
    pair = Pair("ner", folder_of(room, family, "tokens", labels=folders.TAGS), aggregation_strategy=strategy)
    pair.check(TEXTS[0])
    pair.check(TEXTS, ignore_labels=[])
    pair.check([LONG * 3])
    if strategy != "none":
        pair.check(LONG * 3, stride=6)


def test_fill_mask(room: Path, family: str) -> None:
    mask = "[MASK]" if family == "bert" else "<mask>"
    pair = Pair("fill-mask", folder_of(room, family, "masked"))
    for options in ({}, {"top_k": 2}, {"targets": ["a", "c"]}, {"targets": "x", "top_k": 3}):
        pair.check(f"the {mask} sat", **options)
        pair.check([f"the {mask} sat", f"a {mask} door"], **options)
        pair.check(f"the {mask} sat on a {mask}", **options)
    pair.check([f"the {mask} sat"])
    pair.check(f"the {mask} sat " + LONG * 3, tokenizer_kwargs={"truncation": True})


def test_feature_extraction(room: Path) -> None:
    pair = Pair("feature-extraction", folder_of(room, "bert", "bare"))
    pair.check(TEXTS[0])
    pair.check([*TEXTS, ""])
    pair.check([LONG * 3], truncation=True)
    pair.check(LONG, tokenize_kwargs={"truncation": True, "max_length": 9})
    torch.testing.assert_close(pair.ours("x", return_tensors=True), pair.theirs("x", return_tensors=True), atol=1e-4, rtol=1e-3)
    with pytest.raises(TextError, match="truncation=True"):
        pair.ours(LONG * 3)


@pytest.fixture(scope="module")
def causal(room: Path) -> Path:
    folder = room / "causal"
    causal_folders.write(
        folder, "llama", vocab_size=folders.BYTES, max_position_embeddings=256, bos_token_id=0, eos_token_id=2, pad_token_id=1
    )
    folders.save_tokenizer(folder, folders.byte_level(), folders.ROBERTA)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": CHAT}))
    return folder


def test_text_generation(causal: Path) -> None:
    pair = Pair("text-generation", causal, do_sample=False, max_new_tokens=8)
    for options in (
        {},
        {"return_full_text": False},
        {"return_type": NEW_TEXT},
        {"prefix": "a dog "},
        {"max_length": 40, "max_new_tokens": None},
    ):
        pair.check(TEXTS[0], **options)
        pair.check(TEXTS, **options)
    pair.check(TEXTS[0], num_beams=3, num_return_sequences=2)
    pair.check(TEXTS[0], repetition_penalty=1.3, no_repeat_ngram_size=2, min_new_tokens=8)
    pair.check(TEXTS[0], add_special_tokens=False)
    answer = pair.theirs(TEXTS[0], return_full_text=False)[0]["generated_text"]
    ends = next(answer[i : i + 2] for i in range(1, len(answer)) if answer[i : i + 2].isalnum() and answer[i : i + 2].isascii())
    pair.check(TEXTS[0], stop_strings=[ends], tokenizer=pair.theirs.tokenizer)


def test_chats(causal: Path) -> None:
    pair = Pair("text-generation", causal, do_sample=False, max_new_tokens=6)
    going_on = [*TALK, {"role": "assistant", "content": " It is "}]
    tools = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}}]
    for talk in (TALK, going_on):
        pair.check(talk)
        pair.check([talk, TALK])
        pair.check(talk, return_full_text=False)
    pair.check(going_on, continue_final_message=False)
    pair.check(TALK, tools=tools)


def test_sampling(causal: Path) -> None:
    made = ours.pipeline("text-generation", model=bundle(causal), max_new_tokens=6, seed=3)
    found = made(TEXTS[0], num_return_sequences=3)
    assert len({one["generated_text"] for one in found}) > 1 and found == made(TEXTS[0], num_return_sequences=3)
    assert made(TEXTS[0], do_sample=True, top_k=1) == made(TEXTS[0], do_sample=False)


def test_generators_and_datasets(room: Path) -> None:
    pair = Pair("text-classification", folder_of(room, "bert", "single"))

    class Dataset(torch.utils.data.Dataset[str]):
        def __len__(self) -> int:
            return len(TEXTS)

        def __getitem__(self, i: int) -> str:
            return TEXTS[i]

    expected = pair.theirs(TEXTS)
    for inputs in ((text for text in TEXTS), Dataset()):
        found = pair.ours(inputs, batch_size=3)
        assert not isinstance(found, list)
        same(list(found), expected)
    endless = (TEXTS[0] for _ in iter(int, 1))
    same(next(iter(pair.ours(endless))), expected[0])


def older(task: str, folder: Path, calls: list[tuple[list[Any], dict[str, Any]]], **options: Any) -> Iterator[Any]:
    """What a pipeline of transformers 4 answers to these calls."""
    asked = {"task": task, "folder": str(folder), "options": options, "calls": calls}
    script = Path(__file__).with_name("older_pipelines.py")
    run = subprocess.run(
        [sys.executable, str(script)], input=json.dumps(asked), capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(OLDER)},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    return iter(json.loads(run.stdout.splitlines()[-1]))


def check_older(task: str, folder: Path, calls: list[tuple[list[Any], dict[str, Any]]], **options: Any) -> None:
    made = ours.pipeline(task, model=bundle(folder), **options)
    for (args, keywords), expected in zip(calls, older(task, folder, calls, **options), strict=True):
        same(made(*args, **keywords), expected)


def test_question_answering(room: Path, family: str) -> None:
    question, context = "who sat?", "The cat sat on a mat. Ada came to London, and the dog lay by the door"
    pairs = {"question": [question, "x"], "context": [context, LONG * 3]}
    calls: list[tuple[list[Any], dict[str, Any]]] = [
        ([], {"question": question, "context": context}),
        ([], {"question": question, "context": context, "top_k": 3}),
        ([], {"question": question, "context": LONG * 4, "max_seq_len": 30, "doc_stride": 5, "max_answer_len": 4}),
        ([], {"question": question, "context": context, "handle_impossible_answer": True, "top_k": 4}),
        ([], pairs),
        ([], {"question": [question, "x"], "context": context}),
        ([{"question": question, "context": context}], {}),
        ([[{"question": question, "context": context}, {"question": "x", "context": LONG}]], {}),
    ]
    check_older("question-answering", folder_of(room, family, "questions"), calls)


@pytest.mark.parametrize("task", ["translation", "summarization", "text2text-generation"])
def test_encoder_decoders(room: Path, task: str) -> None:
    folder = room / "bart"
    if not folder.exists():
        hf_folders.bart(folder, vocab_size=folders.BYTES, max_position_embeddings=folders.LENGTH, generation={"forced_eos_token_id": None})
        folders.save_tokenizer(folder, folders.byte_level(), folders.ROBERTA)
    calls: list[tuple[list[Any], dict[str, Any]]] = [
        (["the cat"], {}),
        ([["the cat", "a dog"]], {}),
        (["the cat"], {"num_beams": 1, "max_new_tokens": 9}),
        (["the cat"], {"num_return_sequences": 3, "num_beams": 3, "max_length": 12}),
        ([["the cat", "x"]], {"num_return_sequences": 2, "min_length": 7, "max_length": 12}),
        ([["the cat", LONG * 3]], {"truncation": True, "do_sample": False, "max_length": 12}),
    ]
    check_older(task, folder, calls, max_new_tokens=10)


def test_parts_of_a_task_s_name_are_languages() -> None:
    with pytest.raises(UsageError, match="task is 'translation_en'"):
        ours.pipeline("translation_en", model="x")


def test_what_is_not_followed_is_named(room: Path, causal: Path) -> None:
    classify = folder_of(room, "bert", "single")
    for options, part in (
        ({"tokenizer": "x"}, "tokenizer is given"),
        ({"dtype": "float16"}, "precision"),
        ({"device": "mps"}, "device is 'mps'"),
        ({"return_all_scores": True}, "top_k=None"),
        ({"sampel": 1}, "sampel is not followed"),
        ({"task": "ner"}, "this bundle's is classification"),
        ({"task": "image-to-text"}, "expected one of"),
    ):
        with pytest.raises(UsageError, match=part):
            ours.pipeline(**{"task": "text-classification", "model": bundle(classify), **options})
    made = ours.pipeline(model=bundle(classify))
    assert made.task == "text-classification" and made.device == "cpu"
    for text, options, part in (("x", {"function_to_apply": "tanh"}, "function_to_apply"), ("x", {"truncation": "all"}, "truncation")):
        with pytest.raises(UsageError, match=part):
            made(text, **options)
    with pytest.raises(TextError, match="text_pair"):
        made([["a", "b"]])
    generate = ours.pipeline("text-generation", model=bundle(causal))
    for options, part in (
        ({"num_beams": 2}, "do_sample=False"),
        ({"return_tensors": True}, "model.generate"),
        ({"generation_config": {}}, "members"),
        ({"num_return_sequences": 2, "do_sample": False}, "num_return_sequences is 2"),
        ({"max_length": 3}, "no new token"),
    ):
        with pytest.raises(UsageError, match=part):
            generate("the cat sat on a mat", **options)


def test_arguments_are_theirs() -> None:
    theirs = list(inspect.signature(transformers.pipeline).parameters.values())[:-1]
    own = list(inspect.signature(ours.pipeline).parameters.values())
    assert [(one.name, one.default) for one in own[: len(theirs)]] == [(one.name, one.default) for one in theirs]


def test_a_model_that_is_loaded(causal: Path) -> None:
    from onnxport.runtime import load

    with load(bundle(causal)) as model:
        found = ours.pipeline("text-generation", model=model, do_sample=False)("x", max_new_tokens=2, return_full_text=False)
        assert found[0]["generated_text"] == model.generate("x", max_new_tokens=2)[0].text
        with pytest.raises(UsageError, match="onnxport.load"):
            ours.pipeline("text-generation", model=model, precision="fp32")
