"""Entities, masks, candidates, choices and rankings: tiny exported bundles compared on data of their own, and with the original."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxport.build.stages import build
from onnxport.compare import compare
from onnxport.compare.data import read_data
from onnxport.compare.measure import measurement
from onnxport.compare.scores import chunks, of_entities, of_rankings, of_tags
from onnxport.compare.workload import workload
from onnxport.errors import DataError
from onnxport.export.reference.side import PyTorchSide
from onnxport.runtime import load
from onnxport.runtime.bundle.reader import Bundle
from support import task_folders as folders
from support.once import made_once

TEXTS = ["ada came to london", "the cat sat on a mat", "x", "a dog, by the door of mr smith"]
NLI = ("contradiction", "neutral", "entailment")
Exported = Callable[[str], Path]  # head
HEADS = {"tokens": folders.TAGS, "masked": (), "single": NLI, "score": ("relevance",), "choices": ()}


def made(head: str, folder: Path) -> None:
    """The folder `source` and its bundle."""
    labels = HEADS[head]
    config = {"num_labels": len(labels)} if labels else {}
    source = folders.write(folder / "source", "bert", head, labels, num_hidden_layers=1, **config)
    build(str(source), folder / "bundle", precision=("fp32", "fp16"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return lambda head: made_once(tmp_path_factory, f"compared-{head}", partial(made, head))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("LAUNCHES", 1), ("_ROUNDS", 3), ("_LATENCY_ROUNDS", 3), ("_BUDGET_S", 0.1)):
        monkeypatch.setattr(measurement, name, value)
    monkeypatch.setattr(measurement, "_DECIDING", {"rounds": 3, "least": 3, "fewest": 3, "budget_s": 0.1})


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def measured(exported: Exported, head: str, data: Path | None, **options: Any) -> dict[str, Any]:
    report = compare(exported(head) / "bundle", data, batches=(2,), threads=1, **options)
    return report.as_dict()


def test_entities(exported: Exported, tmp_path: Path) -> None:
    with load(exported("tokens") / "bundle", threads=1) as model:
        found = model.entities(TEXTS, aggregation="first")
    rows = [
        {"text": text, "entities": [{"label": one.label, "start": one.start, "end": one.end} for one in entities]}
        for text, entities in zip(TEXTS, found, strict=True)
    ]
    rows[3]["entities"] = [{"label": "ORG", "start": 0, "end": 5}]  # one that nobody finds
    report = measured(exported, "tokens", written(tmp_path / "a.jsonl", rows), source=str(exported("tokens") / "source"))
    right = sum(len(one) for one in found[:3])
    every = right + len(found[3])
    values = report["variants"]["fp32"]
    assert values["precision"] == pytest.approx(right / every) and values["recall"] == pytest.approx(right / (right + 1))
    assert values["f1"] == pytest.approx(2 * right / (every + right + 1)) and values["f1_drop"] == 0
    assert report["reference"] == "pytorch" and values["agreement"] == 1
    assert "f1_drop_ci" in values and "F1" in report["verdict"]["fp16"]


def test_tags_of_words(exported: Exported, tmp_path: Path) -> None:
    sentences = [text.split() for text in TEXTS]
    with load(exported("tokens") / "bundle", threads=1) as model:
        tags = model.tags(sentences)
    data = tmp_path / "a.conll"
    lines = ["-DOCSTART- -X- O"]
    for words, found in zip(sentences, tags, strict=True):
        lines += ["", *(f"{word} NN {tag}" for word, tag in zip(words, found, strict=True))]
    data.write_text("\n".join(lines))
    assert read_data(data).inputs == sentences and read_data(data).lines == [3, 8, 15, 17]
    values = measured(exported, "tokens", data)["variants"]["fp32"]
    assert values["f1"] == values["precision"] == values["recall"] == 1
    rows = [{"tokens": words, "ner_tags": ["O"] * len(words)} for words in sentences]
    values = measured(exported, "tokens", written(tmp_path / "b.jsonl", rows), precisions=["fp32"])["variants"]["fp32"]
    assert values["recall"] == values["f1"] == 0
    side = PyTorchSide(str(exported("tokens") / "source"), threads=1)
    side.load()
    assert [one["tags"] for one in side.tags(sentences)] == tags


def test_masks(exported: Exported, tmp_path: Path) -> None:
    texts = ["ada came to [MASK]", "the [MASK] sat", "a [MASK] by the door"]
    with load(exported("masked") / "bundle", threads=1) as model:
        best = [fills[0].token for fills in model.fill(texts)]
    rows = [{"text": text, "label": word.upper()} for text, word in zip(texts, [*best[:2], "nothing"], strict=True)]
    data = written(tmp_path / "a.jsonl", rows)
    report = measured(exported, "masked", data, source=str(exported("masked") / "source"))
    assert report["variants"]["fp32"]["accuracy"] == pytest.approx(2 / 3) and report["variants"]["fp32"]["agreement"] == 1
    plain = tmp_path / "a.txt"
    plain.write_text("the cat sat on a mat\nada came to london\n42\n")
    work = workload(Bundle.open(exported("masked") / "bundle"), plain, None)
    assert work.inputs == ["the cat [MASK] on a mat", "ada came [MASK] london"] and work.references == ["sat", "to"]
    assert measured(exported, "masked", None)["data"]["built_in"]
    with pytest.raises(DataError, match=r"line 1: the text has no \[MASK\]"):
        workload(Bundle.open(exported("masked") / "bundle"), written(tmp_path / "b.jsonl", [{"text": "a", "label": "b"}]), None)


def test_candidates_and_choices(exported: Exported, tmp_path: Path) -> None:
    labels = ["sport", "politics", "art"]
    with load(exported("single") / "bundle", threads=1) as model:
        best = [one.label for one in model.classify(TEXTS, candidates=labels)]
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, best, strict=True)]
    rows += [{"text": "nothing of it", "label": label} for label in labels]  # all three are candidates
    values = measured(exported, "single", written(tmp_path / "a.jsonl", rows), source=str(exported("single") / "source"))["variants"]
    assert values["fp32"]["accuracy"] == pytest.approx(5 / 7) and values["fp32"]["agreement"] == 1
    with load(exported("choices") / "bundle", threads=1) as model:
        choice = [model.classify(text, candidates=["a mat", "the door"])[0].label for text in TEXTS]
    both = ["a mat", "the door"]
    rows = [{"text": text, "candidates": both, "label": both.index(one)} for text, one in zip(TEXTS, choice, strict=True)]
    report = measured(exported, "choices", written(tmp_path / "b.jsonl", rows), source=str(exported("choices") / "source"))
    assert report["variants"]["fp32"]["accuracy"] == 1 and report["data"]["kind"] == "choices"
    assert measured(exported, "choices", None, precisions=["fp32"])["data"]["count"] == 12


def test_rankings(exported: Exported, tmp_path: Path) -> None:
    documents = ["a mat", "the door", "ada", "smith in london"]
    with load(exported("score") / "bundle", threads=1) as model:
        order = [ranked.index for ranked in model.rerank("where is ada", documents)]
    relevance = [0, 0, 0, 0]
    relevance[order[0]], relevance[order[1]] = 1, 2
    rows = [{"query": "where is ada", "documents": documents, "relevance": relevance}]
    report = measured(exported, "score", written(tmp_path / "a.jsonl", rows), source=str(exported("score") / "source"))
    values = report["variants"]["fp32"]
    assert values["accuracy_at_1"] == 1
    assert values["ndcg_at_10"] == pytest.approx((1 + 2 / np.log2(3)) / (2 + 1 / np.log2(3)))
    assert values["agreement"] == 1


def test_rankings_count_ties_against_themselves() -> None:
    found = of_rankings([[1.0, 1.0], [0.5, 0.2], [0.1, 0.9]], [[1, 0], [1, 0], [0, 0]])
    assert found["accuracy_at_1"].value == 0.5 and len(found["accuracy_at_1"].rows) == 2
    assert found["ndcg_at_10"].value == pytest.approx((1 / np.log2(3) + 1) / 2)


@pytest.mark.parametrize(
    ("tags", "wanted"),
    [  # of seqeval's documentation and tests
        (["B-PER", "I-PER", "O", "B-LOC"], [("PER", 0, 1), ("LOC", 3, 3)]),
        (["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], [("MISC", 3, 5)]),
        (["I-PER", "I-PER", "O", "I-LOC"], [("PER", 0, 1), ("LOC", 3, 3)]),
        (["I-PER", "I-LOC", "B-LOC"], [("PER", 0, 0), ("LOC", 1, 1), ("LOC", 2, 2)]),
        (["S-PER", "B-LOC", "E-LOC", "O"], [("PER", 0, 0), ("LOC", 1, 2)]),
        (["B-PER", "I-LOC-A", "E-LOC-A"], [("PER", 0, 0), ("LOC-A", 1, 2)]),
        (["O"], []),
    ],
)
def test_entities_of_tags_are_those_of_seqeval(tags: list[str], wanted: list[tuple[str, int, int]]) -> None:
    assert chunks(tags) == wanted


def test_entities_are_counted_over_all_texts() -> None:
    true = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    found = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    assert {name: one.value for name, one in of_tags(found, true).items()} == {"f1": 0.5, "precision": 0.5, "recall": 0.5}
    assert of_entities([[]], [[]])["f1"].value == 0


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "tokens has 2 entries and tags 1"),
        ({"text": "abc", "entities": [{"label": "X", "start": 1, "end": 9}]}, "field 'entities' holds"),
        ({"query": "a", "documents": ["b"], "relevance": [1, 2]}, "field 'relevance' is"),
        ({"text": "a", "candidates": ["b", "c"], "label": "d"}, "field 'label' is 'd'"),
        ({"text": "a", "candidates": "b", "label": "b"}, "expected a list of texts"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_rows_that_do_not_fit_are_refused(tmp_path: Path, row: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=f"line 1: .*{told}"):
        read_data(written(tmp_path / "a.jsonl", [row]))


def test_data_of_another_task_is_refused(exported: Exported, tmp_path: Path) -> None:
    data = written(tmp_path / "a.jsonl", [{"text": "a", "label": "b"}])
    with pytest.raises(DataError, match="but a bundle for token-classification takes entities or texts or tagged words"):
        workload(Bundle.open(exported("tokens") / "bundle"), data, None)
