"""Embedding and classification: pooling, probabilities, long texts, refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxport.errors import BundleError, DataError, TextError, UsageError
from onnxport.runtime import Model, load
from support import tiny_encoder as tiny
from support.tiny_encoder import CLS, SEP

ROWS = tiny.table(5)
WIDE = ROWS + 1  # the tiny model adds the mask
LONG = "the cat sat on the mat, and the dog lay by the door. " * 4
TEXTS = ["a", "bad cab", "hi!", LONG, "the end"]


def embedder(out: Path, **encoding: Any) -> Model:
    return load(tiny.write(out / "b", "embedding", ROWS, **encoding), threads=1)


def classifier(out: Path, **encoding: Any) -> Model:
    return load(tiny.write(out / "b", "classification", ROWS[:, :3], **encoding), threads=1)


def parts(text: str, most: int, stride: int) -> list[list[int]]:
    return [[CLS, *part, SEP] for part in tiny.windows(tiny.ids(text), most - 2, stride)]


POOLED = {"mean": lambda rows: rows.mean(0), "cls": lambda rows: rows[0], "last": lambda rows: rows[-1]}


@pytest.mark.parametrize("pooling", POOLED)
@pytest.mark.parametrize("stride", [0, 7, None])
def test_vectors_are_means_over_windows(tmp_path: Path, pooling: str, stride: int | None) -> None:
    with embedder(tmp_path, max_length=24, pooling=pooling, normalize=False) as model:
        found = model.encode(TEXTS, stride=stride, batch_size=2)
    for text, vector in zip(TEXTS, found, strict=True):
        windows = parts(text, 24, 11 if stride is None else stride)
        vectors = np.array([POOLED[pooling](WIDE[window]) for window in windows])
        weights = np.array([len(window) for window in windows], np.float64)
        np.testing.assert_allclose(vector, (vectors * weights[:, None]).sum(0) / weights.sum(), atol=1e-6)


def test_vectors_have_length_one_and_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    with embedder(tmp_path, max_length=24) as model:
        found = model.encode(TEXTS)
        assert found.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
        for text, vector in zip(TEXTS, found, strict=True):
            np.testing.assert_array_equal(model.encode(text)[0], vector)
        assert model.encode([]).shape == (0, found.shape[1])


@pytest.mark.parametrize("problem", ["single", "multi", "regression"])
def test_labels_with_probabilities(tmp_path: Path, problem: str) -> None:
    with classifier(tmp_path, max_length=24, labels=["no", "maybe", "yes"], problem=problem) as model:
        found = model.classify(TEXTS)
    for text, result in zip(TEXTS, found, strict=True):
        windows = parts(text, 24, 11)
        sums = np.array([ROWS[window, :3].astype(np.float64).sum(0) for window in windows])
        weights = np.array([len(window) for window in windows])
        logits = (sums * weights[:, None]).sum(0) / weights.sum()
        wanted = {"single": np.exp(logits) / np.exp(logits).sum(), "multi": 1 / (1 + np.exp(-logits)), "regression": logits}[problem]
        assert [result.scores[name] for name in ("no", "maybe", "yes")] == pytest.approx(wanted.tolist(), abs=1e-5)
        assert list(result.scores.values()) == sorted(result.scores.values(), reverse=True)
        assert result.label == next(iter(result.scores))
        if problem == "multi":
            assert set(result.labels) == {name for name, share in result.scores.items() if share >= 0.5}
        else:
            assert result.labels == (result.label,)


def test_pairs_keep_their_first_text_in_every_window(tmp_path: Path) -> None:
    with classifier(tmp_path, max_length=24) as model:
        (found,) = model.classify(("bad cab", LONG), stride=3)
        first = [CLS, *tiny.ids("bad cab"), SEP]
        windows = [[*first, *part, SEP] for part in tiny.windows(tiny.ids(LONG), 24 - len(first) - 1, 3)]
        weights = np.array([len(window) for window in windows])
        sums = np.array([ROWS[window, :3].astype(np.float64).sum(0) for window in windows])
        logits = (sums * weights[:, None]).sum(0) / weights.sum()
        wanted = np.exp(logits) / np.exp(logits).sum()
        assert [found.scores[f"LABEL_{i}"] for i in range(3)] == pytest.approx(wanted.tolist(), abs=1e-5)
        assert model.classify([("a", "b"), "c"])[1] == model.classify("c")[0]
        assert model.classify([["a", "b"]]) == model.classify([("a", "b")])
        assert len(model.classify(["a", "b"])) == 2
        for value in (["a", "b", "c"], ["a"], [5, 6], ["a", 5], ("a", 5)):
            with pytest.raises(TextError, match="input is (list|int), expected a text .str. or a pair of texts"):
                model.classify([value])
        with pytest.raises(TextError, match="leaves no room"):
            model.classify((LONG, "a"))


def test_one_label_is_a_regression(tmp_path: Path) -> None:
    with load(tiny.write(tmp_path / "b", "classification", ROWS[:, :1], labels=["stars"]), threads=1) as model:
        (found,) = model.classify("ab")
    total = ROWS[[CLS, *tiny.ids("ab"), SEP], 0].sum()
    assert found.scores["stars"] == pytest.approx(float(total), abs=1e-6)


@pytest.mark.parametrize(
    ("texts", "options", "error", "part"),
    [
        ([""], {}, TextError, "empty"),
        (["a", " \n"], {}, TextError, "text 1: the text is empty"),
        (["a", 3], {}, TextError, "text 1: input is int"),
        (5, {}, UsageError, "int"),
        (["a", "\ud800"], {}, TextError, "surrogate"),
        (["a"], {"batch_size": 0}, UsageError, "batch_size is 0"),
        (["a"], {"stride": -1}, UsageError, "stride is -1"),
        (["a"], {"stride": 1.5}, UsageError, "stride is 1.5"),
        ([LONG], {"stride": 22}, UsageError, "stride is 22, expected less than the 22"),
    ],
)
def test_bad_input_is_told_in_a_line(tmp_path: Path, texts: Any, options: dict[str, Any], error: type[Exception], part: str) -> None:
    with embedder(tmp_path, max_length=24) as model, pytest.raises(error) as caught:
        model.encode(texts, **options)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_number_is_refused(tmp_path: Path) -> None:
    broken = np.full_like(ROWS, np.nan)
    for task, call in (("embedding", "encode"), ("classification", "classify")):
        with load(tiny.write(tmp_path / task, task, broken), threads=1) as model, pytest.raises(DataError, match="NaN"):
            getattr(model, call)(["a"])


def test_labels_must_fit_the_logits(tmp_path: Path) -> None:
    with classifier(tmp_path, labels=["no", "yes"]) as model, pytest.raises(BundleError, match="3 logits"):
        model.classify("a")


@pytest.mark.parametrize(
    "encoding",
    [{"pooling": "median"}, {"problem": "hard"}, {"labels": ["a", 3]}, {"labels": ["a", "a"]}, {"pad_id": 99}, {"pad_type_id": -1}],
)
def test_damaged_settings_are_refused(tmp_path: Path, encoding: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match="encoding"):
        classifier(tmp_path, **encoding)


def test_tasks_are_told_apart(tmp_path: Path) -> None:
    with classifier(tmp_path) as model:
        with pytest.raises(UsageError, match="expected embedding"):
            model.encode("a")
        with pytest.raises(UsageError, match="expected question-answering"):
            model.answer(question="a", context="b")
    with pytest.raises(UsageError, match="closed"):
        model.classify("a")
