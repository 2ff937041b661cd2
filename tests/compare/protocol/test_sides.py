import pytest

from onnxport.compare.protocol.bundle_side import BundleSide
from onnxport.export.reference import side
from onnxport.runtime import verify
from onnxport.runtime.bundle import reader


@pytest.mark.parametrize(
    "bounds, found, within",
    [
        ({"relative_error": 0.1}, {"relative_error": 0.05, "finite": True}, True),
        ({"relative_error": 0.1}, {"relative_error": 0.2, "finite": True}, False),
        ({"relative_error": 0.1}, {"relative_error": 0.0, "finite": False}, False),
        ({"relative_error": 0.1}, {"finite": True}, False),
        ({}, {"relative_error": 0.05, "finite": True}, None),
    ],
)
def test_parity_is_held_against_the_bounds_of_the_manifest(monkeypatch, bounds, found, within):
    variant = type("Variant", (), {"name": "int8", "parity": {"bounds": bounds}})
    opened = type("Opened", (), {"variants": {"int8": variant}, "golden": "golden.npz"})
    monkeypatch.setattr(reader.Bundle, "open", lambda path: opened)
    monkeypatch.setattr(verify, "replay", lambda *given, **options: found)
    loaded = BundleSide("somewhere", "int8")
    loaded.model = type("Loaded", (), {"precision": "int8"})
    assert loaded.parity() == found | {"within_bounds": within}


def test_weights_that_lie_there_twice_are_counted_once(tmp_path):
    for name, size in (("model.safetensors", 100), ("pytorch_model.bin", 90), ("config.json", 7), ("training.log", 5)):
        (tmp_path / name).write_bytes(b"x" * size)
    assert side._source_bytes(tmp_path) == 107
    (tmp_path / "model.safetensors").unlink()
    assert side._source_bytes(tmp_path) == 97
