"""Callers that give up beside callers that do not: each answer is what it is alone, and only who gave up gets an error."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from onnxport.errors import Cancelled, GenerationTimeout, TextError
from onnxport.runtime import Model, load
from onnxport.runtime.decode.batch import EncodedSources
from onnxport.runtime.decode.state import DecoderState

WAYS: list[dict[str, Any]] = [{"beam": 1}, {"beam": 3}, {"temperature": 2.0, "seed": 3}, {"beam": 1, "batch_size": 2}]


def fixed() -> threading.Event:
    flag = threading.Event()
    flag.set()
    return flag


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("given_up", [{"cancel": fixed()}, {"timeout": 1e-6}], ids=["cancel", "timeout"])
@pytest.mark.parametrize("kind", ["tiny_bundle", "causal_bundle"])
def test_a_call_that_gives_up_while_it_waits_breaks_nobody(
    kind: str, given_up: dict[str, Any], beam: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has queued its inputs and leaves before any of them has its first step; the other call's next step must not count on them."""
    options = {"beam": beam, "min_new_tokens": 12, "max_new_tokens": 12}
    with load(request.getfixturevalue(kind), threads=1) as model:
        expected = model.generate([[5, 9, 33]], **options)
        seen: list[Exception] = []
        step = DecoderState.step

        def stepped(state: DecoderState) -> None:
            if threading.current_thread().name == "patient":
                with pytest.raises((Cancelled, GenerationTimeout)):
                    other = threading.Thread(target=lambda: impatient(), name="impatient")
                    other.start()
                    other.join(60)
                    raise seen[-1]
            step(state)

        def impatient() -> None:
            try:
                model.generate([[7, 3], [8]], **options, **given_up)
            except Exception as error:
                seen.append(error)

        monkeypatch.setattr(DecoderState, "step", stepped)
        found: list[Any] = []
        patient = threading.Thread(target=lambda: found.extend(model.generate([[5, 9, 33]], **options)), name="patient")
        patient.start()
        patient.join(100)
        assert not patient.is_alive() and [one.tokens for one in found] == [one.tokens for one in expected]
        assert len(seen) >= 11


def test_what_a_caller_that_has_left_breaks_is_not_the_other_caller_s_error(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch breaks over inputs whose call gives up in the same step: nobody is left to blame but the one that leads."""
    with load(tiny_bundle, threads=1) as model:
        flag, broken, errors = threading.Event(), threading.Event(), []  # type: threading.Event, threading.Event, list[Exception]
        expected = model.generate([[5, 9, 33]], min_new_tokens=20, max_new_tokens=20)
        encode, step = EncodedSources._encode, DecoderState.step

        def late() -> None:
            try:
                model.generate([[7, 3]], min_new_tokens=20, max_new_tokens=20, cancel=flag)
            except Exception as error:
                errors.append(error)

        other = threading.Thread(target=late)

        def encoded(sources: Any, waiting: Any, count: int) -> bool:
            if any(one.request.source == [7, 3] for one in waiting):
                flag.set()
                other.join(60)
                broken.set()
                raise TextError("the other caller's text")
            return encode(sources, waiting, count)

        def stepped(state: DecoderState) -> None:
            if not other.ident:
                other.start()
                while not any(len(shared._calls) == 2 for shared in model.generating()._shared_batches.values()):
                    time.sleep(0.001)
            step(state)

        monkeypatch.setattr(EncodedSources, "_encode", encoded)
        monkeypatch.setattr(DecoderState, "step", stepped)
        found = model.generate([[5, 9, 33]], min_new_tokens=20, max_new_tokens=20)
        assert broken.is_set() and [type(error) for error in errors] == [Cancelled]
        assert [one.tokens for one in found] == [one.tokens for one in expected]


@pytest.mark.parametrize("kind", ["tiny_bundle", "causal_bundle"])
def test_eight_callers_of_which_most_give_up(kind: str, request: pytest.FixtureRequest) -> None:
    draw = random.Random(1)
    texts = [" ".join(f"w{draw.randrange(4, 40)}" for _ in range(draw.randrange(1, 12))) for _ in range(12)]
    wrong: list[str] = []
    with load(request.getfixturevalue(kind), threads=1) as model:
        made = [(way, draw.sample(texts, 1 + i % 3), 4 + 3 * i) for i, way in enumerate(WAYS * 2)]
        alone = [model.generate(inputs, max_new_tokens=tokens, **way) for way, inputs, tokens in made]

        def caller(seed: int) -> None:
            mine = random.Random(seed)
            for _ in range(30):
                place = mine.randrange(len(made))
                outcome = answered(model, made[place], alone[place], mine)
                if outcome:
                    wrong.append(outcome)

        threads = [threading.Thread(target=caller, args=(seed,), daemon=True) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
            assert not thread.is_alive()
    assert wrong == []


def answered(model: Model, call: tuple[dict[str, Any], list[str], int], expected: list[Any], draw: random.Random) -> str:
    """What was wrong with a call that may give up, or ""."""
    way, inputs, tokens = call
    given_up: dict[str, Any] = draw.choice([{}, {"timeout": draw.choice((1e-6, 0.002, 0.01))}, {"cancel": fixed()}])
    try:
        found = model.generate(inputs, max_new_tokens=tokens, **way, **given_up)
    except (Cancelled, GenerationTimeout) as error:
        return "" if given_up else repr(error)
    except Exception as error:
        return repr(error)
    return "" if [one.tokens for one in found] == [one.tokens for one in expected] else f"{way}: {found} for {expected}"
