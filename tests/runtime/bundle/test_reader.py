"""Every way a bundle can be wrong is refused with one line that names it."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onnxport.errors import BundleError, OnnxportError
from onnxport.runtime import load
from onnxport.runtime.bundle.reader import FORMAT, Bundle


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


def refused(path: Path, *parts: str, verify: bool = False) -> None:
    with pytest.raises(BundleError) as caught:
        Bundle.open(path, verify)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    manifest = json.loads((path / "bundle.json").read_text())
    change(manifest)
    (path / "bundle.json").write_text(json.dumps(manifest))
    return path


def test_a_good_bundle_opens(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle, verify=True)
    assert bundle.generation is not None
    assert bundle.generation.eos_ids == (2,)
    assert bundle.variants["fp32"].graphs["decoder"] == "fp32/decoder.onnx"
    assert bundle.unlisted() == []


def test_nothing_there(tmp_path: Path) -> None:
    refused(tmp_path / "absent", "nothing", "onnxport export")


def test_a_file_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "a file")


def test_a_folder_without_a_manifest(tmp_path: Path) -> None:
    refused(tmp_path, "no bundle.json")


@pytest.mark.parametrize("text", ["{", "", "\udcff", "[" * 100_000])
def test_broken_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "bundle.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(tmp_path, "not valid JSON")


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_constants_that_json_does_not_have(tmp_path: Path, constant: str) -> None:
    (tmp_path / "bundle.json").write_text(f'{{"format": 1, "bound": {constant}}}')
    refused(tmp_path, "not valid JSON", constant)


def test_names_that_no_file_can_have(copy: Path) -> None:
    refused(edit(copy, lambda m: m["files"].update({"x" * 300: {"sha256": "", "bytes": 1}})), "x" * 300)
    refused(copy / ("y" * 300), "y" * 300)


def test_a_folder_that_may_not_be_read(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = Path.stat

    def failing(path: Path, **options: Any) -> os.stat_result:
        if path.name == "decoder.onnx":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", failing)
    refused(copy, "decoder.onnx", "Permission denied")


def test_a_manifest_that_is_no_object(tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text("[1]")
    refused(tmp_path, "list")


def test_a_newer_format(copy: Path) -> None:
    refused(edit(copy, lambda m: m.update(format=FORMAT + 1)), "made by a newer onnxport", "upgrade")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda m: m.update(format="1"), "format is str"),
        (lambda m: m.update(format=True), "format is bool"),
        (lambda m: m.update(format=0), "format 0"),
        (lambda m: m.pop("name"), "no 'name'"),
        (lambda m: m.update(files=[]), "files is list"),
        (lambda m: m.update(task="poetry"), "poetry"),
        (lambda m: m.update(default="int3"), "int3"),
        (lambda m: m.update(variants={}), "fp32"),
        (lambda m: m["variants"].update(fp32=3), "variants.fp32 is int"),
        (lambda m: m["variants"]["fp32"].update(files="x"), "variants.fp32.files is str"),
        (lambda m: m["variants"]["fp32"].update(files=[1]), "variants.fp32.files"),
        (lambda m: m["variants"]["fp32"].update(bytes=-1), "-1"),
        (lambda m: m["variants"]["fp32"]["graphs"].update(decoder="tokenizer.json"), "its files lack"),
        (lambda m: m["files"].pop("fp32/decoder.onnx"), "not listed"),
        (lambda m: m["files"]["fp32/decoder.onnx"].pop("sha256"), "sha256"),
        (lambda m: m["search"].update(greedy=1), "search"),
        (lambda m: m.update(golden=3), "golden is int"),
        (lambda m: m["generation"].update(kind="diffusion"), "diffusion"),
        (lambda m: m["generation"].update(layers=0), "layers is 0"),
        (lambda m: m["generation"].update(layers="2"), "layers is str"),
        (lambda m: m["generation"].update(eos_id=["2"]), "eos_id"),
        (lambda m: m["generation"].update(eos_id=400), "400"),
        (lambda m: m["generation"].update(eos_id=40, source_vocab_size=400), "id 40 outside a vocabulary of 40"),
        (lambda m: m["generation"].update(pad_id=30, source_vocab_size=20), "id 30 outside a vocabulary of 20"),
        (lambda m: m["generation"].pop("decoder_start_id"), "decoder_start_id"),
        (lambda m: m.update(generation=[]), "generation is list"),
        (lambda m: m.update(encoding={"pooling": "max"}), "max"),
    ],
)
def test_wrong_fields(copy: Path, change: Callable[[dict[str, Any]], object], part: str) -> None:
    refused(edit(copy, change), part)


@pytest.mark.parametrize("name", ["/etc/passwd", "../outside", "fp32/../../outside", "C:\\x", "a\\..\\..\\b", "", "bundle.json"])
def test_paths_that_leave_the_bundle(copy: Path, name: str) -> None:
    entry = {"sha256": "", "bytes": 1}
    refused(edit(copy, lambda m: m["files"].update({name: entry})), "not allowed")


def test_a_link_that_leaves_the_bundle(copy: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.json"
    shutil.move(copy / "tokenizer.json", outside)
    (copy / "tokenizer.json").symlink_to(outside)
    refused(copy, "tokenizer.json", "link")


def test_a_folder_link_that_leaves_the_bundle(copy: Path, tmp_path: Path) -> None:
    shutil.move(copy / "fp32", tmp_path / "elsewhere")
    (copy / "fp32").symlink_to(tmp_path / "elsewhere")
    refused(copy, "link")


def test_a_missing_file(copy: Path) -> None:
    (copy / "fp32/decoder.onnx").unlink()
    refused(copy, "fp32/decoder.onnx is missing")


def test_a_folder_in_place_of_a_file(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer.json").mkdir()
    refused(copy, "tokenizer.json is not a file")


def test_another_size(copy: Path) -> None:
    with (copy / "fp32/decoder.onnx").open("ab") as f:
        f.write(b"x")
    refused(copy, "fp32/decoder.onnx has", "bytes")


def test_a_changed_byte_is_found_by_verify_only(copy: Path) -> None:
    data = bytearray((copy / "fp32/decoder.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "fp32/decoder.onnx").write_bytes(data)
    Bundle.open(copy)
    refused(copy, "fp32/decoder.onnx has changed", verify=True)
    with pytest.raises(BundleError, match="has changed"):
        load(copy, verify=True)


def test_a_graph_that_is_none(copy: Path) -> None:
    size = (copy / "fp32/decoder.onnx").stat().st_size
    (copy / "fp32/decoder.onnx").write_bytes(b"\xff" * size)
    with pytest.raises(BundleError, match=r"fp32/decoder.onnx.*cannot load"):
        load(copy, threads=1)


def test_a_tokenizer_that_is_none(copy: Path) -> None:
    size = (copy / "tokenizer.json").stat().st_size
    (copy / "tokenizer.json").write_bytes(b" " * size)
    with pytest.raises(BundleError, match="not a usable tokenizer"):
        load(copy, threads=1)


def test_a_decoder_that_is_not_fused(copy: Path) -> None:
    edit(copy, lambda m: m["variants"]["fp32"]["graphs"].update(decoder="fp32/encoder.onnx"))
    with pytest.raises(BundleError, match="expected a fused decoder"):
        load(copy, threads=1)


def test_a_role_that_is_absent(copy: Path) -> None:
    edit(copy, lambda m: m["variants"]["fp32"]["graphs"].pop("encoder"))
    with pytest.raises(BundleError, match="no encoder graph"):
        load(copy, threads=1)


def test_unlisted_files_are_told(copy: Path) -> None:
    (copy / "fp32/stray").write_text("x")
    assert Bundle.open(copy).unlisted() == ["fp32/stray"]


def test_the_error_is_a_value_error_with_exit_code_4() -> None:
    assert issubclass(BundleError, ValueError)
    assert issubclass(BundleError, OnnxportError)
    assert BundleError.exit_code == 4
