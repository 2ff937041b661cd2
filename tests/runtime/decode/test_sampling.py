"""Drawn tokens follow the model's distribution, and a seed makes them repeatable whatever the batch."""

import numpy as np
import pytest

from onnxport.runtime import Model
from support import tiny_bundles as tiny
from support.plain_numpy import log_softmax

SOURCE = [5, 6, 7, 2]
DRAWS = 4000


def expected(model: tiny.TinyModel, temperature: float = 1.0, top_k: int = tiny.VOCABULARY, top_p: float = 1.0) -> np.ndarray:
    p = np.exp(log_softmax(model.logits(SOURCE, [tiny.BOS])[-1] / temperature))
    order = np.argsort(-p, kind="stable")[:top_k]
    kept = p[order] / p[order].sum()
    count = int(np.searchsorted(np.cumsum(kept), top_p - 1e-9)) + 1
    result = np.zeros_like(p)
    result[order[:count]] = kept[:count] / kept[:count].sum()
    return result


@pytest.mark.parametrize("options", [{"temperature": 4.0}, {"temperature": 6.0, "top_k": 5}, {"temperature": 8.0, "top_p": 0.7}])
def test_draws_follow_the_distribution(model: Model, seq2seq: tiny.TinyModel, options: dict[str, float]) -> None:
    results = model.generate([SOURCE] * DRAWS, max_new_tokens=1, seed=11, batch_size=1000, **options)
    drawn = [r.tokens[0] if r.tokens else tiny.EOS for r in results]
    found = np.bincount(drawn, minlength=tiny.VOCABULARY)
    wanted = expected(seq2seq, **options) * DRAWS
    assert found[wanted == 0].sum() == 0
    usual = wanted >= 5
    assert usual.sum() >= 3
    rest_found, rest_wanted = found[~usual].sum(), wanted[~usual].sum()
    statistic = ((found - wanted)[usual] ** 2 / wanted[usual]).sum() + (
        (rest_found - rest_wanted) ** 2 / rest_wanted if rest_wanted > 1 else 0
    )
    freedom = usual.sum()
    # Wilson and Hilferty's approximation of the 99.99% point of chi-square
    assert statistic < freedom * (1 - 2 / (9 * freedom) + 3.72 * np.sqrt(2 / (9 * freedom))) ** 3


def test_a_seed_repeats_and_another_does_not(model: Model) -> None:
    def draw(seed: int | None) -> list[list[int]]:
        return [r.tokens for r in model.generate([SOURCE] * 8, temperature=8.0, seed=seed, max_new_tokens=10)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert draw(None) != draw(None)
    assert len({tuple(t) for t in draw(1)}) > 1  # equal inputs at other places draw otherwise


def test_a_row_does_not_depend_on_its_batch(model: Model) -> None:
    texts = [[5, 2], [6, 7, 2], [8, 9, 10, 2], [5, 2], [11, 12, 2]]
    whole = [r.tokens for r in model.generate(texts, temperature=5.0, seed=3, max_new_tokens=12)]
    for size in (1, 2):
        assert [r.tokens for r in model.generate(texts, temperature=5.0, seed=3, max_new_tokens=12, batch_size=size)] == whole
    assert [r.tokens for r in model.generate(texts[:2], temperature=5.0, seed=3, max_new_tokens=12)] == whole[:2]
    assert model.generate([texts[0]], temperature=5.0, seed=3, max_new_tokens=12)[0].tokens == whole[0]


def test_a_stream_draws_what_generate_draws(model: Model) -> None:
    whole = model.generate([SOURCE], temperature=5.0, seed=4, max_new_tokens=12)[0]
    assert "".join(model.stream(SOURCE, temperature=5.0, seed=4, max_new_tokens=12)) == whole.text


def test_top_k_of_one_and_temperature_zero_are_greedy(model: Model) -> None:
    greedy = model.generate([SOURCE], max_new_tokens=8)[0].tokens
    assert model.generate([SOURCE], top_k=1, seed=1, max_new_tokens=8)[0].tokens == greedy
    assert model.generate([SOURCE], top_p=1e-6, seed=1, max_new_tokens=8)[0].tokens == greedy
    assert model.generate([SOURCE], temperature=0, max_new_tokens=8)[0].tokens == greedy


def test_sampling_keeps_to_min_new_tokens(model: Model) -> None:
    for result in model.generate([SOURCE] * 50, temperature=20.0, seed=5, min_new_tokens=10, max_new_tokens=10):
        assert len(result.tokens) == 10
        assert tiny.EOS not in result.tokens


def test_log_probabilities_are_untempered(model: Model, seq2seq: tiny.TinyModel) -> None:
    row = log_softmax(seq2seq.logits(SOURCE, [tiny.BOS])[-1])
    for result in model.generate([SOURCE] * 20, temperature=9.0, top_k=10, seed=6, max_new_tokens=1):
        token = result.tokens[0] if result.tokens else tiny.EOS
        assert result.score == pytest.approx(row[token], abs=1e-4)
