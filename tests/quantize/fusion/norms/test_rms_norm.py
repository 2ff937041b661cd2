"""RMS norms that are written out become kernels at every opset, with the same answers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxport.quantize.fusion import fuse
from onnxport.quantize.precisions import PRECISIONS
from onnxport.quantize.schemes.half import to_half

WIDTH = 24


def norm(build, reciprocal: bool, opset: int) -> ir.Model:
    """x [batch, length, WIDTH] → y of the same shape."""
    weight = np.random.default_rng(2).standard_normal(WIDTH).astype(np.float32)
    constants = {"weight": weight, "two": np.float32(2), "small": np.float32(1e-5), "axis": np.array([-1])}
    nodes = [("Pow", ["x", "two"], ["squares"]), ("ReduceMean", ["squares", "axis"], ["mean"])]
    nodes += [("Add", ["mean", "small"], ["above"]), ("Sqrt", ["above"], ["root"])]
    nodes += [("Reciprocal", ["root"], ["by"]), ("Mul", ["x", "by"], ["normed"])] if reciprocal else [("Div", ["x", "root"], ["normed"])]
    nodes += [("Mul", ["weight", "normed"], ["y"])]
    model = build(nodes, {"x": ["batch", "length", WIDTH]}, {"y": ["batch", "length", WIDTH]}, constants)
    model.graph.opset_imports[""] = opset
    return model


@pytest.mark.parametrize(("opset", "kernel"), [(18, "SimplifiedLayerNormalization"), (23, "RMSNormalization")])
@pytest.mark.parametrize("reciprocal", [False, True])
def test_norms_that_are_written_out(tools, session, reciprocal: bool, opset: int, kernel: str) -> None:
    model = norm(tools.build, reciprocal, opset)
    fused, counts = fuse(model, "model", "cpu")
    assert counts == {"rms_norm": 1} and [node.op_type for node in fused.graph] == [kernel]
    again, _ = fuse(fused, "model", "cpu")  # a stored graph is read again
    half = to_half(again, PRECISIONS["fp16"].plan)
    for shape in ((1, 1), (3, 5)):
        x = np.random.default_rng(3).standard_normal((*shape, WIDTH)).astype(np.float32) * 3
        wanted = tools.run(session(model), {"x": x})["y"]
        np.testing.assert_allclose(tools.run(session(fused), {"x": x})["y"], wanted, atol=1e-5)
        np.testing.assert_allclose(tools.run(session(half), {"x": x})["y"], wanted, atol=1e-2)
