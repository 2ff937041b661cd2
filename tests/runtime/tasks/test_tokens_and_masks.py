"""Entities and fills of exported encoders against transformers' own pipelines, and what both refuse."""

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import pipeline

from onnxport.build.stages import build
from onnxport.errors import TextError, UsageError
from onnxport.runtime import load
from onnxport.runtime.model import Model
from support import task_folders as folders
from support import tiny_encoder
from support.commands import invoke
from support.once import made_once

FAMILIES = ("bert", "roberta", "distilbert")
STRATEGIES = ("none", "simple", "first", "average", "max")
TEXTS = (
    "Ada came to London.",
    "The cat sat on a mat, and the dog lay by the door",
    "x",
    "Mr. Smith's house in New York; it didn't move. 42 % of it",
    "naïve Ωμέγα, ada?",
)
Exported = Callable[[str, str], Path]  # family, head
LONG = "Ada came to London, and the dog lay by the door of a house. " * 8


def made(family: str, head: str, folder: Path) -> None:
    """The folder `source` and its bundle."""
    source = folders.write(folder / "source", family, head, folders.TAGS if head == "tokens" else ())
    build(str(source), folder / "bundle", precision=("fp32",))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return lambda family, head: made_once(tmp_path_factory, f"{family}-{head}", partial(made, family, head))


def opened(exported: Exported, family: str, head: str) -> tuple[Model, Any]:
    """The bundle, and transformers' pipeline of its source."""
    task = {"tokens": "token-classification", "masked": "fill-mask"}[head]
    return load(exported(family, head) / "bundle", threads=1), pipeline(task, model=str(exported(family, head) / "source"), device="cpu")


def agree(found: Any, wanted: Any) -> None:
    """One text's entities and those of the pipeline."""
    spans = [(one["entity_group"] if "entity_group" in one else one["entity"], one["start"], one["end"]) for one in wanted]
    assert [(one.label, one.start, one.end) for one in found] == spans
    assert [one.score for one in found] == pytest.approx([float(one["score"]) for one in wanted], abs=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_entities_are_those_of_the_pipeline(exported: Exported, family: str) -> None:
    model, theirs = opened(exported, family, "tokens")
    with model:
        assert model.task == "token-classification"
        for strategy in STRATEGIES:
            for text, found in zip(TEXTS, model.entities(TEXTS, aggregation=strategy), strict=True):
                agree(found, theirs(text, aggregation_strategy=strategy))
                assert all(one.text == text[one.start : one.end] for one in found)
        agree(model.entities(TEXTS[1], aggregation="simple", ignore_labels=["PER"])[0],
              theirs(TEXTS[1], aggregation_strategy="simple", ignore_labels=["PER"]))  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strategy", STRATEGIES[1:])
def test_entities_of_long_texts_are_those_of_the_pipeline(exported: Exported, family: str, strategy: str) -> None:
    model, theirs = opened(exported, family, "tokens")
    with model:
        found, short = model.entities([LONG, "Ada came"], aggregation=strategy, stride=11)
        agree(found, theirs(LONG, aggregation_strategy=strategy, stride=11))
        agree(short, theirs("Ada came", aggregation_strategy=strategy))


@torch.no_grad()
def test_tags_are_those_of_each_words_first_token(exported: Exported) -> None:
    words = [["Ada", "came", "to", "U.S.", "London", "."], ["x"], ["Ada", "\u200b", "came"]]
    model, theirs = opened(exported, "bert", "tokens")
    with model:
        found = model.tags(words)
        read = theirs.tokenizer(words[0], is_split_into_words=True, return_tensors="pt")
        best = theirs.model(**read).logits[0].argmax(-1).tolist()
        places = read.word_ids()
        wanted = [folders.TAGS[best[places.index(i)]] for i in range(len(words[0]))]
        assert found[0] == wanted
        assert [len(one) for one in found] == [6, 1, 3]
        assert found[2][1] == "O"  # nothing of it reaches the model
        long = [random.Random(3).choice(["ada", "came", "to", "london", "."]) for _ in range(60)]
        assert len(model.tags([long], stride=10)[0]) == 60
        with pytest.raises(TextError, match="no words"):
            model.tags([[]])


def test_labels_that_are_left_out_are_texts(tmp_path: Path) -> None:
    bundle = tiny_encoder.write(tmp_path / "tokens", "token-classification", tiny_encoder.table(3), labels=["O", "B-X", "I-X"])
    with load(bundle, threads=1) as model:
        found = model.entities("a b c", aggregation="none", ignore_labels=[])[0]
        label = found[0].label
        left = [one for one in found if one.label != label]
        assert model.entities("a b c", aggregation="none", ignore_labels=label)[0] == left
        assert model.entities("a b c", aggregation="none", ignore_labels=(label,))[0] == left
        for bad, part in ([[]], "holds \\[\\]"), ([None], "holds None"), (7, "is int"), ({"O": 1}, "is dict"):
            with pytest.raises(UsageError, match=f"ignore_labels {part}, expected a label or a list of labels"):
                model.entities("a b c", ignore_labels=bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
def test_fills_are_those_of_the_pipeline(exported: Exported, family: str) -> None:
    model, theirs = opened(exported, family, "masked")
    mask = theirs.tokenizer.mask_token
    with model:
        assert model.task == "fill-mask"
        for text in (f"Ada came to {mask}.", f"{mask} dog", f"the {mask} of"):
            (found,) = model.fill(text, top_k=7)
            for one, wanted in zip(found, theirs(text, top_k=7), strict=True):
                assert (one.id, one.token, one.text, one.mask) == (wanted["token"], wanted["token_str"], wanted["sequence"], 0)
                assert one.score == pytest.approx(wanted["score"], abs=1e-5)
        text = f"Ada {mask} to {mask}"
        (found,) = model.fill([text], top_k=3)
        wanted = theirs(text, top_k=3)
        assert [one.mask for one in found] == [0, 0, 0, 1, 1, 1]
        for one, other in zip(found, [fill for fills in wanted for fill in fills], strict=True):
            assert (one.id, one.text) == (other["token"], other["sequence"])
        (found,) = model.fill(f"the {mask}", targets=["a", "d", "t"], top_k=2)
        for one, other in zip(found, theirs(f"the {mask}", targets=["a", "d", "t"], top_k=2), strict=True):
            assert (one.id, one.score) == (other["token"], pytest.approx(other["score"], abs=1e-6))


def test_a_mask_of_a_long_text_is_read_where_it_has_most_around_it(exported: Exported) -> None:
    model, theirs = opened(exported, "bert", "masked")
    before, after = "the cat sat on a mat " * 6, " and the dog lay by the door" * 6
    with model:
        (found,) = model.fill(f"{before}[MASK]{after}", top_k=3, stride=20)
        assert all(len(one.text) > 200 for one in found)
        assert sum(one.score for one in found) <= 1
        two = model.fill(f"[MASK] {before} {after} [MASK]", top_k=1)[0]
        assert [one.mask for one in two] == [0, 1]


def test_what_is_no_text_for_them_is_refused(exported: Exported) -> None:
    with load(exported("bert", "masked") / "bundle", threads=1) as model:
        with pytest.raises(TextError, match=r"text 1: 'no mask here' has no \[MASK\]"):
            model.fill(["a [MASK]", "no mask here"])
        with pytest.raises(UsageError, match="top_k is 0"):
            model.fill("a [MASK]", top_k=0)
        with pytest.raises(UsageError, match="task is fill-mask, expected token-classification"):
            model.entities("a")
    with load(exported("bert", "tokens") / "bundle", threads=1) as model:
        with pytest.raises(UsageError, match="aggregation is 'middle', expected one of none, simple, first, average, max"):
            model.entities("a", aggregation="middle")
        with pytest.raises(TypeError, match="'aggregation_strategy'; use aggregation"):
            model.entities("a", aggregation_strategy="first")  # type: ignore[call-arg]
        assert model.entities([]) == []


def test_the_command_answers_them(exported: Exported) -> None:
    with load(exported("bert", "tokens") / "bundle", threads=1) as model:
        wanted = model.entities(TEXTS[:2], aggregation="first")
    done = invoke("run", exported("bert", "tokens") / "bundle", *TEXTS[:2], "", "--aggregation", "first", "--json")
    results = json.loads(done.stdout)["results"]
    assert [len(one["entities"]) for one in results] == [len(wanted[0]), len(wanted[1]), 0]
    first = wanted[0][0]
    assert results[0]["entities"][0] == {
        "label": first.label, "score": first.score, "start": first.start, "end": first.end, "text": first.text,
    }  # fmt: skip
    plain = invoke("run", exported("bert", "tokens") / "bundle", TEXTS[0], "--aggregation", "first").stdout
    assert plain.startswith(f"{first.label}\t{first.score:.4f}\t{first.text}")
    with load(exported("bert", "masked") / "bundle", threads=1) as model:
        (fills,) = model.fill("ada [MASK]", top_k=2)
    done = invoke("run", exported("bert", "masked") / "bundle", "ada [MASK]", "--top-k", "2", "--json")
    (found,) = json.loads(done.stdout)["results"]
    assert [(one["token"], one["id"], one["score"], one["text"]) for one in found["fills"]] == [
        (one.token, one.id, one.score, one.text) for one in fills
    ]
    assert invoke("run", exported("bert", "masked") / "bundle", "ada", "--json").exit_code == 4
    assert invoke("run", exported("bert", "masked") / "bundle", "ada [MASK]", "--aggregation", "first").exit_code == 2


def test_a_masked_model_embeds_where_it_is_asked_to(exported: Exported, tmp_path: Path) -> None:
    source = exported("bert", "masked") / "source"
    with load(build(str(source), tmp_path / "hidden", task="embedding", precision=("fp32",)).path, threads=1) as model:
        theirs = pipeline("feature-extraction", model=str(source), device="cpu")
        wanted = torch.tensor(theirs("Ada came")).mean(1).numpy()
        assert model.encode("Ada came") == pytest.approx(wanted, abs=1e-5)
