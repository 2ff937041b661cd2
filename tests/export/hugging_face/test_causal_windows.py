"""Long prompts in chunks, and caches that hold no more than a sliding window: answers stay those of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onnxport.build.stages import build
from onnxport.runtime import load
from onnxport.runtime.bundle.manifest import LayerCache
from onnxport.runtime.decode import state
from onnxport.runtime.decode.cache import HostCache
from support import causal_folders

WINDOW = 8
MODELS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": WINDOW},  # in all layers
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1, "tie_word_embeddings": True},  # in the second
    "gpt2": {},  # in none
}


@pytest.fixture(scope="module", params=MODELS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """(transformers' model, ours)."""
    path = tmp_path_factory.mktemp("window")
    model = causal_folders.make(request.param, seed=3, **MODELS[request.param])
    model.save_pretrained(path / "model")
    build(path / "model", path / "bundle", precision=("fp32",))
    return model, load(path / "bundle", threads=1)


def prompts(*lengths: int) -> list[list[int]]:
    random = np.random.default_rng(5)
    return [random.integers(3, 97, length).tolist() for length in lengths]


def theirs(model: Any, given: list[list[int]], **options: Any) -> list[list[int]]:
    """Each prompt alone, through transformers."""
    found = []
    for prompt in given:
        ids = torch.tensor([prompt])
        with torch.no_grad():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **options)
        found.append(out[0, len(prompt) :].tolist())
    return found


@pytest.mark.parametrize("chunk", [1, 5, 8, 13, 512])
def test_chunks_of_any_size_give_the_same_answers(both: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """Rows shorter and longer than a chunk and than the window; one is a multiple of both."""
    model, ours = both
    monkeypatch.setattr(state, "PREFILL_CHUNK", chunk)
    given, steps = prompts(40, 1, 7, 16, 23), {"min_new_tokens": 12, "max_new_tokens": 12}
    assert [one.tokens for one in ours.generate(given, **steps)] == theirs(model, given, **steps)


def test_beams_move_rows_of_a_window(both: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, ours = both
    monkeypatch.setattr(state, "PREFILL_CHUNK", 6)
    given, steps = prompts(19, 3, 8), {"min_new_tokens": 20, "max_new_tokens": 20}
    assert [one.tokens for one in ours.generate(given, beam=3, **steps)] == theirs(model, given, num_beams=3, **steps)


def test_rows_that_end_leave_the_others_alone(both: tuple[Any, Any]) -> None:
    """Rows end at different steps, so that the batch is made smaller while it runs."""
    model, ours = both
    given = prompts(30, 11, 2, 25, 9, 17)
    most = [3, 25, 6, 40, 9, 14]
    wanted = [row[:n] for row, n in zip(theirs(model, given, min_new_tokens=40, max_new_tokens=40), most, strict=True)]
    batch = state.DecoderState(ours.engine, None, given, 40)
    batch.prefill()
    rows, found = list(range(6)), [[] for _ in given]  # type: list[int], list[list[int]]
    for _ in range(40):
        logits = batch.logits.numpy()
        for place, row in enumerate(rows):
            if batch.active[place]:
                token = int(np.where(np.arange(97) == 2, -np.inf, logits[place]).argmax())
                found[row].append(token)
                batch.ids[place] = token
                batch.active[place] = len(found[row]) < most[row]
        live = [place for place in range(len(rows)) if batch.active[place]]
        if not live:
            break
        if len(live) < len(rows):
            order = batch.compact(live)
            rows = [rows[place] for place in order]
        batch.step()
    assert found == wanted


def test_a_window_bounds_the_cache(both: tuple[Any, Any]) -> None:
    model, ours = both
    engine = ours.engine
    windowed = model.config.model_type == "mistral"
    assert engine.config.window == (WINDOW if windowed else None)
    batch = state.DecoderState(engine, None, prompts(70), 10)
    batch.prefill()
    assert batch.cache.arrays[0].shape[2] == (WINDOW if windowed else 128)
    before = batch.cache.arrays
    for _ in range(10):
        batch.step()
    assert batch.cache.arrays is before


def test_moved_rows_of_a_full_window_are_copied_whole() -> None:
    cache = HostCache((LayerCache(1, 4, window=3),), np.dtype(np.float32))
    cache.allocate(2, 50)
    for array in cache.arrays:
        array[0], array[1] = 1, 2
    cache.copy([(0, 1, 2)], 3)  # full, and not moved up yet: entries lie at their positions
    assert cache.arrays[0][0, 0, :, 0].tolist() == [1, 1, 2]
    cache.copy([(0, 1, 7)], 9)
    assert cache.bounded and all((array[0] == 2).all() for array in cache.arrays)


def test_parts_of_a_prompt_depend_on_its_own_length_only() -> None:
    rows: list[list[int]] = [list(range(1, 1 + n)) for n in (11, 3, 8, 4)]
    parts = list(state._chunks(rows, np.zeros(4, np.int64), 0, 4))
    assert [ids.shape[1] for ids, _, _ in parts] == [3, 4, 4]
    for i, row in enumerate(rows):
        pieces = [(ids[i], done[i], real[i]) for ids, done, real in parts]
        assert [t for ids, _, real in pieces for t in ids[:real].tolist()] == row
        assert [done for _, done, _ in pieces] == [max(0, len(row) - left) for left in (12, 8, 4)]
        assert [real for _, _, real in pieces] == list(np.diff([max(0, len(row) - left) for left in (12, 8, 4, 0)]))


def write_windowed(folder: Path, window: int) -> Path:
    return causal_folders.write(folder, "mistral", num_hidden_layers=2, sliding_window=window)


def test_half_precision_is_not_misled_by_what_a_cache_does_not_hold_yet(tmp_path: Path) -> None:
    """A cache as wide as a window that the golden answers do not fill."""
    bundle = build(write_windowed(tmp_path / "model", 512), tmp_path / "bundle", precision=("fp32", "fp16"))
    assert bundle.variants["fp16"].plan == {"*": "fp16"}


def test_a_bundle_has_its_window_in_every_precision(tmp_path: Path) -> None:
    bundle = build(write_windowed(tmp_path / "model", 5), tmp_path / "bundle", precision=("fp32", "fp16", "int8"))
    assert bundle.variants["fp16"].plan == {"*": "fp16"}
    assert bundle.generation is not None and bundle.generation.window == 5
    answers = [
        load(tmp_path / "bundle", precision="int8", threads=1).generate(given, max_new_tokens=9) for given in (prompts(30), prompts(30, 4))
    ]
    assert answers[0][0].tokens == answers[1][0].tokens
