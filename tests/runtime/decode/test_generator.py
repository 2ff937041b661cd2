"""Answers equal those of the same model in NumPy, computed one text at a time and without a cache."""

import math
from pathlib import Path

import numpy as np
import pytest

from onnxport.runtime import Generation, Model, load
from support import tiny_bundles as tiny
from support.plain_numpy import beam_search, log_softmax

SOURCES = [[5, 6, 7, 2], [9, 2], [30, 31, 32, 33, 34, 35, 8, 2], [11, 12, 13, 2], [39, 2], [21, 22, 23, 24, 25, 26, 2], [4, 4, 4, 2]]
PROMPTS = [[1, 5, 6], [7], [8, 9, 10, 11, 12, 13, 14], [30, 31], [12, 13, 14, 15, 16]]


def plain_greedy(model: tiny.TinyModel, source: list[int], prefix: list[int], most: int, least: int = 0) -> tuple[list[int], list[float]]:
    ids, logprobs = list(prefix), []
    for i in range(most):
        row = log_softmax(model.logits(source, ids)[-1])
        allowed = row.copy()
        if i < least:
            allowed[tiny.EOS] = -np.inf
        token = int(allowed.argmax())
        logprobs.append(float(row[token]))
        if token == tiny.EOS:
            break
        ids.append(token)
    return ids[len(prefix) :], logprobs


@pytest.fixture(scope="module", params=["seq2seq", "causal"])
def side(request: pytest.FixtureRequest) -> tuple[Model, tiny.TinyModel, list[list[int]]]:
    kind = request.param
    loaded = request.getfixturevalue("model" if kind == "seq2seq" else "causal_model")
    return loaded, request.getfixturevalue(kind), SOURCES if kind == "seq2seq" else PROMPTS


def split(side: tuple[Model, tiny.TinyModel, list[list[int]]], ids: list[int]) -> tuple[list[int], list[int]]:
    """(source, what decoding starts from)"""
    return (ids, [tiny.BOS]) if side[1].kind == "seq2seq" else ([], ids)


@pytest.mark.parametrize("least", [0, 9])
def test_greedy(side: tuple[Model, tiny.TinyModel, list[list[int]]], least: int) -> None:
    results = side[0].generate(side[2], max_new_tokens=12, min_new_tokens=least)
    for ids, result in zip(side[2], results, strict=True):
        tokens, logprobs = plain_greedy(side[1], *split(side, ids), 12, least)
        assert result.tokens == tokens
        assert result.finish_reason == ("length" if len(tokens) == 12 else "eos")
        assert result.score == pytest.approx(sum(logprobs), abs=1e-3)
        assert result.token_logprobs == pytest.approx(logprobs[: len(tokens)], abs=1e-3)


def test_min_equal_to_max_gives_exactly_that_many(side: tuple[Model, tiny.TinyModel, list[list[int]]]) -> None:
    for result in side[0].generate(side[2], min_new_tokens=20, max_new_tokens=20):
        assert len(result.tokens) == len(result.token_logprobs) == 20
        assert tiny.EOS not in result.tokens


@pytest.mark.parametrize("beam", [1, 3])
def test_a_ragged_batch_answers_as_single_calls_do(side: tuple[Model, tiny.TinyModel, list[list[int]]], beam: int) -> None:
    together = side[0].generate(side[2], beam=beam, max_new_tokens=15)
    for size in (1, 2, 3):
        for one, other in zip(together, side[0].generate(side[2], beam=beam, max_new_tokens=15, batch_size=size), strict=True):
            assert one.tokens == other.tokens
            assert one.score == pytest.approx(other.score, abs=1e-4)


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize(("beam", "length_penalty"), [(2, 1.0), (4, 0.6), (5, 2.0), (3, 0.0), (3, -1.0)])
def test_beam_search(
    side: tuple[Model, tiny.TinyModel, list[list[int]]], beam: int, length_penalty: float, early_stopping: bool | str
) -> None:
    results = side[0].generate(
        side[2], beam=beam, n_best=beam, max_new_tokens=10, length_penalty=length_penalty, early_stopping=early_stopping
    )
    for ids, result in zip(side[2], results, strict=True):
        source, prefix = split(side, ids)
        expected = beam_search(
            lambda rows, source=source: np.stack([side[1].logits(source, row)[-1] for row in rows]),
            prefix, tiny.EOS, beam, 10, length_penalty, early_stopping,
        )  # fmt: skip
        found = [result, *result.alternatives]
        assert [f.tokens for f in found] == [tokens for _, tokens in expected]
        assert [f.score for f in found] == pytest.approx([score for score, _ in expected], abs=1e-3)


def test_beam_search_with_min_new_tokens(side: tuple[Model, tiny.TinyModel, list[list[int]]]) -> None:
    results = side[0].generate(side[2], beam=3, min_new_tokens=6, max_new_tokens=10)
    for ids, result in zip(side[2], results, strict=True):
        source, prefix = split(side, ids)
        logits = lambda rows, source=source: np.stack([side[1].logits(source, row)[-1] for row in rows])  # noqa: E731
        expected = beam_search(logits, prefix, tiny.EOS, 3, 10, least=6)
        assert result.tokens == expected[0][1]


def test_beam_token_logprobs_add_up(model: Model) -> None:
    for result in model.generate(SOURCES, beam=4, max_new_tokens=10, length_penalty=0.0):
        assert len(result.token_logprobs) == len(result.tokens)
        if result.finish_reason == "length":
            assert result.score == pytest.approx(sum(result.token_logprobs), abs=1e-4)


def test_repetition_penalty(side: tuple[Model, tiny.TinyModel, list[list[int]]]) -> None:
    penalty = 3.0

    def logits(source: list[int], ids: list[int]) -> np.ndarray:
        row = side[1].logits(source, ids)[-1].copy()
        for token in set(ids):
            row[token] = row[token] / penalty if row[token] > 0 else row[token] * penalty
        return row

    results = side[0].generate(side[2], repetition_penalty=penalty, min_new_tokens=0, max_new_tokens=8)
    for ids, result in zip(side[2], results, strict=True):
        source, prefix = split(side, ids)
        rows = lambda many, source=source: np.stack([logits(source, row) for row in many])  # noqa: E731
        assert result.tokens == beam_search(rows, prefix, tiny.EOS, 1, 8)[0][1]


def test_the_cache_grows_past_its_first_size(causal_bundle: Path, causal: tiny.TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxport.runtime.decode.state.FIRST_POSITIONS", 1)
    monkeypatch.setattr("onnxport.runtime.decode.cache.STEP", 2)
    with load(causal_bundle, threads=1) as model:
        for ids, result in zip(PROMPTS, model.generate(PROMPTS, min_new_tokens=20, max_new_tokens=20), strict=True):
            assert result.tokens == plain_greedy(causal, [], ids, 20, 20)[0]
        for one in model.generate(PROMPTS, beam=3, min_new_tokens=20, max_new_tokens=20):
            assert len(one.tokens) == 20


def test_new_tokens_stay_within_the_positions(side: tuple[Model, tiny.TinyModel, list[list[int]]]) -> None:
    for beam in (1, 2):
        for ids, result in zip(side[2], side[0].generate(side[2], beam=beam, max_new_tokens=10_000, batch_size=3), strict=True):
            room = tiny.POSITIONS - len(split(side, ids)[1]) + 1
            assert len(result.tokens) == room if result.finish_reason == "length" else len(result.tokens) < room


def test_a_prefix_is_continued_and_not_repeated(model: Model, seq2seq: tiny.TinyModel) -> None:
    prefixes = [[20], [21, 22, 23], []]
    results = model.generate(SOURCES[:3], prefix=prefixes, max_new_tokens=6)
    for source, prefix, result in zip(SOURCES, prefixes, results, strict=False):
        assert result.tokens == plain_greedy(seq2seq, source, [tiny.BOS, *prefix], 6)[0]
    assert model.generate("w5 w6", prefix="w20", max_new_tokens=6) == model.generate([[5, 6, 2]], prefix=[[20]], max_new_tokens=6)


def test_text_and_ids_mean_the_same(model: Model) -> None:
    assert model.generate("w5 w6 w7") == model.generate([model.tokenize("w5 w6 w7")]) == model.generate([[5, 6, 7, 2]])
    assert model.generate([np.array([5, 6, 7, 2])]) == model.generate([(5, 6, 7, 2)])


def test_empty_texts_need_no_model(model: Model) -> None:
    results = model.generate(["", "w5", ""])
    assert results[0] == results[2] == Generation("", [], 0.0, [], "empty")
    assert results[1].tokens
    assert model.generate([]) == []
    assert list(model.stream("")) == []


def test_the_text_is_that_of_the_tokens(model: Model) -> None:
    for beam in (1, 2):
        for result in model.generate(["w5 w6 w7", "w9"], beam=beam, max_new_tokens=9):
            words = [tiny.WORDS[t] for t in result.tokens if t > 2]
            assert result.text == " ".join(words)


@pytest.mark.parametrize("beam", [1, 3])
def test_stop_strings(model: Model, beam: int) -> None:
    free = model.generate("w5 w6 w7", beam=beam, max_new_tokens=12)[0]
    assert free.text
    stop = free.text.split()[3]
    stopped = model.generate("w5 w6 w7", beam=beam, max_new_tokens=12, stop=[stop, "never there"])[0]
    assert stopped.finish_reason == "stop"
    assert stop not in (stopped.text or "")
    assert stop in tiny.WORDS[stopped.tokens[-1]]
    if beam == 1:
        assert stopped.text == free.text[: free.text.index(stop)]


def test_a_stop_string_over_several_tokens(model: Model) -> None:
    free = model.generate("w5 w6 w7", max_new_tokens=12)[0]
    assert free.text
    stop = free.text[len(free.text) // 3 : len(free.text) // 3 + 8]
    stopped = model.generate("w5 w6 w7", max_new_tokens=12, stop=stop)[0]
    assert stopped.text == free.text[: free.text.index(stop)]
    assert "".join(model.stream("w5 w6 w7", max_new_tokens=12, stop=stop)) == stopped.text


def test_a_stream_is_the_text_in_pieces(side: tuple[Model, tiny.TinyModel, list[list[int]]]) -> None:
    for ids in side[2]:
        stream = side[0].stream(ids, max_new_tokens=10)
        pieces = list(stream)
        whole = side[0].generate([ids], max_new_tokens=10)[0]
        assert "".join(pieces) == whole.text
        assert stream.result == whole
        assert math.isclose(whole.score, stream.result.score)
