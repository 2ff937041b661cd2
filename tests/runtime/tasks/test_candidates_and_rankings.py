"""Candidates, choices, rankings and classifiers of decoders against transformers' own pipelines and classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from onnxport.build.stages import build
from onnxport.errors import UsageError
from onnxport.runtime import load
from support import encoder_folders as encoders
from support import task_folders as folders
from support.commands import invoke
from support.once import made_once

NLI = ("contradiction", "neutral", "entailment")
LABELS = ["sport", "politics", "a cat"]
TEXTS = ["the cat sat on a mat", "x", "ada came to london"]
SIZES = {"vocab_size": 61, "hidden_size": 40, "intermediate_size": 44, "num_hidden_layers": 2, "num_attention_heads": 2}
NAMES = {"id2label": dict(enumerate(NLI)), "label2id": {name: i for i, name in enumerate(NLI)}}
BART = {"vocab_size": 61, "d_model": 40, "max_position_embeddings": 48, "decoder_start_token_id": 2}
BART |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
BART |= {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 44))}
LLAMA = {**SIZES, "num_key_value_heads": 1, "max_position_embeddings": 64}
CLASSES: dict[str, Callable[[], Any]] = {
    "bart": lambda: transformers.BartForSequenceClassification(transformers.BartConfig(**BART, **NAMES)),
    "llama": lambda: transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**LLAMA, pad_token_id=1, num_labels=1)),
    "llama-unpadded": lambda: transformers.LlamaForSequenceClassification(
        transformers.LlamaConfig(**LLAMA, pad_token_id=None, num_labels=3)
    ),
    "electra-choices": lambda: transformers.ElectraForMultipleChoice(
        transformers.ElectraConfig(**SIZES, embedding_size=20, max_position_embeddings=48)
    ),
}


def made(name: str, folder: Path) -> None:
    """The folder `source` and its bundle."""
    source = folder / "source"
    if name == "bert":
        folders.write(source, "bert", "single", NLI)
    elif name == "choices":
        folders.write(source, "roberta", "choices")
    else:
        model = CLASSES[name]().eval()
        encoders.randomize(model)
        model.save_pretrained(source)
        electra = name.startswith("electra")
        family, names = ("bert", folders.BERT) if electra else ("roberta", folders.ROBERTA)
        folders.save_tokenizer(source, folders.letters(family), names, types=electra)
    build(str(source), folder / "bundle", precision=("fp32",))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return lambda name: made_once(tmp_path_factory, f"candidates-{name}", partial(made, name))


@pytest.mark.parametrize("name", ["bert", "bart"])
@pytest.mark.parametrize("several", [False, True])
def test_candidates_are_judged_as_by_the_pipeline(exported: Callable[[str], Path], name: str, several: bool) -> None:
    theirs = transformers.pipeline("zero-shot-classification", model=str(exported(name) / "source"), device="cpu")
    template = "it is {}."
    with load(exported(name) / "bundle", threads=1) as model:
        for labels in (LABELS, LABELS[:1]):
            for text, found in zip(TEXTS, model.classify(TEXTS, candidates=labels, multi_label=several), strict=True):
                wanted = theirs(text, candidate_labels=labels, multi_label=several)
                assert list(found.scores) == wanted["labels"] and found.label == wanted["labels"][0]
                assert list(found.scores.values()) == pytest.approx(wanted["scores"], abs=1e-5)
        (found,) = model.classify(TEXTS[0], candidates="sport, politics", hypothesis_template=template, multi_label=several)
        wanted = theirs(TEXTS[0], candidate_labels="sport, politics", hypothesis_template=template, multi_label=several)
        assert found.scores == pytest.approx(dict(zip(wanted["labels"], wanted["scores"], strict=True)), abs=1e-5)
        long = model.classify("the cat sat on a mat " * 20, candidates=LABELS, multi_label=several)[0]
        assert set(long.scores) == set(LABELS)


@pytest.mark.parametrize("name", ["bart", "llama", "llama-unpadded"])
def test_classes_that_read_one_token_answer_as_the_pipeline(exported: Callable[[str], Path], name: str) -> None:
    theirs = transformers.pipeline("text-classification", model=str(exported(name) / "source"), device="cpu", top_k=None)
    with load(exported(name) / "bundle", threads=1) as model:
        for text, found in zip(TEXTS, model.classify(TEXTS), strict=True):  # rows of one batch, of different lengths
            wanted = {one["label"]: one["score"] for one in theirs([text])[0]}
            assert found.scores == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("name", ["choices", "electra-choices"])
@torch.no_grad()
def test_choices_are_those_of_the_class(exported: Callable[[str], Path], name: str) -> None:
    source = exported(name) / "source"
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    theirs = transformers.AutoModelForMultipleChoice.from_pretrained(source).eval()
    choices = ["a mat", "the door of it", "x"]
    with load(exported(name) / "bundle", threads=1) as model:
        assert model.task == "multiple-choice"
        for text, found in zip(TEXTS, model.classify(TEXTS, candidates=choices), strict=True):
            read = tokenizer([text] * 3, choices, return_tensors="pt", padding=True)
            shares = theirs(**{key: value[None] for key, value in read.items()}).logits[0].softmax(0).tolist()
            assert found.scores == pytest.approx(dict(zip(choices, shares, strict=True)), abs=1e-5)
        with pytest.raises(UsageError, match="task is multiple-choice, expected classification"):
            model.classify("a")


@torch.no_grad()
def test_documents_are_ranked_by_the_score_of_the_pair(exported: Callable[[str], Path]) -> None:
    source = exported("llama") / "source"
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(source).eval()
    documents = ["a mat", "the door", "ada came", "a mat"]
    scores = [theirs(**tokenizer("who came", text, return_tensors="pt")).logits.sigmoid().item() for text in documents]
    order = sorted(range(4), key=lambda i: -round(scores[i], 6))
    with load(exported("llama") / "bundle", threads=1) as model:
        found = model.rerank("who came", documents)
        assert [one.index for one in found] == order and order.index(0) < order.index(3)
        assert [one.score for one in found] == pytest.approx([scores[i] for i in order], abs=1e-5)
        assert model.rerank("who came", documents, top_k=2) == found[:2]
        assert model.rerank("who came", []) == []
        for wrong, said in (({"top_k": 0}, "top_k is 0"), ({"documents": "a"}, "documents is a text")):
            with pytest.raises(UsageError, match=said):
                model.rerank(**({"query": "a", "documents": ["b"]} | wrong))
    with load(exported("bert") / "bundle", threads=1) as model, pytest.raises(UsageError, match="gives 3 scores a pair, expected one"):
        model.rerank("a", ["b"])


def test_the_command_takes_candidates_and_documents(exported: Callable[[str], Path]) -> None:
    with load(exported("bert") / "bundle", threads=1) as model:
        wanted = model.classify(TEXTS[0], candidates=LABELS)[0]
        plain = model.classify(TEXTS[0])[0]
    lines = [json.dumps({"text": TEXTS[0], "candidates": LABELS}), TEXTS[0]]
    done = invoke("run", exported("bert") / "bundle", *lines, "--json")
    first, second = json.loads(done.stdout)["results"]
    assert first == {"label": wanted.label, "scores": wanted.scores} and second == {"label": plain.label, "scores": plain.scores}
    done = invoke("run", exported("bert") / "bundle", TEXTS[0], "--candidates", ",".join(LABELS))
    assert done.stdout == f"{wanted.label}\t{wanted.scores[wanted.label]:.4f}\n"
    done = invoke("run", exported("bert") / "bundle", TEXTS[0], "--candidates", ",".join(LABELS), "--multi-label", "--json")
    assert set(json.loads(done.stdout)["results"][0]) == {"label", "labels", "scores"}
    query = json.dumps({"query": "who came", "documents": ["a mat", "ada"]})
    with load(exported("llama") / "bundle", threads=1) as model:
        ranked = model.rerank("who came", ["a mat", "ada"])
    done = invoke("run", exported("llama") / "bundle", query, "--json")
    assert json.loads(done.stdout)["results"] == [{"ranking": [{"index": one.index, "score": one.score} for one in ranked]}]
    done = invoke("run", exported("llama") / "bundle", query, "--top-k", "1")
    assert done.stdout == f"{ranked[0].index}\t{ranked[0].score:.4f}\n"
    for wrong in (
        {"query": "a", "documents": []},
        {"query": "a", "documents": [1]},
        {"documents": ["a"]},
        {"text": "a", "candidates": "b"},
    ):
        assert invoke("run", exported("llama") / "bundle", json.dumps(wrong)).exit_code == 4
    assert invoke("run", exported("llama") / "bundle", TEXTS[0], "--candidates", "a,b").exit_code == 2


def test_candidates_that_cannot_be_are_refused(exported: Callable[[str], Path]) -> None:
    with load(exported("bert") / "bundle", threads=1) as model:
        for options, said in (
            ({"candidates": []}, "expected one or more"),
            ({"candidates": ["a", "a"]}, "each once"),
            ({"candidates": ["a"], "hypothesis_template": "about"}, "hypothesis_template is 'about'"),
            ({"multi_label": True}, "go with candidates"),
        ):
            with pytest.raises(UsageError, match=said):
                model.classify("x", **options)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="'candidate_labels'; use candidates"):
            model.classify("x", candidate_labels=["a"])  # type: ignore[call-arg]
    with (
        load(exported("llama-unpadded") / "bundle", threads=1) as model,
        pytest.raises(UsageError, match="candidates need a model of entailment"),
    ):
        model.classify("x", candidates=["a"])
