"""Readers meet a bundle that is replaced while they read: they give the one before or the new one, whole, and no refusal."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onnxport.errors import BundleError, UsageError
from onnxport.runtime import load
from onnxport.runtime.bundle import reader
from onnxport.runtime.bundle.publish import publish, workspace
from onnxport.runtime.bundle.reader import Bundle, unreplaced
from onnxport.runtime.bundle.writer import extended_bundle
from onnxport.runtime.model import Model
from onnxport.runtime.verify import verify
from support import tiny_bundles as tiny

PROMPT = [4, 9, 17, 5]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Bundles of the same names and sizes with other weights; the second has a file more."""
    folder = tmp_path_factory.mktemp("two")
    first, second = (tiny.write_bundle(folder / f"{seed}", tiny.TinyModel("causal", seed=seed)) for seed in (1, 2))
    with extended_bundle(second) as staging:
        (staging.path / "fp32" / "more.txt").write_text("x")
        assert staging.manifest is not None
        staging.manifest["variants"]["fp32"]["files"].append("fp32/more.txt")
    return first, second


def put(bundle: Path, place: Path) -> None:
    with workspace(place) as folder:
        shutil.copytree(bundle, folder / place.name)
        publish(folder / place.name, place)


def answer(model: Model) -> list[int]:
    with model:
        return model.generate([PROMPT], max_new_tokens=6)[0].tokens


def once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, before: Callable[[], None]) -> None:
    """`before` is done before the first call."""
    real, calls = getattr(owner, name), []

    def call(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            before()
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_bundle_that_is_replaced_while_it_is_opened(
    two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: tuple[int, int]
) -> None:
    old, new = (two[i] for i in order)
    place = tmp_path / "bundle"
    put(old, place)
    once(monkeypatch, Bundle, "check_files", lambda: put(new, place))
    assert Bundle.open(place, verify=True).manifest == Bundle.open(new).manifest


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_bundle_that_is_replaced_while_it_is_loaded(
    two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: tuple[int, int]
) -> None:
    old, new = (two[i] for i in order)
    place = tmp_path / "bundle"
    put(old, place)
    wanted = answer(load(new, threads=1))
    assert wanted != answer(load(old, threads=1))
    once(monkeypatch, Model, "__init__", lambda: put(new, place))
    with load(place, threads=1) as model:
        assert model.bundle.manifest == Bundle.open(new).manifest
        assert model.generate([PROMPT], max_new_tokens=6)[0].tokens == wanted


def test_a_bundle_that_is_replaced_while_it_is_verified(two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "bundle"
    put(two[0], place)
    once(monkeypatch, Bundle, "unlisted", lambda: put(two[1], place))
    found = verify(place, threads=1)
    assert found["files"] == len(Bundle.open(two[1]).files) and found["unlisted"] == []


def test_what_is_wrong_with_a_bundle_that_stays_is_told_at_once(two: tuple[Path, Path], tmp_path: Path) -> None:
    place, calls = tmp_path / "bundle", []
    put(two[0], place)

    def read() -> None:
        calls.append(1)
        raise UsageError("no")

    with pytest.raises(UsageError):
        unreplaced([place, tmp_path / "none"], read)
    assert len(calls) == 1


def test_one_that_is_replaced_each_time_is_refused_in_the_end(two: tuple[Path, Path], tmp_path: Path) -> None:
    place, calls = tmp_path / "bundle", []
    put(two[0], place)

    def read() -> None:
        calls.append(1)
        put(two[len(calls) % 2], place)

    with pytest.raises(BundleError, match="replaced 3 times while it was read"):
        unreplaced([place], read, 3)
    assert len(calls) == 3


@pytest.mark.parametrize("fails", [False, True])
def test_the_same_bundle_written_once_more(two: tuple[Path, Path], tmp_path: Path, fails: bool) -> None:
    place, calls = tmp_path / "bundle", []
    put(two[0], place)

    def read() -> str:
        calls.append(1)
        if len(calls) == 1:
            put(two[1], place)  # and back
            put(two[0], place)
            if fails:
                raise BundleError("a file is missing")
        return "whole"

    assert unreplaced([place], read, by_content=True) == "whole" and len(calls) == 1 + fails
    calls.clear()
    assert unreplaced([place], read) == "whole" and len(calls) == 2


def keep_replacing(bundles: tuple[Path, Path], place: Path, times: int) -> None:
    for i in range(times):
        put(bundles[i % 2], place)


def test_readers_beside_a_writer_that_never_rests(two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader.unreplaced, "__defaults__", (10_000, lambda: None, False))  # it rests less than any command does
    place = tmp_path / "bundle"
    put(two[1], place)
    answers = [answer(load(bundle, threads=1)) for bundle in two]
    seen = []
    writer = multiprocessing.get_context("spawn").Process(target=keep_replacing, args=(two, place, 400))
    writer.start()
    try:
        while writer.is_alive():
            Bundle.open(place, verify=True)
            seen.append(answer(load(place, threads=1)))
            assert seen[-1] in answers
    finally:
        writer.kill()
        writer.join()
    assert verify(place, threads=1)["unlisted"] == []
