"""Bounds on what decodes together: no batch ever has more rows or bytes, answers stay the same, and what is too much goes alone."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from onnxport.errors import UsageError
from onnxport.runtime import Model, load
from onnxport.runtime.decode.batch import Batch
from onnxport.runtime.decode.engine import BatchBounds
from onnxport.runtime.options import Memory, Options, Watch
from support import tiny_bundles as tiny
from support import tiny_encoder

from .test_refill import assert_same, ragged

POSITION = tiny.LAYERS * 2 * tiny.HEADS * tiny.SIZE * 4  # bytes
STEP = 64  # positions that a cache's rows are rounded up to


class Watched:
    """What was in batches together, at every step: requests of a batch and of what joins it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.together: list[list[tuple[int, int]]] = []  # (positions, tokens of the source) of each
        step = Batch.step

        def watched(batch, waiting):  # type: ignore[no-untyped-def]
            ended = step(batch, waiting)
            every = [*batch._decodings, *(batch._joining._decodings if batch._joining is not None else [])]
            there = [one.request for one in every if not one.done or one in ended]
            self.together.append([(len(one.prefix) + one.limit - 1, len(one.source)) for one in there])
            return ended

        monkeypatch.setattr(Batch, "step", watched)

    @property
    def most(self) -> int:
        """Requests."""
        return max(map(len, self.together))

    def most_bytes(self, beam: int) -> int:
        """Of batches with more than one request."""
        sizes = [0]
        for batch in self.together:
            if len(batch) > 1:
                longest, source = (max(one[i] for one in batch) for i in (0, 1))
                sizes.append(POSITION * len(batch) * (beam * (-(-longest // STEP) * STEP) + source))
        return max(sizes)


@pytest.fixture(scope="module", params=["seq2seq", "causal"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model that ends its answers early and late."""
    made = tiny.TinyModel(request.param, seed=2, positions=200)
    made.w["head"][:, tiny.EOS] *= 2.5
    return tiny.write_bundle(tmp_path_factory.mktemp("bounded") / request.param, made)


@pytest.mark.parametrize(("beam", "rows", "texts"), [(1, 6, 6), (3, 7, 2), (3, 2, 1)])
def test_rows_are_bounded(bundle: Path, monkeypatch: pytest.MonkeyPatch, beam: int, rows: int, texts: int) -> None:
    inputs = ragged(20, seed=beam)
    with load(bundle, threads=1) as free, load(bundle, threads=1, batch_rows=rows) as bounded:
        expected = free.generate(inputs, beam=beam, max_new_tokens=12)
        watched = Watched(monkeypatch)
        assert_same(bounded.generate(inputs, beam=beam, max_new_tokens=12), expected)
    assert watched.most == texts


@pytest.mark.parametrize("beam", [1, 2])
def test_bytes_of_keys_and_values_are_bounded(bundle: Path, monkeypatch: pytest.MonkeyPatch, beam: int) -> None:
    inputs, limits = [*ragged(9, seed=4), *ragged(3, seed=5, most=90), *ragged(9, seed=6)], (9, 80)
    with load(bundle, threads=1) as model:
        assert model.engine is not None
        expected = [model.generate(inputs, beam=beam, max_new_tokens=most) for most in limits]
        bound = POSITION * beam * (5 * STEP + 30)
        model.engine.bounds = BatchBounds(cache_bytes=bound)
        watched = Watched(monkeypatch)
        for most, answers in zip(limits, expected, strict=True):
            assert_same(model.generate(inputs, beam=beam, max_new_tokens=most), answers)
    assert bound / 2 < watched.most_bytes(beam) <= bound
    assert 2 < watched.most <= 6


def test_what_is_over_a_bound_alone_is_answered_alone(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = ragged(5, seed=8)
    with load(bundle, threads=1) as model:
        assert model.engine is not None
        expected = model.generate(inputs, max_new_tokens=9)
        model.engine.bounds = BatchBounds(cache_bytes=1)
        watched = Watched(monkeypatch)
        assert_same(model.generate(inputs, max_new_tokens=9), expected)
    assert watched.most == 1


def test_calls_that_share_a_batch_share_the_bound(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, options, watch = ragged(16, seed=9), Options(max_new_tokens=15), Watch()
    with load(bundle, threads=1, batch_rows=3) as model:
        expected = [model.generate([one], max_new_tokens=15)[0] for one in inputs]
        watched, generator = Watched(monkeypatch), model.generating()
        jobs = [generator.prepare(inputs[i : i + 2], None, options, watch) for i in range(0, len(inputs), 2)]
        entered = [generator.enter(job) for job in jobs]
        found = [job.results(shared.run(call, watch)) for job, (shared, call) in zip(jobs, entered, strict=True)]
    assert_same([one for answers in found for one in answers], expected)
    assert watched.most == 3


def test_a_draft_has_keys_and_values_too(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = ragged(8, seed=3, most=9)
    with load(bundle, threads=1) as model, load(bundle, threads=1) as draft:
        assert model.engine is not None
        model.engine.bounds = BatchBounds(cache_bytes=4 * POSITION * (STEP + 10))
        watched = Watched(monkeypatch)
        model.generate(inputs, max_new_tokens=5)
        alone, watched.together = watched.most, []
        model.generate(inputs, max_new_tokens=5, draft=draft)
        assert (alone, watched.most) == (4, 2)


def test_bounds_are_checked_and_travel_with_the_model(bundle: Path, tmp_path: Path) -> None:
    for name in ("batch_rows", "batch_cache_mb"):
        for bad in (0, -1, 1.5, True):
            with pytest.raises(UsageError, match=f"{name} is {bad}, expected a whole number from 1"):
                load(bundle, **{name: bad})  # type: ignore[arg-type]
        vectors = tiny_encoder.write(tmp_path / name, "embedding", tiny_encoder.table(8), pooling="mean")
        with pytest.raises(UsageError, match=f"{name} is for models that generate; this bundle's task is embedding"):
            load(vectors, **{name: 8})  # type: ignore[arg-type]
    with load(bundle, threads=1, batch_rows=4, batch_cache_mb=2) as model, pickle.loads(pickle.dumps(model)) as again:
        assert again.engine.bounds == BatchBounds(4, 2 << 20)
        assert isinstance(again, Model) and Memory(batch_rows=4).given == ["batch_rows"]
