"""Kept prompts: what is known of a text is found to the token, memory stays within its bound, and answers are those without it."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxport.errors import UsageError
from onnxport.runtime import Model, load
from onnxport.runtime.bundle.manifest import LayerCache
from onnxport.runtime.decode import state as states
from onnxport.runtime.decode.cache import HostCache
from onnxport.runtime.decode.prompt_cache import PromptCache
from support import tiny_bundles as tiny

LAYERS = [LayerCache(2, 4), LayerCache(1, 8)]
TOKEN = 4 * 2 * (2 * 4 + 8) + 8  # bytes of an entry of all layers and its id


def filled(ids: list[int], window: int | None = None) -> HostCache:
    """A cache of one row whose entry at each position tells the id there and the position."""
    cache = HostCache([LayerCache(layer.kv_heads, layer.head_size, window) for layer in LAYERS], np.dtype(np.float32))
    cache.allocate(1, len(ids))
    for array in cache.arrays:
        for position, one in enumerate(ids):
            array[0, :, position] = 1000 * position + one
    return cache


def known(kept: PromptCache, ids: list[int]) -> int:
    """How much is known of a text, whose entries are checked."""
    found = kept.find([*ids, 0])
    cache = filled([0] * max(len(ids), 1))
    found.put(cache, 0)
    for array, whole in zip(cache.arrays, filled(ids or [0]).arrays, strict=True):
        np.testing.assert_array_equal(array[0, :, : found.length], whole[0, :, : found.length])
    return found.length


def test_what_texts_have_in_common_is_known_to_the_token() -> None:
    kept = PromptCache(1 << 20)
    first, second = [*range(1, 11)], [1, 2, 3, 4, 50, 51, 52]
    for ids in (first, second, [*second, 60, 61], [9, 9]):
        kept.add(ids, filled(ids), 0)
    assert kept.size == TOKEN * (10 + 3 + 2 + 2) + 8 * (4 + 7)  # each entry once, the ids of a text whole
    cases = [
        (first, 10),
        ([*first, 7, 7], 10),
        (second, 7),
        ([*second, 60, 99], 8),
        ([1, 2, 3, 4, 50, 77], 5),
        ([1, 8], 1),
        ([8], 0),
        ([], 0),
    ]
    for ids, length in cases:
        assert known(kept, ids) == length
    assert kept.find(first).length == 9  # the last is left to run


def test_what_can_never_fit_lets_nothing_go() -> None:
    kept = PromptCache(TOKEN * 25)
    known_text, other = [*range(100, 110)], [*range(200, 205)]
    for ids in (known_text, other):
        kept.add(ids, filled(ids), 0)
    for large in ([*range(300, 340)], [*known_text, *range(300, 320)]):  # more than all, and more than all beside what it stands on
        kept.add(large, filled(large), 0)
        assert [known(kept, ids) for ids in (known_text, other)] == [10, 5]
    assert all(segment.children == 0 for segment in kept._segments)


def test_memory_is_bounded_and_the_least_used_goes_first() -> None:
    kept = PromptCache(TOKEN * 25)
    for start in (100, 200):
        ids = [*range(start, start + 10)]
        kept.add(ids, filled(ids), 0)
    assert known(kept, [*range(100, 110)]) == 10  # now 200 was not used for longest
    kept.add([*range(300, 310)], filled([*range(300, 310)]), 0)
    assert [known(kept, [*range(start, start + 10)]) for start in (100, 200, 300)] == [10, 0, 10]
    longer = [*range(300, 310), *range(12)]
    kept.add(longer, filled(longer), 0)  # needs the place of 100, and never that of what it stands on
    assert [known(kept, ids) for ids in ([*range(100, 110)], longer)] == [0, 22]
    kept.add([*range(400, 440)], filled([*range(400, 440)]), 0)
    assert known(kept, [*range(400, 440)]) == 0 and kept.size <= kept.most
    rng = random.Random(0)
    for _ in range(300):
        ids = [rng.randrange(3) for _ in range(rng.randrange(1, 20))]
        kept.add(ids, filled(ids), 0)
        known(kept, ids)
        assert kept.size == sum(segment.size for segment in kept._segments) <= kept.most


def test_texts_beyond_a_window_are_not_kept() -> None:
    kept = PromptCache(1 << 20, window=6)
    kept.add([*range(7)], filled([*range(7)]), 0)
    assert known(kept, [*range(7)]) == 0
    kept.add([*range(6)], filled([*range(6)], 6), 0)
    assert known(kept, [*range(7)]) == 6


@pytest.fixture
def both(causal_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model without a prompt cache and with one; prompts run five ids at a time."""
    monkeypatch.setattr(states, "PREFILL_CHUNK", 5)
    with load(causal_bundle, threads=1) as plain, load(causal_bundle, threads=1, prefix_cache_mb=1) as keeping:
        yield plain, keeping


def test_turns_of_a_chat_pay_for_what_is_new(both: tuple[Model, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    plain, keeping = both
    history = [1, 5, 9, 33]
    read: list[int] = []
    run = states.DecoderState._run_part
    monkeypatch.setattr(states.DecoderState, "_run_part", lambda state, part: (read.append(int(part[2].sum())), run(state, part))[1])
    before = 0
    for turn in range(4):
        expected = plain.generate([history], min_new_tokens=4, max_new_tokens=4)[0]
        read.clear()
        found = keeping.generate([history], min_new_tokens=4, max_new_tokens=4)[0]
        assert (found.tokens, found.text) == (expected.tokens, expected.text)
        assert found.token_logprobs == pytest.approx(expected.token_logprobs, abs=1e-4)
        assert found.cached_tokens == before and sum(read) == len(history) - before and expected.cached_tokens == 0
        before = len(history) + 3  # the last token of an answer was not read
        history = [*history, *found.tokens, 7 + turn, 20, 21]


@pytest.mark.parametrize("options", [{"beam": 1}, {"beam": 3}, {"temperature": 2.0, "seed": 3}], ids=["greedy", "beams", "sampled"])
def test_many_questions_on_one_text(both: tuple[Model, Model], options: dict[str, Any]) -> None:
    plain, keeping = both
    rng = random.Random(5)
    text = [1, *rng.choices(range(4, tiny.VOCABULARY), k=17)]
    questions = [[*text, *rng.choices(range(4, tiny.VOCABULARY), k=rng.randrange(1, 9))] for _ in range(9)]
    keeping.generate([text], max_new_tokens=1)
    expected, found = (model.generate(questions, max_new_tokens=6, **options) for model in both)
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    assert all(one.cached_tokens >= len(text) for one in found)
    with keeping.stream(questions[0], max_new_tokens=6, seed=9) as stream:
        list(stream)
    assert stream.result.cached_tokens == len(questions[0]) - 1


def test_threads_that_share_beginnings(both: tuple[Model, Model]) -> None:
    plain, keeping = both
    rng = random.Random(2)
    text = rng.choices(range(4, tiny.VOCABULARY), k=30)
    prompts = [text[: rng.randrange(1, 30)] + rng.choices(range(4, 8), k=3) for _ in range(30)]
    expected = [plain.generate([prompt], max_new_tokens=8)[0].tokens for prompt in prompts]
    wrong: list[int] = []

    def caller(first: int) -> None:
        for i in range(first, len(prompts), 5):
            if keeping.generate([prompts[i]], max_new_tokens=8)[0].tokens != expected[i]:
                wrong.append(i)

    threads = [threading.Thread(target=caller, args=(first,), daemon=True) for first in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    kept = keeping.engine.prompt_cache
    assert wrong == [] and 0 < kept.size <= kept.most


def test_models_that_keep_no_prompts_say_so(tiny_bundle: Path, causal_bundle: Path) -> None:
    with pytest.raises(UsageError, match="language models"):
        load(tiny_bundle, prefix_cache_mb=8)
    for bad in (0, 1.5, True):
        with pytest.raises(UsageError, match="prefix_cache_mb is"):
            load(causal_bundle, prefix_cache_mb=bad)  # type: ignore[arg-type]
