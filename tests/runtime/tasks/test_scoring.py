"""Scores equal the log-softmax of the same model in NumPy, computed one text at a time and without a cache."""

from pathlib import Path

import numpy as np
import pytest

from onnxport.errors import TextError, UsageError
from onnxport.runtime import Model, load
from onnxport.runtime.tasks.scoring import windows
from support import tiny_bundles as tiny
from support.plain_numpy import log_softmax

INPUTS = [[5, 6, 7, 2], [9, 2], [30, 31, 32, 33, 34, 35, 8, 2], [11, 12, 13, 2], [39, 2], [21, 22, 23, 24, 25, 26, 2], [4, 4, 4, 2]]
TARGETS = [[7, 8, 2], [9, 9, 9, 9, 9, 9, 9, 9, 10, 2], [12], [], [30, 31, 2], list(range(4, 33)), [5, 2]]


@pytest.fixture(params=["seq2seq", "causal"])
def side(request: pytest.FixtureRequest) -> tuple[Model, tiny.TinyModel]:
    loaded = request.getfixturevalue("model" if request.param == "seq2seq" else "causal_model")
    return loaded, request.getfixturevalue(request.param)


def expected(plain: tiny.TinyModel, given: list[int], target: list[int]) -> np.ndarray:
    """Log-probabilities [target, vocabulary]."""
    source, prefix = (given, [tiny.BOS]) if plain.kind == "seq2seq" else ([], given)
    return log_softmax(plain.logits(source, [*prefix, *target])[len(prefix) - 1 : -1])


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_every_token_of_ragged_pairs(side: tuple[Model, tiny.TinyModel], batch_size: int) -> None:
    found = side[0].score(INPUTS, TARGETS, top=3, batch_size=batch_size)
    for given, target, one in zip(INPUTS, TARGETS, found, strict=True):
        wanted = expected(side[1], given, target)
        assert one.tokens == target
        assert one.token_logprobs.dtype == np.float32
        np.testing.assert_allclose(one.token_logprobs, wanted[np.arange(len(target)), target], atol=1e-4)
        order = np.argsort(-wanted, 1)[:, :3]
        np.testing.assert_array_equal(one.top_ids, order)
        np.testing.assert_allclose(one.top_logprobs, np.take_along_axis(wanted, order, 1), atol=1e-4)
        assert one.score == pytest.approx(float(wanted[np.arange(len(target)), target].sum()), abs=1e-3)


def test_scores_are_those_of_what_was_generated(side: tuple[Model, tiny.TinyModel]) -> None:
    answers = side[0].generate(INPUTS, max_new_tokens=12, beam=1)
    for answer, one in zip(answers, side[0].score(INPUTS, [answer.tokens for answer in answers]), strict=True):
        assert one.token_logprobs == pytest.approx(answer.token_logprobs, abs=1e-4)


def test_the_whole_vocabulary(side: tuple[Model, tiny.TinyModel]) -> None:
    found = side[0].score([[5, 6, 2]], [[9, 10]], top=tiny.VOCABULARY)[0]
    np.testing.assert_allclose(np.exp(found.top_logprobs).sum(1), 1, atol=1e-5)
    assert sorted(found.top_ids[1]) == list(range(tiny.VOCABULARY))


def test_texts_of_a_translation_end(model: Model) -> None:
    found = model.score("w5 w6", "w7 w8")[0]
    assert found.tokens == [7, 8, tiny.EOS]
    assert found.token_logprobs == pytest.approx(model.score([[5, 6, tiny.EOS]], [[7, 8, tiny.EOS]])[0].token_logprobs)


def test_texts_of_a_language_model_go_on(causal_model: Model) -> None:
    found = causal_model.score("w5 w6", "w7 w8")[0]
    assert found.tokens == [7, 8]
    assert found.token_logprobs == pytest.approx(causal_model.score([[tiny.BOS, 5, 6]], [[7, 8]])[0].token_logprobs)


def test_an_empty_prompt_begins_with_bos(causal_model: Model, causal: tiny.TinyModel) -> None:
    wanted = expected(causal, [tiny.BOS], [7, 8])[[0, 1], [7, 8]]
    for empty in ("", []):
        assert causal_model.score([empty], [[7, 8]])[0].token_logprobs == pytest.approx(wanted, abs=1e-4)


def test_a_first_token_without_anything_before_is_not_known(causal: tiny.TinyModel, causal_model: Model, tmp_path: Path) -> None:
    bundle = tiny.write_bundle(tmp_path / "b", causal, with_tokenizer=False, bos_id=None)
    found = load(bundle, threads=1).score([[], []], [[7, 8, 9], [7]], top=1)
    assert np.isnan(found[0].token_logprobs[0])
    assert np.isnan(found[1].token_logprobs).all()
    assert found[0].token_logprobs[1:] == pytest.approx(causal_model.score([[7]], [[8, 9]])[0].token_logprobs)


@pytest.mark.parametrize(("window", "stride"), [(None, None), (8, 4), (8, 7), (5, 1), (48, 2), (2, 1)])
def test_perplexity_by_windows(causal_model: Model, causal: tiny.TinyModel, window: int | None, stride: int | None) -> None:
    rng = np.random.default_rng(0)
    texts = [rng.integers(4, tiny.VOCABULARY, size).tolist() for size in (100, 3, 1, 40)]
    size = window or tiny.POSITIONS
    total, count = 0.0, 0
    for text in texts:  # the loop of transformers' documentation, with an exact count
        end_before = 0
        for begin in range(0, len(text), stride or size // 2):
            end = min(begin + size, len(text))
            rows = log_softmax(causal.logits([], text[begin:end]))
            for place in range(max(end_before, begin + 1), end):
                total -= rows[place - begin - 1, text[place]]
                count += 1
            end_before = end
            if end == len(text):
                break
    found = causal_model.likelihoods(texts, window=window, stride=stride)
    assert [one.tokens for one in found] == [99, 2, 0, 39]
    assert sum(one.negative_log for one in found) == pytest.approx(total, rel=1e-4)
    assert causal_model.perplexity(texts, window=window, stride=stride, batch_size=3) == pytest.approx(np.exp(total / count), rel=1e-4)


def test_windows_score_every_token_once() -> None:
    assert list(windows(10, 4, 2)) == [(0, 1, 4), (2, 4, 6), (4, 6, 8), (6, 8, 10)]
    assert list(windows(4, 9, 2)) == [(0, 1, 4)]
    assert list(windows(1, 4, 2)) == []


def test_what_cannot_be_scored(causal_model: Model, model: Model) -> None:
    with pytest.raises(UsageError, match="targets has 1 entries"):
        causal_model.score([[5], [6]], [[7]])
    with pytest.raises(UsageError, match="top is 41, expected a whole number from 0 to 40"):
        causal_model.score([[5]], [[7]], top=41)
    with pytest.raises(TextError, match="input 1 has 49 tokens with its target, the model takes at most 48"):
        causal_model.score([[5], [5]], [[7], [7] * 49])
    with pytest.raises(TextError, match="target 0: token id 40 is outside"):
        causal_model.score([[5]], [[40]])
    with pytest.raises(TextError, match="input 0 is empty"):
        model.score([[]], [[7]])
    with pytest.raises(UsageError, match="stride is 8, expected a whole number from 1 to 7"):
        causal_model.perplexity([[5, 6]], window=8, stride=8)
    with pytest.raises(UsageError, match="window is 49"):
        causal_model.perplexity([[5, 6]], window=49)
    with pytest.raises(UsageError, match="models that continue a text"):
        model.perplexity(["w5 w6"])
    with pytest.raises(TextError, match="no token beside their first"):
        causal_model.perplexity([[5]])
