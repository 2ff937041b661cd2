"""Calls from event loops share batches with all others, hold no thread while they wait, and leave at once when they are cancelled."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from onnxport.errors import Cancelled, GenerationTimeout, TextError, UsageError
from onnxport.runtime import Generation, Model, load
from onnxport.runtime.asynchronous import AsyncStream
from onnxport.runtime.decode.state import DecoderState
from support import tiny_encoder

LENGTH = {"min_new_tokens": 12, "max_new_tokens": 12}
TEXTS = ["w5 w9", "w7", "w30 w4 w11 w6", "w8 w9 w10", "w21 w22"]


@pytest.fixture(params=["tiny_bundle", "causal_bundle"])
def loaded(request: pytest.FixtureRequest) -> Iterator[Model]:
    with load(request.getfixturevalue(request.param), threads=1) as model:
        yield model


def calls_inside(model: Model) -> int:
    return sum(len(shared._calls) for shared in model.generating()._shared_batches.values())


async def joined(stream: AsyncStream) -> tuple[str, Generation | None]:
    return "".join([piece async for piece in stream]), stream.result


def test_awaited_answers_are_those_of_the_plain_calls(loaded: Model) -> None:
    expected = [loaded.generate(text, **LENGTH)[0] for text in TEXTS]
    before = threading.active_count()
    most = 0

    async def all_of_them() -> list[object]:
        nonlocal most

        async def watching() -> None:
            nonlocal most
            while True:
                most = max(most, threading.active_count())
                await asyncio.sleep(0)

        watcher = asyncio.create_task(watching())
        found = await asyncio.gather(
            *(loaded.agenerate(text, **LENGTH) for text in TEXTS),
            *(joined(loaded.astream(text, **LENGTH)) for text in TEXTS),
            loaded.agenerate(TEXTS, beam=2, max_new_tokens=3),
        )
        watcher.cancel()
        return found

    found = asyncio.run(all_of_them())
    count = len(TEXTS)
    assert [one[0].tokens for one in found[:count]] == [one.tokens for one in expected]
    assert [(text, result.tokens) for text, result in found[count : 2 * count]] == [(one.text, one.tokens) for one in expected]
    assert [one.tokens for one in found[-1]] == [one.tokens for one in loaded.generate(TEXTS, beam=2, max_new_tokens=3)]
    assert most <= before + 3  # the background's, and one for each of two batches
    assert calls_inside(loaded) == 0


def test_calls_of_threads_and_of_two_loops_are_stepped_together(loaded: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [loaded.generate(text, **LENGTH)[0].tokens for text in TEXTS[:3]]
    rows: list[int] = []
    step, ready = DecoderState.step, threading.Barrier(3)

    def counted(state: DecoderState) -> None:
        if not rows:
            while calls_inside(loaded) < 3:
                threading.Event().wait(0.001)
        rows.append(int(state.active.sum()))
        step(state)

    monkeypatch.setattr(DecoderState, "step", counted)
    found: dict[int, list[int]] = {}

    def caller(i: int) -> None:
        ready.wait(60)
        answers = loaded.generate(TEXTS[i], **LENGTH) if i == 0 else asyncio.run(loaded.agenerate(TEXTS[i], **LENGTH))
        found[i] = answers[0].tokens

    threads = [threading.Thread(target=caller, args=(i,), daemon=True) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert [found[i] for i in range(3)] == expected and max(rows) == 3 and len(rows) < 20


def test_a_cancelled_task_leaves_and_the_others_go_on(loaded: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    length = {"min_new_tokens": 40, "max_new_tokens": 40}
    expected = loaded.generate(TEXTS[0], **length)[0].text
    step = DecoderState.step
    monkeypatch.setattr(DecoderState, "step", lambda self: (time.sleep(0.05), step(self))[1])  # none ends before another has begun

    async def some_give_up() -> str:
        kept, left = loaded.astream(TEXTS[0], **length), loaded.astream(TEXTS[1], **length)
        pieces = [await anext(kept), await anext(kept)]
        await anext(left)
        waiting = asyncio.create_task(loaded.agenerate(TEXTS[2], **length))
        while calls_inside(loaded) < 3:
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await left.aclose()
        assert left.result is None and [piece async for piece in left] == []
        async with loaded.astream(TEXTS[3], **LENGTH) as third:
            await anext(third)
        pieces += [piece async for piece in kept]
        return "".join(pieces)

    assert asyncio.run(some_give_up()) == expected
    end = threading.Event()
    while calls_inside(loaded):  # who led for a call takes it out after its step
        end.wait(0.001)


def test_limits_and_errors_are_those_of_the_plain_calls(loaded: Model) -> None:
    flag = threading.Event()
    flag.set()

    async def each() -> None:
        with pytest.raises(GenerationTimeout):
            await loaded.agenerate(TEXTS, timeout=1e-6, **LENGTH)
        with pytest.raises(Cancelled):
            await anext(loaded.astream("w5", cancel=flag, **LENGTH))
        with pytest.raises(TextError):
            await loaded.agenerate([[999]])
        with pytest.raises(TextError):
            await anext(loaded.astream([999]))
        with pytest.raises(UsageError, match="beam is 2"):
            await anext(loaded.astream("w5", beam=2))
        with pytest.raises(TypeError, match="beams"):
            await loaded.agenerate("w5", beams=2)  # type: ignore[call-arg]
        with pytest.raises(UsageError, match="use generate"):
            await loaded.aencode("w5")
        assert (await loaded.agenerate(""))[0].finish_reason == "empty"
        assert await joined(loaded.astream(""))

    asyncio.run(each())
    assert calls_inside(loaded) == 0


def test_what_breaks_a_batch_reaches_the_task(loaded: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(state: DecoderState) -> None:
        raise ValueError("a step that fails")

    monkeypatch.setattr(DecoderState, "step", broken)

    async def both() -> list[object]:
        calls = (loaded.agenerate(text, **LENGTH) for text in TEXTS[:2])
        return await asyncio.gather(*calls, return_exceptions=True)

    assert [str(error) for error in asyncio.run(both())] == ["a step that fails"] * 2


def test_a_closed_model_says_so(causal_bundle: Path) -> None:
    async def closed_between() -> None:
        with load(causal_bundle, threads=1) as model:
            stream = model.astream("w5", **LENGTH)
            await anext(stream)
        with pytest.raises(UsageError, match="closed"):
            await anext(stream)
        for call in (model.agenerate("w5"), model.achat([]), model.aencode("w5")):
            with pytest.raises(UsageError, match="closed"):
                await call
        with pytest.raises(UsageError, match="closed"):
            model.astream("w5")

    asyncio.run(closed_between())


def test_models_of_one_pass_are_awaited_too(tmp_path: Path) -> None:
    bundle = tiny_encoder.write(tmp_path / "encoder", "embedding", tiny_encoder.table(8))

    async def vectors(model: Model) -> list[np.ndarray]:
        return await asyncio.gather(*(model.aencode(text) for text in ("w5", "w6 w7")))

    with load(bundle, threads=1) as model:
        for found, text in zip(asyncio.run(vectors(model)), ("w5", "w6 w7"), strict=True):
            np.testing.assert_array_equal(found, model.encode(text))


END = """
import asyncio, sys
from onnxport.runtime import load
model = load(sys.argv[1], threads=1)
async def main():
    tasks = [asyncio.create_task(model.agenerate("w5 w9", min_new_tokens=40, max_new_tokens=40)) for _ in range(3)]
    async for piece in model.astream("w5", min_new_tokens=4, max_new_tokens=4):
        pass
    print("left")
asyncio.run(main())
"""


def test_the_interpreter_ends_while_calls_are_under_way(causal_bundle: Path) -> None:
    done = subprocess.run([sys.executable, "-c", END, str(causal_bundle)], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "left\n", "")
