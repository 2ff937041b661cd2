"""Layer norms that exporters write out become LayerNormalization, with the same answers; other sums of squares stay."""

from __future__ import annotations

import numpy as np
import pytest

from onnxport.quantize.fusion import fuse
from onnxport.quantize.precisions import PRECISIONS
from onnxport.quantize.schemes.half import to_half

WIDTH = 24
RANDOM = np.random.default_rng(2)


def norm(build, form: str = "pow", affine: bool = True, axis: int = -1, opset: int = 18):
    """x [batch, length, WIDTH] → y of the same shape."""
    constants = {
        "weight": RANDOM.standard_normal(WIDTH).astype(np.float32),
        "bias": RANDOM.standard_normal(WIDTH).astype(np.float32),
        "two": np.float32(2),
        "small": np.float32(1e-5),
        "axis": np.array([axis]),
    }
    nodes = [("ReduceMean", ["x", "axis"], ["mean"]), ("Sub", ["x", "mean"], ["centred"])]
    nodes += [("Mul", ["centred", "centred"], ["squares"]) if form == "mul" else ("Pow", ["centred", "two"], ["squares"])]
    nodes += [("ReduceMean", ["squares", "axis"], ["variance"]), ("Add", ["variance", "small"], ["above"]), ("Sqrt", ["above"], ["root"])]
    top = "centred"
    if form == "twice":
        nodes += [("Sub", ["x", "mean"], ["again"])]
        top = "again"
    if form == "uncentred":
        top = "x"
    last = "y" if not affine else "divided"
    nodes += [("Div", [top, "root"], [last])]
    if affine:
        nodes += [("Mul", ["divided", "weight"], ["weighted"]), ("Add", ["bias", "weighted"], ["y"])]
    return build(nodes, {"x": ["batch", "length", WIDTH]}, {"y": ["batch", "length", WIDTH]}, constants)


@pytest.mark.parametrize("form", ["pow", "mul", "twice"])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("axis", [-1, 2])
def test_norms_that_are_written_out(tools, session, form, affine, axis):
    model = norm(tools.build, form, affine, axis)
    fused, counts = fuse(model, "model", "cpu")
    assert counts["layer_norm"] == 1
    assert [node.op_type for node in fused.graph] == ["LayerNormalization"]
    before, after = session(model), session(fused)
    for shape in ((1, 1), (3, 5), (2, 7)):
        x = RANDOM.standard_normal((*shape, WIDTH)).astype(np.float32) * 3 + 1
        np.testing.assert_allclose(tools.run(after, {"x": x})["y"], tools.run(before, {"x": x})["y"], atol=1e-5)


@pytest.mark.parametrize(("form", "axis"), [("uncentred", -1), ("pow", 1)])
def test_what_is_no_layer_norm_stays(tools, form, axis):
    _, counts = fuse(norm(tools.build, form, axis=axis), "model", "cpu")
    assert "layer_norm" not in counts


def test_half_precision_of_large_values(tools, session):
    """Squares of some hundred are beyond float16: written out, such a norm could not be halved."""
    model = norm(tools.build)
    fused, _ = fuse(model, "model", "cpu")
    x = RANDOM.standard_normal((2, 3, WIDTH)).astype(np.float32) * 300
    expected = tools.run(session(model), {"x": x})["y"]
    np.testing.assert_allclose(tools.run(session(to_half(fused, PRECISIONS["fp16"].plan)), {"x": x})["y"], expected, atol=2e-2)
