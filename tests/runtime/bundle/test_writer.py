"""Bundles appear whole or not at all."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from onnxport.errors import BundleError, OutputError
from onnxport.runtime.bundle import writer
from onnxport.runtime.bundle.reader import Bundle
from onnxport.runtime.bundle.writer import Staging, bundle_folder, extended_bundle

MANIFEST: dict[str, Any] = {
    "name": "n",
    "task": "tensor",
    "default": "fp32",
    "variants": {"fp32": {"files": ["a"], "graphs": {"model": "a"}}},
}


def fill(made: Staging, text: str = "x") -> None:
    (made.path / "a").write_text(text)
    made.manifest = json.loads(json.dumps(MANIFEST))


def make(out: Path, text: str = "x", force: bool = False) -> Path:
    with bundle_folder(out, force) as made:
        fill(made, text)
    return out


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_hashes_and_sizes_are_filled_in(tmp_path: Path) -> None:
    bundle = Bundle.open(make(tmp_path / "deep/out", "twelve bytes"), verify=True)
    assert bundle.files["a"].bytes == bundle.variants["fp32"].bytes == 12
    assert left(tmp_path / "deep") == ["out"]


def test_the_same_content_gives_the_same_manifest_anywhere(tmp_path: Path) -> None:
    one, two = make(tmp_path / "one"), make(tmp_path / "elsewhere/two")
    assert (one / "bundle.json").read_bytes() == (two / "bundle.json").read_bytes()


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_nothing_is_left_after_an_error(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), bundle_folder(tmp_path / "out") as made:
        fill(made)
        raise error
    assert left(tmp_path) == []


def test_an_existing_output_is_refused_and_stays(tmp_path: Path) -> None:
    out = make(tmp_path / "out", "old")
    with pytest.raises(OutputError, match="--force"):
        make(out, "new")
    assert (out / "a").read_text() == "old"


def test_force_replaces(tmp_path: Path) -> None:
    out = make(tmp_path / "out", "old")
    make(out, "new", force=True)
    assert (out / "a").read_text() == "new"
    assert left(tmp_path) == ["out"]


def test_force_spares_folders_that_are_no_bundles(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/letter").write_text("dear")
    with pytest.raises(OutputError, match="is no bundle"):
        make(tmp_path / "home", force=True)
    assert (tmp_path / "home/letter").read_text() == "dear"


def test_an_error_with_force_keeps_the_old_one(tmp_path: Path) -> None:
    out = make(tmp_path / "out", "old")
    with pytest.raises(RuntimeError), bundle_folder(out, force=True) as made:
        fill(made, "new")
        raise RuntimeError
    assert (out / "a").read_text() == "old"
    assert left(tmp_path) == ["out"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_errors_of_the_file_system_are_output_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def failing(path: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(writer, "sync", failing)
    with pytest.raises(OutputError, match=os.strerror(number)):
        make(tmp_path / "out")
    assert left(tmp_path) == []


def test_the_writer_of_a_file_may_run_out_of_space(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No space"), bundle_folder(tmp_path / "out") as made:
        fill(made)
        raise OSError(errno.ENOSPC, "No space left on device")
    assert left(tmp_path) == []


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError):
        make(tmp_path / "file/out")


def test_a_manifest_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not listed"), bundle_folder(tmp_path / "out") as made:
        fill(made)
        (made.path / "a").unlink()
    assert left(tmp_path) == []


def test_a_preview_is_a_bundle_before_its_time(tmp_path: Path) -> None:
    with bundle_folder(tmp_path / "out") as made:
        fill(made)
        assert made.preview().variants["fp32"].files == ("a",)
        assert not (tmp_path / "out").exists()


def test_a_variant_is_added_and_unknown_fields_survive(tmp_path: Path) -> None:
    with bundle_folder(tmp_path / "out") as made:
        fill(made)
        made.manifest = {**MANIFEST, "remark": {"kept": True}}
    with extended_bundle(tmp_path / "out") as made:
        (made.path / "b").write_text("bb")
        assert made.manifest is not None
        made.manifest["variants"]["int8"] = {"files": ["b"], "graphs": {"model": "b"}}
    bundle = Bundle.open(tmp_path / "out", verify=True)
    assert list(bundle.variants) == ["fp32", "int8"]
    assert bundle.manifest.as_dict()["remark"] == {"kept": True}
    assert left(tmp_path) == ["out"]


def test_adding_a_variant_fails_without_a_trace(tmp_path: Path) -> None:
    out = make(tmp_path / "out")
    before = (out / "bundle.json").read_bytes()
    with pytest.raises(KeyboardInterrupt), extended_bundle(out) as made:
        (made.path / "b").write_text("bb")
        raise KeyboardInterrupt
    assert (out / "bundle.json").read_bytes() == before
    assert left(out) == ["a", "bundle.json"]
    assert left(tmp_path) == ["out"]


@pytest.mark.parametrize("extend", [False, True])
def test_files_that_the_manifest_does_not_list_are_never_lost(tmp_path: Path, extend: bool) -> None:
    out = make(tmp_path / "out", "old")
    (out / "notes").mkdir()
    (out / "notes/mine").write_text("dear")
    with pytest.raises(OutputError, match=r"notes/mine.*move it elsewhere"):
        if extend:
            with extended_bundle(out):
                pass
        else:
            make(out, "new", force=True)
    assert (out / "notes/mine").read_text() == "dear"
    assert (out / "a").read_text() == "old"
    assert left(tmp_path) == ["out"]


def test_force_replaces_a_bundle_that_lost_a_file(tmp_path: Path) -> None:
    out = make(tmp_path / "out", "old")
    (out / "a").unlink()
    assert (make(out, "new", force=True) / "a").read_text() == "new"


def test_force_spares_a_folder_whose_manifest_cannot_be_read(tmp_path: Path) -> None:
    out = make(tmp_path / "out", "old")
    (out / "bundle.json").write_text("{")
    with pytest.raises(OutputError, match="is no bundle"):
        make(out, "new", force=True)
    assert (out / "a").read_text() == "old"
