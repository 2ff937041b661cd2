"""What is no text and no list of inputs is refused in one line, by every method, and nothing is made of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onnxport.errors import DataError, TextError, UsageError
from onnxport.runtime import Model, load
from support import tiny_bundles as tiny
from support import tiny_encoder


def kind(value: Any) -> str:
    """A test's id: the same in every worker, so without addresses and the order of sets."""
    return type(value).__name__


class Table:
    """As a data frame: its items are the names of its columns."""

    columns = ("a",)

    def __iter__(self) -> Any:
        return iter(self.columns)


def embedder(out: Path) -> Model:
    return load(tiny_encoder.write(out / "b", "embedding", tiny_encoder.table(5)), threads=1)


NO_LISTS = [{"a": 1}, {"a", "b"}, frozenset([1]), b"ab", bytearray(b"a"), memoryview(b"ab"), 3, 2.5, None, object(), Table(), np.array("a")]
NO_INPUTS = [
    {"a": 1},
    {5, 6},
    b"ab",
    3,
    2.5,
    None,
    object(),
    ["a", "b"],
    [["a"]],
    [5, "a"],
    [5.0],
    [True],
    [None],
    np.array([5.0]),
    np.array([[5]]),
]
NO_INPUTS += [np.array([True]), torch.tensor([True]), torch.tensor([5.0]), (x for x in (5, 6)), Table(), np.array("a")]
METHODS: dict[str, Callable[[Model, Any], Any]] = {
    "generate": lambda model, value: model.generate(value),
    "prefix": lambda model, value: model.generate(["w5"], prefix=value),
    "score": lambda model, value: model.score(value, ["w5"]),
    "targets": lambda model, value: model.score(["w5"], value),
}


def assert_refused(call: Callable[[], Any], *errors: type[Exception]) -> None:
    with pytest.raises(errors) as caught:
        call()
    assert "expected" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", NO_LISTS, ids=kind)
@pytest.mark.parametrize("name", METHODS)
def test_no_list_is_refused(name: str, value: Any, model: Model) -> None:
    if not (name == "prefix" and value is None):  # no prefix
        assert_refused(lambda: METHODS[name](model, value), UsageError)


@pytest.mark.parametrize("value", NO_INPUTS, ids=kind)
@pytest.mark.parametrize("name", METHODS)
def test_an_item_that_is_no_input_is_refused(name: str, value: Any, model: Model) -> None:
    assert_refused(lambda: METHODS[name](model, [value]), TextError)


@pytest.mark.parametrize("value", NO_INPUTS, ids=kind)
def test_one_input_that_is_none_is_refused(value: Any, model: Model, causal_model: Model) -> None:
    assert_refused(lambda: model.stream(value), TextError)
    assert_refused(lambda: model.tokenize(value), TextError)
    if not isinstance(value, list):
        assert_refused(lambda: causal_model.likelihoods([value]), TextError)


@pytest.mark.parametrize("value", NO_LISTS, ids=kind)
def test_conversations_and_likelihoods(value: Any, causal_model: Model) -> None:
    assert_refused(lambda: causal_model.likelihoods(value), UsageError)
    assert_refused(lambda: causal_model.chat(value), UsageError)


def test_what_holds_inputs_in_order_is_taken(model: Model) -> None:
    expected = [one.tokens for one in model.generate([[5, 9, 2], [7, 2, 2]], max_new_tokens=5)]
    rows = np.array([[5, 9, 2], [7, 2, 2]])
    for value in (
        rows,
        rows.astype(np.uint8),
        torch.tensor(rows),
        iter(rows),
        tuple(map(tuple, rows)),
        dict(enumerate(rows)).values(),
        dict.fromkeys(map(tuple, rows.tolist())).keys(),
    ):
        assert [one.tokens for one in model.generate(value, max_new_tokens=5)] == expected
    texts = [one.tokens for one in model.generate(["w5", "w6"], max_new_tokens=5)]
    for texts_too in (np.array(["w5", "w6"]), (text for text in ("w5", "w6"))):
        assert [one.tokens for one in model.generate(texts_too, max_new_tokens=5)] == texts


@pytest.mark.parametrize("value", NO_LISTS, ids=kind)
def test_encoders_refuse_no_list(value: Any, tmp_path: Path) -> None:
    with embedder(tmp_path) as model:
        for call in (
            lambda: model.encode(value),
            lambda: model.classify(value),
            lambda: model.answer(question=value, context="a"),
            lambda: model.answer(question="a", context=value),
        ):
            with pytest.raises(UsageError, match=f"(texts|question|context) is {type(value).__name__}, expected a text"):
                call()


@pytest.mark.parametrize("value", [["a", "b"], [["a"]], ("a", "b"), {"a": 1}, {"a"}, b"a", 3, None, np.array([1.0])], ids=kind)
def test_texts_of_encoders_are_texts(value: Any, tmp_path: Path) -> None:
    with embedder(tmp_path) as model:
        assert_refused(lambda: model.encode([value]), TextError)


@pytest.mark.parametrize("value", [[], [1], "ab", 3, None, {"a"}, np.zeros(3)], ids=kind)
def test_arrays_come_by_name(value: Any, tmp_path: Path) -> None:
    with embedder(tmp_path) as model:
        assert_refused(lambda: model.run(value), UsageError)


@pytest.mark.parametrize(
    "value",
    [[[1], [1, 2]], [[object()]], [["a"]], [[1.5]], [[b"a"]], None, {"a": 1}, [[10**30]]],
    ids=kind,
)
def test_arrays_are_arrays(value: Any, tmp_path: Path) -> None:
    with embedder(tmp_path) as model:
        good = {name: np.ones((1, 2), kind) for name, kind in model.encoding().inputs.items()}
        assert model.run(good)
        assert_refused(lambda: model.run(good | {"input_ids": value}), DataError)
        assert_refused(lambda: model.run(good | {5: value}), DataError)  # type: ignore[dict-item]


@pytest.mark.parametrize("stop", [5, {"a": 1}, {"a"}, b"a", [b"a"], [["a"]], [None]], ids=kind)
def test_stops_are_texts(stop: Any, model: Model) -> None:
    assert_refused(lambda: model.generate("w5", stop=stop), UsageError)


def test_a_text_without_end_is_refused(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxport.runtime.tokenizer.LONGEST", 10)
    assert_refused(lambda: model.generate("w" * 11), TextError)
    assert_refused(lambda: model.tokenize("w" * 11), TextError)
    assert model.tokenize("w" * 10)


def test_the_clock_is_looked_at_between_texts(seq2seq: tiny.TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxport.errors import Cancelled
    from onnxport.runtime.tokenizer import TextTokenizer

    monkeypatch.setattr("onnxport.runtime.decode.generator.AT_ONCE", 6)
    read: list[int] = []

    class Flag:
        def is_set(self) -> bool:
            return len(read) == 2

    encode = TextTokenizer.encode
    monkeypatch.setattr(
        TextTokenizer, "encode", lambda self, texts, special=True: (read.append(len(texts)), encode(self, texts, special))[1]
    )
    with load(tiny.write_bundle(tmp_path / "tiny", seq2seq), threads=1) as model:
        with pytest.raises(Cancelled):
            model.generate(["w5", "w6", "w7 w8 w9", "w5", "w6"], cancel=Flag())
        assert read == [2, 1]
        read.clear()
        monkeypatch.setattr(Flag, "is_set", lambda self: False)
        assert len(model.generate(["w5", "w6", "w7 w8 w9", "w5", "w6"], max_new_tokens=2, cancel=Flag())) == 5 and read == [2, 1, 2]
