"""Search graphs against PyTorch's own formulas, on ONNX Runtime."""

from functools import cache

import numpy as np
import onnxruntime as ort
import pytest
import torch

from onnxport.graph.search_graphs import search_graphs

GRAPHS = search_graphs(4, 300)
NONE, ONE = np.zeros(0, np.int64), np.ones(1, np.int64)


@pytest.fixture(scope="module")
def run():
    @cache
    def session(name, vocab):
        return ort.InferenceSession(search_graphs(4, vocab)[name], providers=["CPUExecutionProvider"])

    def answer(name, **inputs):
        vocab = inputs["logits"].shape[1] if "logits" in inputs else 1
        return session(name, vocab).run(None, {k: np.asarray(v) for k, v in inputs.items()})

    return answer


def logits_of(rows: int, vocab: int, seed: int = 0, scale: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((rows, vocab)) * scale).astype(np.float32)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return torch.log_softmax(torch.from_numpy(logits).double(), -1).numpy()


def test_bytes_are_reproducible():
    assert search_graphs(4, 300) == GRAPHS
    assert "reorder" not in search_graphs(0, 300)
    assert GRAPHS["reorder_float16"] != GRAPHS["reorder"]


@pytest.mark.parametrize(("rows", "vocab"), [(1, 1), (1, 17), (5, 300), (3, 1009), (4, 8192)])
def test_best_of_one(run, rows, vocab):
    logits = logits_of(rows, vocab)
    token, logprob, kept = run("best", logits=logits, candidates=ONE, suppressed=NONE)
    assert not kept.any()
    assert token.dtype == np.int64 and token.shape == (rows, 1)
    np.testing.assert_array_equal(token[:, 0], logits.argmax(1))
    np.testing.assert_allclose(logprob, np.take_along_axis(log_softmax(logits), token, 1), atol=2e-6)


def test_best_takes_the_first_of_equals_and_survives_large_logits(run):
    logits = np.array([[1, 7, 7, 7], [-900, 2000, -np.inf, 2000]], np.float32)
    token, logprob, _ = run("best", logits=logits, candidates=ONE, suppressed=NONE)
    np.testing.assert_array_equal(token, [[1], [1]])
    np.testing.assert_allclose(logprob[:, 0], [np.log(1 / (3 + np.exp(-6))), np.log(0.5)], atol=1e-6)
    equal = np.zeros((2, 1009), np.float32)
    np.testing.assert_array_equal(run("best", logits=equal, candidates=np.array([3]), suppressed=NONE)[0], [[0, 1, 2]] * 2)


@pytest.mark.parametrize(
    ("rows", "vocab", "count"), [(1, 1, 2), (4, 30, 8), (6, 11, 4), (6, 3, 6), (8, 50, 1), (8, 1009, 8), (6, 4096, 40)]
)
def test_best_of_many(run, rows, vocab, count):
    logits = logits_of(rows, vocab)
    token, logprob, _ = run("best", logits=logits, candidates=np.array([count]), suppressed=NONE)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :count]
    np.testing.assert_array_equal(token, order)
    np.testing.assert_allclose(logprob, np.take_along_axis(log_softmax(logits), order, 1), atol=3e-6)


def log_kept(logits, suppressed):
    """Log of the share that all but the suppressed ids have."""
    left = np.delete(log_softmax(logits), suppressed, 1)
    return torch.logsumexp(torch.from_numpy(left), 1).numpy()


def test_best_tells_what_suppressed_ids_leave(run):
    logits, suppressed = logits_of(6, 30), np.array([0, 7, 29])
    token, logprob, kept = run("best", logits=logits, candidates=ONE, suppressed=suppressed)
    np.testing.assert_array_equal(token[:, 0], logits.argmax(1))
    np.testing.assert_allclose(logprob[:, 0], log_softmax(logits).max(1), atol=2e-6)
    np.testing.assert_allclose(kept, log_kept(logits, suppressed), atol=2e-6)
    _, _, nothing = run("best", logits=np.array([[0, 200, 0]], np.float32), candidates=ONE, suppressed=np.array([1]))
    assert nothing == -np.inf


def penalized(logits, history, penalty, suppressed):
    out = torch.from_numpy(logits).clone()
    seen = torch.gather(out, 1, torch.from_numpy(history))
    out.scatter_(1, torch.from_numpy(history), torch.where(seen < 0, seen * penalty, seen / penalty))
    out[:, torch.from_numpy(suppressed)] = -torch.inf
    return out.numpy()


@pytest.mark.parametrize("banned", [[], [[0, 3], [2, 2], [2, 5], [0, 3]]])
@pytest.mark.parametrize("suppressed", [[], [2], [0, 8]])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("normalize", [0, 1])
def test_process(run, normalize, penalty, suppressed, banned):
    logits, suppressed = logits_of(3, 9), np.array(suppressed, np.int64)
    history = np.array([[1, 1, 1, 4], [8, 7, 6, 5], [2, 2, 2, 2]], np.int64)
    pairs = np.array(banned, np.int64).reshape(-1, 2)
    processed, kept = run(
        "process", logits=logits, history=history, penalty=np.float32(penalty), suppressed=suppressed, banned=pairs,
        normalize=np.float32(normalize),
    )  # fmt: skip
    base = torch.log_softmax(torch.from_numpy(logits), -1).numpy() if normalize else logits
    expected = penalized(base, history, np.float32(penalty), suppressed)
    for row, token in pairs:
        expected[row, token] = -np.inf
    np.testing.assert_array_equal(np.isinf(processed), np.isinf(expected))
    np.testing.assert_allclose(processed, expected, atol=2e-6 if normalize else 0)
    before = 0.0 if normalize else torch.logsumexp(torch.from_numpy(penalized(base, history, np.float32(penalty), NONE)), 1).numpy()
    np.testing.assert_allclose(kept, torch.logsumexp(torch.from_numpy(expected), 1).numpy() - before, atol=2e-6)


@pytest.mark.parametrize("normalize", [0, 1])
def test_process_adds_biases_before_penalties_and_leaves_what_is_allowed(run, normalize):
    logits, history = logits_of(3, 9), np.array([[1, 4], [8, 7], [2, 2]], np.int64)
    pairs, bias = np.array([[0, 1], [0, 2], [2, 8]], np.int64), np.array([2.5, -1.0, 100.0], np.float32)
    mask = np.where(np.random.default_rng(0).random((3, 9)) < 0.5, 0, -np.inf).astype(np.float32)
    mask[:, 0] = 0
    processed, kept = run(
        "process", logits=logits, history=history, penalty=np.float32(1.5), suppressed=NONE, banned=np.zeros((0, 2), np.int64),
        normalize=np.float32(normalize), biased=pairs, bias=bias, mask=mask,
    )  # fmt: skip
    base = torch.log_softmax(torch.from_numpy(logits), -1).numpy() if normalize else logits.copy()
    base[pairs[:, 0], pairs[:, 1]] += bias
    before = penalized(base, history, np.float32(1.5), NONE)
    expected = before + mask
    np.testing.assert_allclose(processed, expected, atol=4e-6)
    share = 0.0 if normalize else torch.logsumexp(torch.from_numpy(before), 1).numpy()
    np.testing.assert_allclose(kept, torch.logsumexp(torch.from_numpy(expected), 1).numpy() - share, atol=8e-6)


def test_mask_is_process_where_there_is_no_other_rule(run):
    logits = logits_of(3, 9)
    mask = np.where(np.random.default_rng(1).random((3, 9)) < 0.5, 0, -np.inf).astype(np.float32)
    mask[:, 0] = 0
    processed, kept = run("mask", logits=logits, mask=mask)
    expected = run(
        "process", logits=logits, history=np.zeros((3, 1), np.int64), penalty=np.float32(1), suppressed=NONE,
        banned=np.zeros((0, 2), np.int64), normalize=np.float32(0), mask=mask,
    )  # fmt: skip
    np.testing.assert_array_equal(processed, expected[0])
    np.testing.assert_allclose(kept, expected[1], atol=2e-6)


def allowed(logits, temperature, top_k, top_p):
    """Probabilities after temperature, top-k and top-p, token by token, from the definition."""
    probabilities = torch.softmax(torch.from_numpy(logits).double() / temperature, -1).numpy()
    kept = np.zeros_like(probabilities)
    for row, target in zip(probabilities, kept, strict=True):
        order = np.argsort(-row, kind="stable")[:top_k]
        mass = row[order] / row[order].sum()
        for token, share in zip(order, mass, strict=True):
            target[token] = share
            if target.sum() >= top_p:
                break
    return kept / kept.sum(1, keepdims=True)


SETTINGS = [(1.0, 40, 1.0), (0.7, 5, 1.0), (1.3, 40, 0.8), (0.9, 12, 0.6)]


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), SETTINGS)
def test_sample_frequencies_are_those_of_softmax(run, temperature, top_k, top_p):
    draws, logits = 20000, logits_of(1, 40, scale=1.5)
    uniform = np.random.default_rng(3).random(draws, np.float32)
    repeated = np.repeat(logits, draws, 0)
    expected = allowed(logits, temperature, top_k, top_p)[0]
    names = ["sample"] + (["sample_full"] if top_k == 40 and top_p == 1 else [])
    for name in names:
        filters = {} if name == "sample_full" else {"top_k": np.array([top_k]), "top_p": np.float32(top_p)}
        token, logprob = run(name, logits=repeated, temperature=np.float32(temperature), uniform=uniform, **filters)
        counts = np.bincount(token, minlength=40)
        inside = expected > 0
        assert counts[~inside].sum() == 0
        statistic = ((counts - draws * expected)[inside] ** 2 / (draws * expected[inside])).sum()
        freedom = max(int(inside.sum()) - 1, 1)
        assert statistic < freedom + 5 * np.sqrt(2 * freedom)  # beyond five standard deviations of a chi-square
        np.testing.assert_allclose(logprob, log_softmax(logits)[0][token], atol=2e-6)


def test_sample_inverts_the_cumulative_distribution(run):
    logits = np.log(np.array([[0.1, 0.2, 0.3, 0.4]] * 4, np.float32))
    uniform = np.array([0.0, 0.399, 0.401, 0.99999994], np.float32)
    token, _ = run("sample", logits=logits, temperature=np.float32(1), top_k=np.array([4]), top_p=np.float32(1), uniform=uniform)
    np.testing.assert_array_equal(token, [3, 3, 2, 0])
    token, _ = run("sample_full", logits=logits, temperature=np.float32(1), uniform=uniform)
    np.testing.assert_array_equal(token, [0, 2, 2, 3])


@pytest.mark.parametrize(("top_k", "top_p"), [(1, 1.0), (1000, 1e-9), (1000, 0.0), (1, 0.0)])
def test_sample_always_keeps_the_best(run, top_k, top_p):
    logits = logits_of(6, 50)
    uniform = np.linspace(0, 0.99999994, 6, dtype=np.float32)
    token, _ = run("sample", logits=logits, temperature=np.float32(2), top_k=np.array([top_k]), top_p=np.float32(top_p), uniform=uniform)
    np.testing.assert_array_equal(token, logits.argmax(1))


def test_sample_never_takes_a_suppressed_token(run):
    logits = np.array([[-np.inf, 0.0, -np.inf, 0.0, -np.inf]] * 2, np.float32)
    uniform = np.array([0.0, 0.99999994], np.float32)
    for name, filters in (("sample", {"top_k": np.array([5]), "top_p": np.float32(1)}), ("sample_full", {})):
        token, logprob = run(name, logits=logits, temperature=np.float32(0.3), uniform=uniform, **filters)
        np.testing.assert_array_equal(token, [1, 3])
        np.testing.assert_allclose(logprob, np.log(0.5), atol=1e-6)


def test_reorder(run):
    caches = {f"in_{i}": np.random.default_rng(i).standard_normal((3, 2, 5, 4)).astype(np.float32) for i in range(4)}
    row = np.array([2, 0, 0, 1])
    for i, out in enumerate(run("reorder", row=row, **caches)):
        np.testing.assert_array_equal(out, caches[f"in_{i}"][row])
