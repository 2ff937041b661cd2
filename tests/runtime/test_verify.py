"""A replay sees what is wrong; `verify` says which file or bound."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from onnxport.errors import BundleError, DeviceError, ParityError
from onnxport.runtime import load
from onnxport.runtime.bundle.reader import Bundle, sha256
from onnxport.runtime.verify import check_bounds, replay, verify
from support import tiny_bundles as tiny


@pytest.fixture(params=["tiny_bundle", "causal_bundle"])
def copy(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(request.getfixturevalue(request.param), tmp_path / "copy"))


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(2))
    return buffer.getvalue()


def rewrite(path: Path, name: str, data: bytes) -> None:
    """Replace a file and its entry in the manifest."""
    (path / name).write_bytes(data)
    manifest = json.loads((path / "bundle.json").read_text())
    manifest["files"][name] = {"sha256": sha256(path / name), "bytes": len(data)}
    (path / "bundle.json").write_text(json.dumps(manifest))


def test_the_model_reproduces_its_goldens(copy: Path) -> None:
    found = replay(Bundle.open(copy), "fp32", threads=1)
    assert found["relative_error"] < 1e-5
    assert found["argmax_agreement"] == 1.0
    assert found["finite"]


def test_greedy_agreement_counts_tokens_before_the_first_difference(tiny_bundle: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    with np.load(path / "golden.npz") as arrays:
        goldens = dict(arrays)
    found = replay(Bundle.open(path), "fp32", threads=1)
    assert found["greedy_agreement"] == 1.0
    total = goldens["greedy/tokens"].size
    goldens["greedy/tokens"][0, 2] = (goldens["greedy/tokens"][0, 2] + 1) % tiny.VOCABULARY
    np.savez(path / "golden.npz", **goldens)
    rewrite(path, "golden.npz", (path / "golden.npz").read_bytes())
    lost = goldens["greedy/tokens"].shape[1] - 2
    assert replay(Bundle.open(path), "fp32", threads=1)["greedy_agreement"] == pytest.approx(1 - lost / total)


def test_verify_passes_a_good_bundle(copy: Path) -> None:
    found = verify(copy, threads=1)
    assert found["files"] == len(Bundle.open(copy).files)
    assert list(found["variants"]) == ["fp32"]
    assert "best" in found["search"]


def test_a_variant_for_cuda_alone_runs_nowhere_else(copy: Path) -> None:
    manifest = json.loads((copy / "bundle.json").read_text())
    manifest["variants"]["fp32"]["target"] = "cuda"
    (copy / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(DeviceError, match="fp32 of .* runs on cuda only, asked for cpu"):
        load(copy)
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(DeviceError, match="device cuda"):
            verify(copy, threads=1)


def test_verify_names_a_changed_file(copy: Path) -> None:
    data = bytearray((copy / "golden.npz").read_bytes())
    data[-1] ^= 1
    (copy / "golden.npz").write_bytes(data)
    with pytest.raises(BundleError, match=r"golden.npz has changed"):
        verify(copy)


def test_verify_loads_every_search_graph(copy: Path) -> None:
    rewrite(copy, "search/best.onnx", b"nothing")
    with pytest.raises(BundleError, match=r"search/best.onnx.*cannot load"):
        verify(copy)


def test_verify_finds_other_weights(copy: Path) -> None:
    kind = Bundle.open(copy).generation.kind  # type: ignore[union-attr]
    other = tiny.TinyModel(kind, seed=9)
    tiny.decoder(other, copy / "fp32/decoder.onnx")
    rewrite(copy, "fp32/decoder.onnx", (copy / "fp32/decoder.onnx").read_bytes())
    with pytest.raises(ParityError, match="variant fp32: max_abs_diff is"):
        verify(copy, threads=1)


def test_verify_finds_values_that_are_not_finite(copy: Path) -> None:
    kind = Bundle.open(copy).generation.kind  # type: ignore[union-attr]
    other = tiny.TinyModel(kind, seed=9)
    other.w["head"] = other.w["head"] * np.float32(np.inf)
    tiny.decoder(other, copy / "fp32/decoder.onnx")
    rewrite(copy, "fp32/decoder.onnx", (copy / "fp32/decoder.onnx").read_bytes())
    with np.load(copy / "golden.npz") as arrays:
        kept = {k: a for k, a in arrays.items() if not k.startswith("greedy")}
    np.savez(copy / "golden.npz", **kept)
    rewrite(copy, "golden.npz", (copy / "golden.npz").read_bytes())
    with pytest.raises(ParityError, match="not finite"):
        verify(copy, threads=1)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 no zip", npy()])
def test_goldens_that_cannot_be_read(copy: Path, data: bytes) -> None:
    rewrite(copy, "golden.npz", data)
    with pytest.raises(BundleError, match="readable"):
        replay(Bundle.open(copy), "fp32")


def test_goldens_that_lack_something(copy: Path) -> None:
    np.savez(copy / "golden.npz", **{"seq0/logits": np.zeros((1, 1, tiny.VOCABULARY), np.float32)})
    rewrite(copy, "golden.npz", (copy / "golden.npz").read_bytes())
    with pytest.raises(BundleError, match="incomplete"):
        replay(Bundle.open(copy), "fp32")


def change_goldens(path: Path, change: Callable[[dict[str, np.ndarray]], object]) -> Bundle:
    with np.load(path / "golden.npz") as arrays:
        goldens = dict(arrays)
    change(goldens)
    np.savez(path / "golden.npz", **goldens)
    rewrite(path, "golden.npz", (path / "golden.npz").read_bytes())
    return Bundle.open(path)


def keep(goldens: dict[str, np.ndarray], case: str) -> None:
    for key in [k for k in goldens if not k.startswith(case)]:
        del goldens[key]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda g: g["seq1/logits"].__setitem__((0, 0, 0), np.nan), "seq1/logits holds values that are not finite"),
        (lambda g: g["seq1/logits"].__setitem__((0, 0, 0), np.inf), "not finite"),
        (lambda g: g["seq0/target_lengths"].fill(0), "seq0 has no outputs to compare"),
        (lambda g: keep(g, "greedy"), "no logits to compare"),
        (lambda g: g.pop("greedy/lengths"), "incomplete"),
        (lambda g: g.pop("greedy/tokens"), "incomplete"),
        (lambda g: g.update({"greedy/lengths": np.ones(9, np.int64)}), "incomplete"),
        (lambda g: g.update({"seq0/target_lengths": np.ones(9, np.int64)}), "incomplete"),
        (lambda g: g.update({"seq0/source_mask": np.ones((9, 1), np.int32)}), "incomplete"),
    ],
)
def test_goldens_that_compare_nothing_do_not_pass(
    tiny_bundle: Path, tmp_path: Path, change: Callable[[dict[str, np.ndarray]], object], part: str
) -> None:
    path = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    with pytest.raises(BundleError, match=part):
        replay(change_goldens(path, change), "fp32", threads=1)


@pytest.mark.parametrize("parity", [{}, {"bounds": {}}, {"bounds": []}, {"bounds": {"relative_error": None}}, {"bounds": {"other": 1.0}}])
def test_verify_needs_bounds_it_can_check(copy: Path, parity: dict[str, Any]) -> None:
    manifest = json.loads((copy / "bundle.json").read_text())
    manifest["variants"]["fp32"]["parity"] = parity
    (copy / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(ParityError, match="variant fp32"):
        verify(copy, threads=1)


@pytest.mark.parametrize(
    ("found", "part"),
    [
        ({}, "not finite"),
        ({"finite": True}, "relative_error is not measured, expected at most 0.1, greedy_agreement is not measured, .*; report this"),
        ({"finite": True, "relative_error": float("nan")}, "relative_error is nan"),
        ({"finite": True, "relative_error": 0.0}, "greedy_agreement is not measured"),
        ({"finite": True, "relative_error": 0.0, "greedy_agreement": 0.8}, "greedy_agreement is 0.8, expected at least 0.9"),
        ({"finite": True, "relative_error": 0.2, "greedy_agreement": 0.8}, "relative_error is 0.2, .*, greedy_agreement is 0.8"),
    ],
)
def test_bounds_are_not_met_by_absence(found: dict[str, Any], part: str) -> None:
    with pytest.raises(ParityError, match=part):
        check_bounds("int8", {"relative_error": 0.1, "greedy_agreement": 0.9}, found, "report this")


def test_a_cosine_has_a_least_value() -> None:
    check_bounds("int8", {"cosine": 0.99}, {"finite": True, "cosine": 0.995})
    with pytest.raises(ParityError, match="cosine is 0.985, expected at least 0.99"):
        check_bounds("int8", {"cosine": 0.99}, {"finite": True, "cosine": 0.985})
