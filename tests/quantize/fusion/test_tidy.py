"""Casts that change nothing go; those that change a type, or stand between an input and an output, stay."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxport.quantize.fusion import fuse

SIZES = {"x": ["batch", 6]}
FLOAT, HALF = int(onnx.TensorProto.FLOAT), int(onnx.TensorProto.FLOAT16)


def test_a_cast_to_the_same_type(tools, session) -> None:
    nodes = [("Relu", ["x"], ["r"]), ("Cast", ["r"], ["c"], {"to": FLOAT}), ("Neg", ["c"], ["y"])]
    model = tools.build(nodes, SIZES, {"y": ["batch", 6]}, {})
    fused, counts = fuse(model, "model", "cpu")
    assert counts == {"cast_to_itself": 1} and [node.op_type for node in fused.graph] == ["Relu", "Neg"]
    x = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)
    np.testing.assert_array_equal(*(tools.run(session(one), {"x": x})["y"] for one in (model, fused)))


@pytest.mark.parametrize(
    "nodes",
    [
        [("Cast", ["x"], ["h"], {"to": HALF}), ("Cast", ["h"], ["y"], {"to": FLOAT})],
        [("Cast", ["x"], ["y"], {"to": FLOAT})],
    ],
    ids=["rounding", "from an input to an output"],
)
def test_casts_that_stay(tools, nodes) -> None:
    fused, counts = fuse(tools.build(nodes, SIZES, {"y": ["batch", 6]}, {}), "model", "cpu")
    assert not counts and len(list(fused.graph)) == len(nodes)
