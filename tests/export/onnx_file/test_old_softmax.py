"""Files before opset 13: a Softmax over the last axis stays one, so that attention is found around it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxport.build.stages import build
from onnxport.runtime import load

HEADS, SIZE = 2, 8
HIDDEN = HEADS * SIZE


def attention(path: Path, opset: int, axis: int = 3) -> Path:
    """x [batch, length, HIDDEN] → y of the same shape, as TorchScript's exporter writes attention."""
    random = np.random.default_rng(3)
    constants = {f"w_{p}": random.standard_normal((HIDDEN, HIDDEN)).astype(np.float32) * np.float32(0.3) for p in "qkv"}
    constants |= {"split": np.array([0, 0, HEADS, SIZE]), "join": np.array([0, 0, HIDDEN]), "root": np.float32(SIZE**0.5)}
    nodes = []
    for p, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            helper.make_node("MatMul", ["x", f"w_{p}"], [f"{p}_flat"]),
            helper.make_node("Reshape", [f"{p}_flat", "split"], [f"{p}4"]),
        ]
        nodes += [helper.make_node("Transpose", [f"{p}4"], [p], perm=perm)]
    nodes += [
        helper.make_node("MatMul", ["q", "k"], ["product"]),
        helper.make_node("Div", ["product", "root"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["p"], axis=axis),
        helper.make_node("MatMul", ["p", "v"], ["answer"]),
        helper.make_node("Transpose", ["answer"], ["back"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["back", "join"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", HIDDEN])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "length", HIDDEN])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7), path)
    return path


@pytest.mark.parametrize(("opset", "axis", "fused"), [(11, 3, 1), (12, 3, 1), (12, 2, 0), (17, 3, 1)])
def test_attention_of_old_opsets_is_fused(tmp_path, opset, axis, fused):
    file = attention(tmp_path / "model.onnx", opset, axis)
    bundle = build(str(file), tmp_path / "bundle", precision=("fp32",))
    assert bundle.variants["fp32"].fusions.get("softmax_attention", 0) == fused
    x = np.random.default_rng(4).standard_normal((3, 7, HIDDEN)).astype(np.float32)
    expected = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    np.testing.assert_allclose(load(tmp_path / "bundle").run({"x": x})["y"], expected, atol=1e-5)
