"""Every way a bundle can be wrong is refused with one line that names it."""

import errno
import gc
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from onnxport.errors import BundleError, OnnxportError
from onnxport.runtime import load
from onnxport.runtime.bundle import reader
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


def test_a_file_that_may_not_be_read(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def failing(path: Any, *arguments: Any, **options: Any) -> int:
        if str(path).endswith("decoder.onnx"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", failing)
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
        (lambda m: m.update(encoding={"pooling": "median"}), "median"),
    ],
)
def test_wrong_fields(copy: Path, change: Callable[[dict[str, Any]], object], part: str) -> None:
    refused(edit(copy, change), part)


@pytest.mark.parametrize("name", ["/etc/passwd", "../outside", "fp32/../../outside", "C:\\x", "a\\..\\..\\b", "", "bundle.json"])
def test_paths_that_leave_the_bundle(copy: Path, name: str) -> None:
    entry = {"sha256": "", "bytes": 1}
    refused(edit(copy, lambda m: m["files"].update({name: entry})), "not allowed")


@pytest.mark.parametrize("name", ["tokenizer.json", "fp32/decoder.onnx", "fp32"])
def test_links_count_as_what_they_lead_to(copy: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "cache" / "elsewhere"
    outside.parent.mkdir()
    shutil.move(copy / name, outside)
    (copy / name).symlink_to(outside)
    assert load(copy, threads=1, verify=True).generate("w5 w9", max_new_tokens=3)
    victim = outside / "decoder.onnx" if outside.is_dir() else outside
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    refused(copy, "has changed", verify=True)
    victim.write_bytes(content + b"x")
    refused(copy, "bytes, expected")


@pytest.mark.parametrize("name", ["bundle.json", "tokenizer.json", "fp32/decoder.onnx"])
def test_a_fifo_is_refused_and_not_waited_for(copy: Path, name: str) -> None:
    (copy / name).unlink()
    os.mkfifo(copy / name)
    refused(copy, name.rpartition("/")[2], "is a FIFO, expected a regular file")


def test_a_manifest_that_is_too_large(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MOST_OF_MANIFEST", 100)
    refused(copy, "expected at most 100")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[
            (key, value)
            for key in ("layers", "kv_heads", "head_size", "vocab_size", "max_length", "window", "beam")
            for value in (2**63, 10**30)
        ],
        ("layers", 10**9),
        ("kv_heads", 10**9),
        ("eos_id", -(2**70)),
        ("pad_id", 2**63),
        ("top_k", 2**63),
        ("temperature", 10**400),
    ],
)
def test_numbers_that_no_model_has(copy: Path, key: str, value: int) -> None:
    refused(edit(copy, lambda m: m["generation"].update({key: value})), "generation")


def test_a_number_that_is_infinite(copy: Path) -> None:
    text = (copy / "bundle.json").read_text()
    (copy / "bundle.json").write_text(text.replace("{", '{"remark": 1e999, ', 1))
    refused(copy, "1e999")


@pytest.mark.parametrize(("key", "change"), [("kv_heads", 7), ("head_size", 64000), ("layers", 1), ("layers", 9), ("vocab_size", 2**30)])
def test_sizes_are_held_against_the_graph_before_memory_is_asked_for(copy: Path, key: str, change: int) -> None:
    edit(copy, lambda m: m["generation"].update({key: change}))
    with pytest.raises(BundleError, match="its decoder has|the decoder's"):
        load(copy, threads=1)


def with_external_weights(path: Path, location: str, listed: bool) -> Path:
    """The bundle, with one of its decoder's tensors in a file of its own."""
    graph = path / "fp32/decoder.onnx"
    model = onnx.load(graph)
    tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    (graph.parent / "weights.bin").write_bytes(tensor.raw_data)
    entries = {"location": location, "offset": "0", "length": str(len(tensor.raw_data))}
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    graph.write_bytes(model.SerializeToString())

    def change(manifest: dict[str, Any]) -> None:
        for name in ["fp32/decoder.onnx", *(["fp32/weights.bin"] if listed else [])]:
            content = (path / name).read_bytes()
            manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            manifest["variants"]["fp32"]["files"] = sorted({*manifest["variants"]["fp32"]["files"], name})

    return edit(path, change)


def test_weights_in_a_listed_file_are_read(copy: Path) -> None:
    assert load(with_external_weights(copy, "weights.bin", listed=True), threads=1, verify=True).generate("w5 w9", max_new_tokens=3)


@pytest.mark.parametrize("linked", [["weights.bin"], ["decoder.onnx"], ["decoder.onnx", "weights.bin"], ["."]])
@pytest.mark.parametrize("together", [True, False])
def test_weights_behind_links_are_read(copy: Path, tmp_path: Path, linked: list[str], together: bool) -> None:
    """As caches of downloads lay files out: all in one folder, or each in one of its own."""
    wanted = load(copy, threads=1).generate("w5 w9 w30", max_new_tokens=9)[0].tokens
    path = with_external_weights(copy, "weights.bin", listed=True)
    for number, name in enumerate(linked):
        cache = tmp_path / ("cache" if together else f"cache{number}")
        cache.mkdir(exist_ok=True)
        blob = cache / f"blob{number}"
        shutil.move(path / "fp32" / name if name != "." else path / "fp32", blob)
        (path / "fp32" / name if name != "." else path / "fp32").symlink_to(os.path.relpath(blob, path / "fp32" if name != "." else path))
    model = load(path, threads=1, verify=True)
    gc.collect()
    assert model.generate("w5 w9 w30", max_new_tokens=9)[0].tokens == wanted


@pytest.mark.parametrize(
    ("location", "listed"),
    [("weights.bin", False), ("/etc/hostname", True), ("../fp32/weights.bin", True), ("*/_ORT_MEM_ADDR_/*", True), ("", True)],
)
@pytest.mark.parametrize("verify", [False, True])
def test_a_graph_that_reads_an_unlisted_file_is_refused(copy: Path, location: str, listed: bool, verify: bool) -> None:
    path = with_external_weights(copy, location, listed)
    refused(path, "fp32/decoder.onnx reads", "does not list", verify=verify)
    with pytest.raises(BundleError, match="does not list"):
        load(path, verify=verify)


def test_a_missing_file(copy: Path) -> None:
    (copy / "fp32/decoder.onnx").unlink()
    refused(copy, "fp32/decoder.onnx is missing")


def test_a_folder_in_place_of_a_file(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer.json").mkdir()
    refused(copy, "tokenizer.json", "is a folder, expected a regular file")


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
