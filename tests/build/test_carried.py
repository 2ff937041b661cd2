"""Sources whose weights are codes of few bits already: the plain command carries them without loss."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxport.build.stages import add_variant, build
from onnxport.runtime import load
from support import quantized_folders as folders

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}
SIZES = {"hidden_size": 128, "intermediate_size": 256, "vocab_size": 64}


def products(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Integers, scales and zeros of each MatMulNBits by its output; scales are stored in float16."""
    model = onnx.load(str(path))
    arrays = {value.name: numpy_helper.to_array(value) for value in model.graph.initializer}
    casts = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Cast"}
    arrays |= {wide: arrays[half].astype(np.float32) for wide, half in casts.items() if half in arrays}
    found = {}
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            parts = {kind: arrays[name] for kind, name in zip(("codes", "scale", "zero"), node.input[1:4], strict=False)}
            found[node.output[0]] = parts | {"sizes": {a.name: a.i for a in node.attribute}}
    return found


def test_a_folder_of_gptq_becomes_its_own_codes(tmp_path: Path) -> None:
    wanted = folders.write(tmp_path / "model", folders.gptq(), GPTQ, **SIZES)
    bundle = build(tmp_path / "model", tmp_path / "bundle")
    manifest = json.loads((tmp_path / "bundle" / "bundle.json").read_bytes())
    assert list(bundle.variants) == ["int4", "fp32"] and manifest["default"] == "int4"
    assert any("carries without loss: fp16, int8 are left out" in note for note in manifest["provenance"]["notes"])
    plan = bundle.variants["int4"].plan
    assert sum(scheme == "int4-blocks32-asym" for scheme in plan.values()) >= 8, plan
    assert manifest["settings"]["quantization"] == "gptq"
    found = products(tmp_path / "bundle" / bundle.variants["int4"].graphs["decoder"])
    downs = [one for one in found.values() if one["sizes"]["K"] == SIZES["intermediate_size"]]
    layers = [weight for name, weight in wanted.items() if name.endswith("down_proj.weight")]
    assert len(downs) == len(layers) == 2
    for one, weight in zip(downs, layers, strict=True):
        codes = np.stack([one["codes"] & 15, one["codes"] >> 4], -1).reshape(len(weight), -1, 32).astype(np.float32)
        zero = np.stack([one["zero"] & 15, one["zero"] >> 4], -1).reshape(len(weight), -1)[:, : codes.shape[1], None]
        values = (codes - zero) * one["scale"].reshape(len(weight), -1, 1)
        assert np.array_equal(values.reshape(weight.shape), weight.numpy())


def test_a_variant_that_is_added_later_carries_them_too(tmp_path: Path) -> None:
    folders.write(tmp_path / "model", folders.awq, {"quant_method": "awq", "bits": 4, "group_size": 32}, **SIZES)
    made = build(tmp_path / "model", tmp_path / "bundle", precision=("int4", "fp32"))
    alone = build(tmp_path / "model", tmp_path / "other", precision=("fp32",))
    assert list(alone.variants) == ["fp32"]
    added = add_variant(tmp_path / "other", "int4")
    assert added.variants["int4"].plan == made.variants["int4"].plan
    ids = [[5, 17, 2, 40]]
    answers = [load(tmp_path / name, precision="int4").generate(ids, max_new_tokens=8)[0].tokens for name in ("bundle", "other")]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("store", [folders.int8_rows], ids=["int8"])
def test_codes_of_8_bits(tmp_path: Path, store: folders.Store) -> None:
    folders.write(tmp_path / "model", store, {"load_in_8bit": True}, **SIZES)
    bundle = build(tmp_path / "model", tmp_path / "bundle")
    assert list(bundle.variants) == ["int8-weight", "fp32"]
    plan = bundle.variants["int8-weight"].plan
    assert all(plan[f"model.layers.{i}.mlp.down_proj.weight"] == "int8-blocks256" for i in range(2)), plan  # one step an output
