"""What is kept of distributions: exact of a small vocabulary, a lower bound of the divergence of a large one."""

import numpy as np
import pytest

from onnxport.runtime.bundle.kept import Kept, log_softmax

RNG = np.random.default_rng(0)


def whole(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The divergence over the whole vocabulary."""
    p, q = log_softmax(one), log_softmax(other)
    return np.asarray((np.exp(p) * (p - q)).sum(1))


def test_a_vocabulary_that_is_kept_whole_gives_the_whole_divergence() -> None:
    one, other = RNG.normal(0, 3, (2, 7, 20)).astype(np.float32)
    kept = Kept.of(one, np.arange(7), 128)
    assert kept.top_ids.shape == (7, 20) and not kept.rest.any()
    np.testing.assert_allclose(kept.divergence(log_softmax(other)), whole(one, other), rtol=1e-5)
    np.testing.assert_allclose(kept.logprobs, log_softmax(one)[np.arange(7), np.arange(7)], rtol=1e-6)


def test_fewer_classes_give_a_lower_bound_that_grows_with_them() -> None:
    one, other = RNG.normal(0, 3, (2, 50, 400)).astype(np.float32)
    found = [Kept.of(one, np.zeros(50, int), count).divergence(log_softmax(other)) for count in (1, 8, 64, 400)]
    assert all((fewer <= more + 1e-6).all() for fewer, more in zip(found, found[1:], strict=False))
    assert 0.5 * found[-1].mean() < found[2].mean() < found[-1].mean()
    np.testing.assert_allclose(found[-1], whole(one, other), rtol=1e-4)


def test_the_best_ids_come_first_and_the_rest_is_what_is_left() -> None:
    logits = np.log(np.array([[0.1, 0.6, 0.05, 0.25]], np.float32))
    kept = Kept.of(logits, np.array([2]), 2)
    assert kept.top_ids.tolist() == [[1, 3]]
    np.testing.assert_allclose([*np.exp(kept.top_logprobs[0]), kept.rest[0], np.exp(kept.logprobs[0])], [0.6, 0.25, 0.15, 0.05], rtol=1e-5)


def test_the_same_distributions_do_not_differ() -> None:
    logits = RNG.normal(0, 4, (30, 1000)).astype(np.float32)
    assert np.abs(Kept.of(logits, np.zeros(30, int)).divergence(log_softmax(logits))).mean() < 1e-7


def test_arrays_that_do_not_fit_together_are_refused() -> None:
    kept = Kept.of(RNG.normal(0, 1, (4, 9)).astype(np.float32), np.zeros(4, int))
    assert len(Kept.read(kept.arrays())) == 4
    with pytest.raises(ValueError, match="4 kept distributions with 3 rests"):
        Kept.read(kept.arrays() | {"rest": kept.rest[:3]})
    with pytest.raises(KeyError):
        Kept.read({"top_ids": kept.top_ids})


def test_ids_that_never_come_add_nothing() -> None:
    one, other = RNG.normal(0, 3, (2, 7, 20)).astype(np.float32)
    narrow = [np.delete(logits, [3, 8], 1) for logits in (one, other)]
    one[:, [3, 8]] = other[:, [3, 8]] = -np.inf
    kept = Kept.of(one, np.zeros(7, int))
    with np.errstate(all="raise"):
        np.testing.assert_allclose(kept.divergence(log_softmax(other)), whole(*narrow), rtol=1e-5)
    other[:, 5] = -np.inf  # what the first gives a share
    assert (kept.divergence(log_softmax(other)) == np.inf).all()
    other[0, 0] = np.nan
    assert np.isnan(kept.divergence(log_softmax(other))[0])
