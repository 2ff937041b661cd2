"""A replay sees what is wrong; `verify` says which file or bound."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from onnxport.errors import BundleError, ParityError
from onnxport.runtime.bundle import Bundle, sha256
from onnxport.runtime.parity import replay
from onnxport.runtime.verify import verify

from . import tiny


@pytest.fixture(params=["tiny_bundle", "causal_bundle"])
def copy(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(request.getfixturevalue(request.param), tmp_path / "copy"))


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
    assert "beam" in found["search"]


def test_verify_names_a_changed_file(copy: Path) -> None:
    data = bytearray((copy / "golden.npz").read_bytes())
    data[-1] ^= 1
    (copy / "golden.npz").write_bytes(data)
    with pytest.raises(BundleError, match=r"golden.npz has changed"):
        verify(copy)


def test_verify_loads_every_search_graph(copy: Path) -> None:
    rewrite(copy, "search/beam.onnx", b"nothing")
    with pytest.raises(BundleError, match=r"search/beam.onnx.*cannot load"):
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


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 no zip"])
def test_goldens_that_cannot_be_read(copy: Path, data: bytes) -> None:
    rewrite(copy, "golden.npz", data)
    with pytest.raises(BundleError, match="readable"):
        replay(Bundle.open(copy), "fp32")


def test_goldens_that_lack_something(copy: Path) -> None:
    np.savez(copy / "golden.npz", **{"seq0/logits": np.zeros((1, 1, tiny.VOCABULARY), np.float32)})
    rewrite(copy, "golden.npz", (copy / "golden.npz").read_bytes())
    with pytest.raises(BundleError, match="incomplete"):
        replay(Bundle.open(copy), "fp32")
