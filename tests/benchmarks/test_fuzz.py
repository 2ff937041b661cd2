"""Random changes of bundles, each the same in every run: an answer or a refusal, nothing else. A longer run is `benchmarks/fuzz.py`."""

import random
from pathlib import Path

import fuzz
import numpy as np
import onnx
import pytest

from onnxport.errors import BundleError
from onnxport.export.tokenizers.folder import tokenizer_bytes
from onnxport.runtime import load
from support import tiny_bundles, tiny_encoder

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("kind", ["seq2seq", "causal", "encoder"])
def test_bundles(tmp_path: Path, kind: str) -> None:
    base = tmp_path / kind
    if kind == "encoder":
        tiny_encoder.write(base, "classification", tiny_encoder.table(3), labels=["a", "b", "c"])
    else:
        tiny_bundles.write_bundle(base, tiny_bundles.TinyModel(kind))
    target = fuzz.Target("bundle", base)
    ends = [target.run(seed, tmp_path / "work") for seed in range(60)]
    assert "BundleError" in ends
    assert "answered" in ends or kind == "encoder"  # which has no golden answers to be verified by


def test_changes_depend_on_the_seed_alone() -> None:
    value = {"a": [1, {"b": "c"}], "d": 2}
    made = [fuzz.json_bytes(fuzz.changed_json(value, random.Random(seed)), random.Random(seed)) for seed in [*range(200), *range(200)]]
    assert made[:200] == made[200:]
    assert len(set(made)) > 100
    assert value == {"a": [1, {"b": "c"}], "d": 2}


# ---- what longer runs found


def test_an_encoder_that_does_not_say_its_heads(tmp_path: Path) -> None:
    base = tiny_bundles.write_bundle(tmp_path / "base", tiny_bundles.TinyModel("seq2seq"))
    model = onnx.load(base / "fp32/encoder.onnx")
    output = model.graph.output[0]
    next(node for node in model.graph.node if output.name in node.output).output[0] = "known"
    for inputs, name, kind, to in (
        ("known", "shape", "Shape", {}),
        ("shape", "float", "Cast", {"to": 1}),
        ("float", "back", "Cast", {"to": 7}),
    ):
        model.graph.node.append(onnx.helper.make_node(kind, [inputs], [name], **to))
    model.graph.node.append(onnx.helper.make_node("Reshape", ["known", "back"], [output.name]))
    output.type.tensor_type.shape.dim[1].dim_param = "heads"
    data = model.SerializeToString()
    tiny_manifest(base, "fp32/encoder.onnx", data)
    with pytest.raises(BundleError, match=r"the encoder's .*expected \[any, heads, any, size\]"):
        load(base, threads=1)


def test_outputs_without_a_row_for_each_text(tmp_path: Path) -> None:
    base = tiny_encoder.write(tmp_path / "base", "classification", np.asarray(tiny_encoder.table(3)), labels=["a", "b", "c"])
    name = next(path.relative_to(base).as_posix() for path in base.rglob("*.onnx"))
    model = onnx.load(base / name)
    node = next(node for node in model.graph.node if "logits" in node.output)
    node.output[0] = "all"
    model.graph.node.append(onnx.helper.make_node("ReduceSum", ["all"], ["logits"], keepdims=0))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    tiny_manifest(base, name, model.SerializeToString())
    with pytest.raises(BundleError, match="for 2 texts"):
        load(base, threads=1).classify(["a", "b"])


def test_a_token_id_beyond_all_vocabularies(tmp_path: Path) -> None:
    made = tiny_encoder.tokenizer().to_str().replace('"[CLS]": 1', '"[CLS]": 4294967290').replace('"[CLS]":1', '"[CLS]":4294967290')
    (tmp_path / "tokenizer.json").write_text(made)
    with pytest.raises(ValueError, match="token id"):
        tokenizer_bytes(tmp_path / "tokenizer.json")


def tiny_manifest(base: Path, name: str, data: bytes) -> None:
    """Writes a file of a bundle anew, and its hash."""
    import hashlib
    import json

    (base / name).write_bytes(data)
    manifest = json.loads((base / "bundle.json").read_text())
    manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (base / "bundle.json").write_text(json.dumps(manifest))
