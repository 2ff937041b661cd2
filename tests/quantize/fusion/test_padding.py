"""Padding stays out of view whatever the size of scores, in both rules that take a mask, in single and in half precision."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxport.quantize.fusion import fuse
from onnxport.quantize.precisions import PRECISIONS
from onnxport.quantize.schemes.half import to_half

HEADS, SIZE = 2, 8
HIDDEN = HEADS * SIZE
PERM = {"perm": [0, 2, 1, 3]}


def graph(build, form: str) -> ir.Model:
    """x [batch, length, hidden] and mask int64 [batch, length] → y, by the operator Attention or written out around a Softmax."""
    weight = np.random.default_rng(3).standard_normal((HIDDEN, 3 * HIDDEN)).astype(np.float32) / 4
    constants = {"w": weight, "heads": np.array([0, 0, HEADS, SIZE]), "flat": np.array([0, 0, HIDDEN]), "axes": np.array([1, 2])}
    constants |= {"zero": np.int64(0), "low": np.float32(-1e9), "scale": np.float32(SIZE**-0.5)}
    nodes = [("MatMul", ["x", "w"], ["qkv"]), ("Split", ["qkv"], ["q3", "k3", "v3"], {"axis": -1, "num_outputs": 3})]
    for p in "qkv":
        nodes += [("Reshape", [f"{p}3", "heads"], [f"{p}4"])]
    nodes += [("Equal", ["mask", "zero"], ["hidden"]), ("Not", ["hidden"], ["seen"]), ("Unsqueeze", ["seen", "axes"], ["seen4"])]
    nodes += [("Transpose", [f"{p}4"], [p], PERM) for p in "qv"]
    if form == "Attention":
        nodes += [("Transpose", ["k4"], ["k"], PERM), ("Attention", ["q", "k", "v", "seen4"], ["a"])]
    else:
        nodes += [("Transpose", ["k4"], ["k"], {"perm": [0, 2, 3, 1]}), ("MatMul", ["q", "k"], ["product"])]
        nodes += [("Mul", ["product", "scale"], ["scores"]), ("Where", ["seen4", "scores", "low"], ["masked"])]
        nodes += [("Softmax", ["masked"], ["p"], {"axis": -1}), ("MatMul", ["p", "v"], ["a"])]
    nodes += [("Transpose", ["a"], ["back"], PERM), ("Reshape", ["back", "flat"], ["y"])]
    shape = ["batch", "length", HIDDEN]
    return build(nodes, {"x": shape, "mask": ("int64", ["batch", "length"])}, {"y": shape}, constants)


@pytest.mark.parametrize("form", ["Attention", "Softmax"])
@pytest.mark.parametrize(("precision", "scale"), [("fp32", 1.0), ("fp32", 1e3), ("fp32", 1e6), ("fp16", 100.0)])
def test_padding_changes_nothing_at_any_size_of_scores(tools, session, form: str, precision: str, scale: float) -> None:
    model, counts = fuse(graph(tools.build, form), "encoder", "cpu")
    assert counts["multi_head_attention" if form == "Attention" else "softmax_attention"] == 1
    run = session(model if precision == "fp32" else to_half(model, PRECISIONS["fp16"].plan))
    x = np.random.default_rng(0).standard_normal((4, 6, HIDDEN)).astype(np.float32) * np.float32(scale)
    lengths = [6, 4, 2, 1]
    mask = (np.arange(6)[None] < np.array(lengths)[:, None]).astype(np.int64)
    together = tools.run(run, {"x": x, "mask": mask})["y"]
    for i, length in enumerate(lengths):
        alone = tools.run(run, {"x": x[i : i + 1, :length], "mask": np.ones((1, length), np.int64)})["y"][0]
        np.testing.assert_allclose(together[i, :length] / scale, alone / scale, atol=1e-5)
