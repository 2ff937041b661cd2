"""Streams and calls of many threads in shared batches: rows join and leave while others go on, and each answer is what it is alone."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onnxport.errors import Cancelled
from onnxport.runtime import Generation, Model, load
from onnxport.runtime.decode import batch as batches
from onnxport.runtime.decode import state as states
from onnxport.runtime.decode.sampling import RowBatch
from onnxport.runtime.decode.state import DecoderState
from support import tiny_bundles as tiny

LENGTH = {"min_new_tokens": 12, "max_new_tokens": 12}


def prompts(count: int, seed: int, most: int = 25) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(f"w{rng.randrange(4, tiny.VOCABULARY)}" for _ in range(rng.randrange(1, most))) for _ in range(count)]


def in_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def finish(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def calls_inside(model: Model) -> int:
    return sum(len(shared._calls) for shared in model.generating()._shared_batches.values())


@pytest.fixture(params=["tiny_bundle", "causal_bundle"])
def loaded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Model:
    """A model that runs prompts five ids at a time, and few of them together."""
    monkeypatch.setattr(states, "PREFILL_CHUNK", 5)
    monkeypatch.setattr(batches, "JOIN_POSITIONS", 30)
    with load(request.getfixturevalue(request.param), threads=1) as model:
        yield model


class Steps:
    """Counts the rows of every step of a decoder, and has `at` called before a step, by its number from 0."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: Callable[[int], None] = lambda number: None) -> None:
        self.rows: list[int] = []
        step = DecoderState.step

        def counted(state: DecoderState) -> None:
            at(len(self.rows))
            self.rows.append(int(state.active.sum()))
            step(state)

        monkeypatch.setattr(DecoderState, "step", counted)


def test_streams_of_many_threads_join_and_leave(loaded: Model) -> None:
    """Twelve threads that stream, call, stop early or give up; who finishes has the answer of the input alone."""
    texts = prompts(10, seed=1)
    alone = {text: loaded.generate(text, max_new_tokens=15)[0] for text in texts}
    wrong: list[str] = []

    def caller(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(12):
            text, way = draw.choice(texts), draw.randrange(4)
            expected = alone[text]
            if way == 0:
                found: Generation | None = loaded.generate(text, max_new_tokens=15)[0]
            elif way == 1:
                flag = threading.Event()
                flag.set()
                with pytest.raises(Cancelled):
                    list(loaded.stream(text, max_new_tokens=15, cancel=flag))
                continue
            else:
                with loaded.stream(text, max_new_tokens=15) as stream:
                    pieces = [piece for piece, _ in zip(stream, range(2 if way == 2 else 99), strict=False)]
                found = stream.result
                if not expected.text.startswith("".join(pieces)) or (way == 3 and "".join(pieces) != expected.text):
                    wrong.append(f"{pieces} of {expected.text}")
            if found is not None and (found.tokens, found.text) != (expected.tokens, expected.text):
                wrong.append(f"{found} for {expected}")

    finish(*(in_thread(lambda seed=seed: caller(seed)) for seed in range(12)))
    assert wrong == []
    assert calls_inside(loaded) == 0


def test_a_prompt_joins_in_parts_while_others_tokens_keep_coming(causal_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "PREFILL_CHUNK", 4)
    short, long = prompts(1, seed=2, most=3)[0], " ".join(["w5", "w9", "w13"] * 6)
    with load(causal_bundle, threads=1) as model:
        expected = [model.generate(text, **LENGTH)[0].tokens for text in (short, long)]
        order: list[str] = []
        may_go_on, ways = threading.Event(), {"part": DecoderState._run_part, "step": DecoderState.step}
        may_go_on.set()

        def counted(name: str) -> Callable[..., None]:
            def run(*arguments: Any) -> None:
                assert may_go_on.wait(60)
                order.append(name)
                ways[name](*arguments)

            return run

        monkeypatch.setattr(DecoderState, "_run_part", counted("part"))
        monkeypatch.setattr(DecoderState, "step", counted("step"))
        first = model.stream(short, **LENGTH)
        pieces = [next(first), next(first)]
        found: list[Generation] = []
        may_go_on.clear()  # or the other might be through before it is seen
        other = in_thread(lambda: found.extend(model.generate(long, **LENGTH)))
        while calls_inside(model) < 2:
            other.join(0.001)
        may_go_on.set()
        pieces += list(first)
        finish(other)
        assert [first.result.tokens, found[0].tokens] == expected
    begun = order[order.index("step") :]
    assert begun.count("part") == 5  # of 19 ids
    assert "part part" not in " ".join(begun)


def test_rows_of_streams_and_calls_are_stepped_together(loaded: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = prompts(5, seed=3)
    expected = [loaded.generate(text, **LENGTH)[0].text for text in texts]
    first = loaded.stream(texts[0], **LENGTH)
    found = {0: next(first)}
    started: list[threading.Thread] = []

    def arrive(number: int) -> None:
        """Before the first step all others come."""
        if number == 0:
            for i in range(1, 5):
                started.append(in_thread(lambda i=i: found.update({i: "".join(loaded.stream(texts[i], **LENGTH))})))
            while calls_inside(loaded) < 5:
                started[-1].join(0.001)

    steps = Steps(monkeypatch, arrive)
    found[0] += "".join(first)
    finish(*started)
    assert [found[i] for i in range(5)] == expected
    assert max(steps.rows) == 5 and len(steps.rows) < 30  # one after the other would take 60


@pytest.mark.parametrize("beam", [1, 3])
def test_prompts_of_two_calls_decode_together(causal_bundle: Path, monkeypatch: pytest.MonkeyPatch, beam: int) -> None:
    with load(causal_bundle, threads=1) as model:
        texts = prompts(4, seed=4)
        expected = [model.generate(text, beam=beam, **LENGTH)[0].tokens for text in texts]
        found: list[Generation] = []
        other: list[threading.Thread] = []

        def arrive(number: int) -> None:
            if number == 1:
                other.append(in_thread(lambda: found.extend(model.generate(texts[2:], beam=beam, **LENGTH))))
                while calls_inside(model) < 2:
                    other[0].join(0.001)

        steps = Steps(monkeypatch, arrive)
        mine = model.generate(texts[:2], beam=beam, **LENGTH)
        finish(*other)
        assert [one.tokens for one in (*mine, *found)] == expected
        assert max(steps.rows) == 4 * beam


def test_a_seed_draws_the_same_in_a_shared_batch(loaded: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    way: dict[str, Any] = {"temperature": 2.0, **LENGTH}
    expected = [loaded.generate("w5 w9", seed=seed, **way)[0].tokens for seed in (1, 2)]
    streams = [loaded.stream("w5 w9", seed=seed, **way) for seed in (1, 2)]
    steps = Steps(monkeypatch)
    for stream in streams:
        next(stream)
    for stream in streams:
        list(stream)
    assert [stream.result.tokens for stream in streams] == expected and max(steps.rows) == 2


def test_rows_with_settings_of_their_own_share_a_batch(loaded: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    ways: list[dict[str, Any]] = [
        {"temperature": 2.0, "seed": 1}, {}, {"temperature": 3.0, "top_k": 9, "seed": 2}, {"top_p": 0.8, "seed": 3},
        {"temperature": 2.0, "seed": 4},
    ]  # fmt: skip
    texts = prompts(len(ways), seed=7)
    expected = [loaded.generate(text, **way, **LENGTH)[0].tokens for text, way in zip(texts, ways, strict=True)]
    streams = [loaded.stream(text, **way, **LENGTH) for text, way in zip(texts, ways, strict=True)]
    steps = Steps(monkeypatch)
    for stream in streams:
        next(stream)
    for stream in streams:
        list(stream)
    assert [stream.result.tokens for stream in streams] == expected and max(steps.rows) == len(ways)


def test_a_closed_stream_makes_room_at_once(loaded: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (loaded.stream("w5 w9", **LENGTH) for _ in range(2))
    next(first), next(second), next(second)
    assert calls_inside(loaded) == 2
    first.close()
    assert calls_inside(loaded) == 1 and first.result is None and list(first) == []
    steps = Steps(monkeypatch)
    list(second)
    assert set(steps.rows) == {1}
    with loaded.stream("w5 w9", **LENGTH) as third:
        next(third)
    assert calls_inside(loaded) == 0 and list(third) == []
    del second
    fourth = loaded.stream("w5", **LENGTH)
    next(fourth)
    del fourth  # nobody can ask for more
    assert calls_inside(loaded) == 0


@pytest.mark.parametrize("way", [{}, {"temperature": 2.0, "seed": 5}], ids=["greedy", "sampled"])
def test_streams_go_on_where_they_were_when_their_batch_breaks(loaded: Model, way: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that leads goes on alone, the other in a new batch; nothing is said twice."""
    texts = prompts(2, seed=6)
    expected = [loaded.generate(text, **way, **LENGTH)[0] for text in texts]
    streams = [loaded.stream(text, **way, **LENGTH) for text in texts]
    pieces = [[next(stream)] for stream in streams]
    for stream, found in zip(streams, pieces, strict=True):
        found += [next(stream) for _ in range(3)]
    advance, broken = RowBatch._advance, []  # type: Any, list[int]

    def fails_once(batch: RowBatch, state: DecoderState) -> Any:
        if not broken:
            broken.append(state.rows)
            raise ValueError("what one row has")
        return advance(batch, state)

    monkeypatch.setattr(RowBatch, "_advance", fails_once)
    for stream, found, whole in zip(streams, pieces, expected, strict=True):
        found += list(stream)
        assert "".join(found) == whole.text and stream.result.tokens == whole.tokens
        assert stream.result.token_logprobs == pytest.approx(whole.token_logprobs, abs=1e-4)
    assert broken == [2] and calls_inside(loaded) == 0
