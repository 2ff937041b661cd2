"""Options that name tokens: biases, stop tokens, and the best tokens that are told for each new one."""

from typing import Any

import numpy as np
import pytest

from onnxport.errors import TextError, UsageError
from onnxport.runtime import Model
from support import tiny_bundles as tiny
from support.plain_numpy import log_softmax

IDS = [5, 9, 7]
SEARCHES: list[dict[str, Any]] = [{"beam": 1}, {"temperature": 1.0, "seed": 1}, {"beam": 3}, {"beam": 1, "repetition_penalty": 1.3}]


@pytest.fixture(params=["seq2seq", "causal"])
def pair(request: pytest.FixtureRequest) -> tuple[Model, tiny.TinyModel]:
    """A loaded model, and the same in NumPy."""
    kind = request.param
    return request.getfixturevalue({"seq2seq": "model", "causal": "causal_model"}[kind]), request.getfixturevalue(kind)


def _logits(plain: tiny.TinyModel, new: list[int]) -> np.ndarray:
    """Behind IDS and new tokens."""
    if plain.kind == "seq2seq":
        return plain.logits(IDS, [tiny.BOS, *new])[-1]
    return plain.logits([], [*IDS, *new])[-1]


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_the_best_tokens_are_told_with_the_models_own_probabilities(pair: tuple[Model, tiny.TinyModel], search: dict[str, Any]) -> None:
    model, plain = pair
    (answer,) = model.generate([IDS], max_new_tokens=6, min_new_tokens=6, top_logprobs=3, logit_bias={4: 1.0}, **search)
    assert len(answer.top_logprobs) == len(answer.tokens) == 6
    for place, best in enumerate(answer.top_logprobs):
        expected = log_softmax(_logits(plain, answer.tokens[:place])[None])[0]
        assert [i for i, _ in best] == np.argsort(-expected, kind="stable")[:3].tolist()
        np.testing.assert_allclose([value for _, value in best], np.sort(expected)[::-1][:3], atol=2e-3)


def test_rows_of_a_batch_are_told_what_is_theirs(pair: tuple[Model, tiny.TinyModel]) -> None:
    model, _ = pair
    texts = [IDS, [8, 8], [30, 4, 21, 30, 6]]
    together = model.generate(texts, max_new_tokens=5, top_logprobs=2, beam=1)
    for text, answer in zip(texts, together, strict=True):
        (single,) = model.generate([text], max_new_tokens=5, top_logprobs=2, beam=1)
        assert [[i for i, _ in best] for best in single.top_logprobs] == [[i for i, _ in best] for best in answer.top_logprobs]
    assert model.generate(texts, max_new_tokens=5)[0].top_logprobs == []


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_a_bias_counts_in_every_search(pair: tuple[Model, tiny.TinyModel], search: dict[str, Any]) -> None:
    model, _ = pair
    (plain,) = model.generate([IDS], max_new_tokens=8, min_new_tokens=8, **search)
    (without,) = model.generate([IDS], max_new_tokens=8, min_new_tokens=8, logit_bias=dict.fromkeys(plain.tokens, -1000), **search)
    assert not set(plain.tokens) & set(without.tokens)
    (only,) = model.generate([IDS], max_new_tokens=8, min_new_tokens=8, logit_bias={17: 1000}, **{**search, "repetition_penalty": 1.0})
    assert only.tokens == [17] * 8
    (same,) = model.generate([IDS], max_new_tokens=8, min_new_tokens=8, logit_bias={17: 0.0}, **search)
    assert same.tokens == plain.tokens
    np.testing.assert_allclose(same.token_logprobs, plain.token_logprobs, atol=1e-5)


def test_a_bias_is_added_to_logits(pair: tuple[Model, tiny.TinyModel]) -> None:
    model, plain = pair
    (answer,) = model.generate([IDS], max_new_tokens=4, min_new_tokens=4, logit_bias={"w6": 2.5, 11: 3.0, "w12": -1.5}, beam=1)
    for place, token in enumerate(answer.tokens):
        logits = _logits(plain, answer.tokens[:place]).copy()
        logits[[6, 11, 12]] += [2.5, 3.0, -1.5]
        logprobs = log_softmax(logits[None])[0]
        assert token == np.delete(np.arange(tiny.VOCABULARY), tiny.EOS)[np.delete(logits, tiny.EOS).argmax()]
        assert answer.token_logprobs[place] == pytest.approx(logprobs[token], abs=2e-3)


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_a_stop_token_ends_an_answer_and_is_no_part_of_it(pair: tuple[Model, tiny.TinyModel], search: dict[str, Any]) -> None:
    model, _ = pair
    (whole,) = model.generate([IDS], max_new_tokens=8, min_new_tokens=8, **{**search, "beam": 1})
    place = next(i for i in range(2, 8) if whole.tokens[i] not in whole.tokens[:i])
    ends = [whole.tokens[place], whole.tokens[place]]
    (answer,) = model.generate([IDS], max_new_tokens=8, stop_token_ids=ends, logit_bias={tiny.EOS: -1000}, **search)
    assert ends[0] not in answer.tokens and answer.finish_reason in ("stop", "length")
    if search["beam" if "beam" in search else "seed"] == 1:
        assert answer.tokens == whole.tokens[:place] and answer.finish_reason == "stop"
        assert answer.text == " ".join(f"w{i}" for i in answer.tokens if i > 3) or "<unk>" in (answer.text or "")
    (longer,) = model.generate([IDS], max_new_tokens=8, min_new_tokens=8, stop_token_ids=ends, **search)
    assert len(longer.tokens) == 8 and ends[0] not in longer.tokens


def test_a_stream_ends_at_a_stop_token(pair: tuple[Model, tiny.TinyModel]) -> None:
    model, _ = pair
    (whole,) = model.generate([IDS], max_new_tokens=8, min_new_tokens=8, beam=1)
    place = next(i for i in range(2, 8) if whole.tokens[i] not in whole.tokens[:i])
    stream = model.stream(IDS, max_new_tokens=8, min_new_tokens=place, stop_token_ids=[whole.tokens[place]], top_logprobs=1)
    text = "".join(stream)
    assert stream.result is not None and stream.result.tokens == whole.tokens[:place] and stream.result.text == text
    assert len(stream.result.top_logprobs) == place


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logit_bias": [3]}, "logit_bias is list, expected a mapping"),
        ({"logit_bias": {1.5: 1}}, "logit_bias has the key 1.5"),
        ({"logit_bias": {3: "x"}}, "logit_bias of 3 is 'x', expected a number"),
        ({"logit_bias": {3: float("nan")}}, "logit_bias of 3 is nan"),
        ({"logit_bias": {99: 1.0}}, "token id 99, outside the vocabulary of 40"),
        ({"logit_bias": {"w5 w6": 1.0}}, "'w5 w6' is 2 tokens, expected the text of one"),
        ({"stop_token_ids": [40]}, "stop_token_ids holds 40, expected ids below 40"),
        ({"stop_token_ids": [-1]}, "stop_token_ids is -1"),
        ({"stop_token_ids": 3}, "stop_token_ids is int, expected a list"),
        ({"top_logprobs": -1}, "top_logprobs is -1"),
    ],
)
def test_what_cannot_be_is_refused(model: Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises((UsageError, TextError), match=message.replace("(", r"\(")):
        model.generate([IDS], **options)


def test_more_than_the_vocabulary_is_all_of_it(model: Model) -> None:
    (answer,) = model.generate([IDS], max_new_tokens=2, top_logprobs=500)
    assert [len(best) for best in answer.top_logprobs] == [tiny.VOCABULARY] * len(answer.tokens)
