"""Both kinds of cache move rows as plain indexing does; the device's kind is run on the CPU provider."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from onnxport.graph.search_graphs import reorder_graph
from onnxport.runtime import load
from onnxport.runtime.bundle.manifest import LayerCache
from onnxport.runtime.decode.cache import Cache, DeviceCache, HostCache, Move
from onnxport.runtime.sessions import CPU

LAYERS = (LayerCache(2, 8), LayerCache(2, 8))


def device_cache(dtype: np.dtype) -> DeviceCache:
    session = onnxruntime.InferenceSession(reorder_graph(2 * len(LAYERS), str(np.dtype(dtype))), providers=["CPUExecutionProvider"])
    return DeviceCache(LAYERS, dtype, CPU, session)


@pytest.fixture(params=["host32", "host16", "device32", "device16"])
def cache(request: pytest.FixtureRequest) -> Cache:
    dtype = np.dtype(np.float32 if request.param.endswith("32") else np.float16)
    return HostCache(LAYERS, dtype) if request.param.startswith("host") else device_cache(dtype)


def filled(cache: Cache, rows: int, capacity: int) -> list[np.ndarray]:
    cache.allocate(rows, capacity)
    rng, made = np.random.default_rng(0), []
    for value in cache.values:
        array = rng.standard_normal(value.shape()).astype(cache.dtype)
        value.update_inplace(array)
        made.append(array)
    return made


def test_copy(cache: Cache) -> None:
    before = filled(cache, 5, 70)
    for array in before:  # rows that begin alike, as beams of one source do
        array[2, :, :10] = array[1, :, :10]
        array[4, :, :7] = array[3, :, :7]
    for value, array in zip(cache.values, before, strict=True):
        value.update_inplace(array)
    cache.copy([(2, 1, 10), (4, 3, 7)], 30)
    for value, array in zip(cache.values, before, strict=True):
        np.testing.assert_array_equal(value.numpy()[:, :, :30], array[[0, 1, 1, 3, 3]][:, :, :30])


def test_copy_of_nothing_changes_nothing(cache: Cache) -> None:
    before = filled(cache, 3, 10)
    values = cache.values
    cache.copy([], 10)
    assert cache.values is values
    for value, array in zip(cache.values, before, strict=True):
        np.testing.assert_array_equal(value.numpy(), array)


@pytest.mark.parametrize("rows", [[0, 0, 1, 1, 2, 2], [2], [1, 0]])
def test_select(cache: Cache, rows: list[int]) -> None:
    before = filled(cache, 3, 10)
    cache.select(np.array(rows), 7, 100)
    assert cache.rows == len(rows)
    assert cache.capacity >= 100
    for value, array in zip(cache.values, before, strict=True):
        assert value.shape()[0] == len(rows)
        assert value.shape()[2] == cache.capacity
        np.testing.assert_array_equal(value.numpy()[:, :, :7], array[rows][:, :, :7])


def test_grow(cache: Cache) -> None:
    before = filled(cache, 3, 10)
    cache.grow(200, 10)
    assert cache.capacity >= 200
    for value, array in zip(cache.values, before, strict=True):
        np.testing.assert_array_equal(value.numpy()[:, :, :10], array[:, :, :10])


@pytest.mark.parametrize("kind", ["seq2seq", "causal"])
def test_generation_with_the_device_cache(kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    path: Path = request.getfixturevalue("tiny_bundle" if kind == "seq2seq" else "causal_bundle")
    inputs = [[5, 6, 7, 2], [9, 2], [30, 31, 32, 33, 2], [11, 12, 2]]
    with load(path, threads=1) as model:
        expected = [model.generate(inputs, beam=b, min_new_tokens=8, max_new_tokens=12) for b in (1, 4)]
        engine = model.engine
        assert engine is not None
        made: list[DeviceCache] = []

        def new_cache() -> DeviceCache:
            made.append(DeviceCache(engine.config.layer_caches, np.dtype(np.float32), CPU, engine.search("reorder")))
            return made[-1]

        monkeypatch.setattr(engine, "new_cache", new_cache)
        assert [model.generate(inputs, beam=b, min_new_tokens=8, max_new_tokens=12) for b in (1, 4)] == expected
        assert len(made) == 2


def test_beams_copy_only_what_differs(model: object, monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[tuple[int, int]] = []
    copy = HostCache.copy

    def watched(self: HostCache, moves: Sequence[Move], used: int) -> None:
        assert not {target for target, _, _ in moves} & {source for _, source, _ in moves}
        for target, source, start in moves:  # what the caller claims: equal before `start`
            for array in self.arrays:
                np.testing.assert_array_equal(array[target, :, :start], array[source, :, :start])
            starts.append((start, used))
        copy(self, moves, used)

    monkeypatch.setattr(HostCache, "copy", watched)
    model.generate([[5, 6, 7, 2], [9, 2]], beam=4, min_new_tokens=20, max_new_tokens=20)  # type: ignore[attr-defined]
    assert any(start > 0 for start, _ in starts)
    assert any(start < used for start, used in starts)


def test_layers_may_keep_caches_of_their_own() -> None:
    cache = HostCache((LayerCache(2, 8, window=3), LayerCache(1, 16)), np.dtype(np.float32))
    cache.allocate(2, 10)
    assert [array.shape for array in cache.arrays] == [(2, 2, 3, 8)] * 2 + [(2, 1, 64, 16)] * 2
    assert not cache.bounded
    for array in cache.arrays:
        array[0], array[1] = 1, 2
    cache.grow(100, 10)
    assert [array.shape[2] for array in cache.arrays] == [3, 3, 128, 128]
    cache.copy([(0, 1, 7)], 10)
    assert all((array[0] == 2).all() for array in cache.arrays[:2])  # moved up: copied whole
    assert (cache.arrays[2][0, :, :7] == 1).all() and (cache.arrays[2][0, :, 7:10] == 2).all()
    cache.select(np.array([1, 1, 0]), 10, 100)
    assert [array.shape[:3:2] for array in cache.arrays] == [(3, 3)] * 2 + [(3, 128)] * 2
