"""Batches that refill as rows end: every answer is that of the input alone, and no step is spent on nothing."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from onnxport.runtime import Generation, Model, load
from onnxport.runtime.decode.generator import Generator
from onnxport.runtime.decode.state import DecoderState
from support import tiny_bundles as tiny

from .test_generator import plain_greedy

Inputs = list[list[int]]


def ragged(count: int, seed: int, most: int = 30) -> Inputs:
    rng = random.Random(seed)
    return [[*rng.choices(range(4, tiny.VOCABULARY), k=rng.randrange(1, most)), tiny.EOS] for _ in range(count)]


@pytest.fixture(scope="module", params=["seq2seq", "causal"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model that ends its answers early and late."""
    made = tiny.TinyModel(request.param, seed=2)
    made.w["head"][:, tiny.EOS] *= 2.5
    return load(tiny.write_bundle(tmp_path_factory.mktemp("ending") / request.param, made), threads=1)


def assert_same(found: list[Generation], expected: list[Generation]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one.tokens, one.finish_reason, one.text) == (other.tokens, other.finish_reason, other.text)
        assert one.score == pytest.approx(other.score, abs=1e-4)
        assert one.token_logprobs == pytest.approx(other.token_logprobs, abs=1e-4)


@pytest.mark.parametrize("beam", [1, 3])
def test_forty_ragged_inputs_are_answered_as_one_by_one(loaded: Model, beam: int) -> None:
    inputs = ragged(40, seed=beam)
    together = loaded.generate(inputs, beam=beam, max_new_tokens=15, batch_size=4)
    assert len({len(one.tokens) for one in together}) > 3  # rows end at different steps
    assert_same(together, [loaded.generate([one], beam=beam, max_new_tokens=15)[0] for one in inputs])


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("size", [3, 8])
def test_prefixes_of_every_length_mix_with_none(loaded: Model, beam: int, size: int) -> None:
    """Inputs with a prefix cannot join a batch that runs; they have their turn, and those behind them too."""
    inputs = ragged(20, seed=7, most=12)
    rng = random.Random(1)
    prefixes = [rng.choices(range(4, tiny.VOCABULARY), k=rng.choice([0, 0, 1, 2, 5])) for _ in inputs]
    together = loaded.generate(inputs, prefix=prefixes, beam=beam, max_new_tokens=9, batch_size=size)
    alone = [loaded.generate([one], prefix=[start], beam=beam, max_new_tokens=9)[0] for one, start in zip(inputs, prefixes, strict=True)]
    assert_same(together, alone)


def test_limits_of_every_kind_end_rows_where_they_should(model: Model, seq2seq: tiny.TinyModel) -> None:
    inputs = ragged(12, seed=3)
    for found, one in zip(model.generate(inputs, max_new_tokens=6, batch_size=5), inputs, strict=True):
        assert found.tokens == plain_greedy(seq2seq, one, [tiny.BOS], 6)[0]


class Gate:
    """Stops the first thread that steps a decoder until it is opened; counts steps and rows."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stepping, self.open, self.rows = threading.Event(), threading.Event(), []  # type: threading.Event, threading.Event, list[int]
        step = DecoderState.step

        def gated(state: DecoderState) -> None:
            self.rows.append(int(state.active.sum()))
            self.stepping.set()
            assert self.open.wait(60)
            step(state)

        monkeypatch.setattr(DecoderState, "step", gated)


def answer_later(model: Model, inputs: Inputs, results: dict[str, list[Generation]], name: str, **options: object) -> threading.Thread:
    """A call in a thread of its own."""

    def call() -> None:
        results[name] = model.generate(inputs, **options)  # type: ignore[arg-type]

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("beam", [1, 3])
def test_a_call_joins_the_batch_of_another_thread(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, beam: int) -> None:
    """A longer source joins a batch of short ones: the batch is narrower than it, in sources and in rows."""
    fresh = load(tiny_bundle, threads=1)
    short, long = [[5, 6, 2], [9, 2]], [[*range(4, 33), 2]]
    options = {"beam": beam, "min_new_tokens": 12, "max_new_tokens": 12}
    expected = {name: fresh.generate(inputs, **options) for name, inputs in (("short", short), ("long", long))}
    results: dict[str, list[Generation]] = {}
    gate = Gate(monkeypatch)
    first = answer_later(fresh, short, results, "short", **options)
    assert gate.stepping.wait(60)
    second = answer_later(fresh, long, results, "long", **options)
    generator = fresh.generating()
    while sum(len(shared._calls) for shared in generator._shared_batches.values()) < 2:  # the second call has put its input into the queue
        second.join(0.01)
        assert second.is_alive()
    gate.open.set()
    for thread in (first, second):
        thread.join(60)
        assert not thread.is_alive()
    for name, found in results.items():
        assert_same(found, expected[name])
    assert max(gate.rows) == 3 * beam  # all three sources at once
    assert len(gate.rows) <= 14  # one call after the other would take 24 steps
    fresh.close()


def test_rows_that_end_make_room_for_inputs_that_wait(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two places, answers of 9 tokens and of 1: the long one and all short ones take 9 steps together."""
    fresh = load(tiny_bundle, threads=1)
    inputs: Inputs = [[*range(4, 14), tiny.EOS], *ragged(8, seed=11, most=5)]
    limits = {tuple(inputs[0]): 9}
    monkeypatch.setattr(Generator, "_limit", lambda self, one, *rest: limits.get(tuple(one), 1))
    gate = Gate(monkeypatch)
    gate.open.set()
    results = fresh.generate(inputs, batch_size=2, min_new_tokens=9)
    assert [len(one.tokens) for one in results] == [9, *[1] * 8]
    assert gate.rows == [2] * 8 + [1]
    fresh.close()


def test_many_threads_get_their_own_answers(model: Model) -> None:
    calls = {str(i): ragged(6, seed=20 + i) for i in range(6)}
    expected = {name: model.generate(inputs, max_new_tokens=10) for name, inputs in calls.items()}
    results: dict[str, list[Generation]] = {}
    threads = [answer_later(model, inputs, results, name, max_new_tokens=10, batch_size=4) for name, inputs in calls.items()]
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    for name in calls:
        assert_same(results[name], expected[name])
