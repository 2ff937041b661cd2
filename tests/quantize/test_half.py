"""FP16 keeps what users see in float32 and is right at shapes that were not traced."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxport.errors import CheckpointError
from onnxport.quantize.fusion import check_runs, fuse
from onnxport.quantize.half import to_fp16
from onnxport.quantize.store import write

RNG = np.random.default_rng(0)


def test_decoder(standard, eager, session, tools, tmp_path):
    fused, counts = fuse(standard, "decoder")
    half = to_fp16(fused)
    types = {v.name: v.dtype for v in [*half.graph.inputs, *half.graph.outputs]}
    assert types["logits"] == ir.DataType.FLOAT and types["input_ids"] == ir.DataType.INT64 and types["source_mask"] == ir.DataType.INT32
    assert {t for name, t in types.items() if name.startswith(("past", "present", "cross"))} == {ir.DataType.FLOAT16}
    assert not [v.name for v in half.graph.initializers.values() if v.dtype == ir.DataType.FLOAT]
    write({"decoder": half}, tmp_path)
    assert check_runs(tmp_path / "decoder.onnx", counts)["group_query_attention"] == 2
    for expected, got in tools.replay_cached(eager, session(half)):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, atol=0.02 * np.abs(expected).max())


def test_plain_module_keeps_float32_at_its_boundary(session, tools):
    weights = {"w": RNG.standard_normal((8, 8)).astype(np.float32), "g": np.ones(8, np.float32)}
    nodes = [("MatMul", ["x", "w"], ["a"]), ("Gelu", ["a"], ["b"]), ("LayerNormalization", ["b", "g"], ["y"], {"axis": -1})]
    model = tools.build(nodes, {"x": ["n", 8]}, {"y": ["n", 8]}, weights)
    half = to_fp16(model)
    x = RNG.standard_normal((5, 8)).astype(np.float32)
    got, expected = (tools.run(session(m), {"x": x})["y"] for m in (half, model))
    assert got.dtype == np.float32
    assert 0 < np.abs(got - expected).max() < 0.02
    assert model.graph.inputs[0].dtype == ir.DataType.FLOAT and model.graph.initializers["w"].dtype == ir.DataType.FLOAT


def test_casts_ranges_and_filled_shapes(session, tools):
    """Float32 made inside the graph becomes float16 too, and what ONNX has in float32 only stays."""
    nodes = [
        ("Cast", ["ids"], ["f"], {"to": int(ir.DataType.FLOAT)}),
        ("Range", ["zero", "count", "one"], ["r"]),
        ("Shape", ["ids"], ["shape"]),
        ("ConstantOfShape", ["shape"], ["zeros"]),
        ("Add", ["f", "r"], ["sum"]),
        ("Add", ["sum", "zeros"], ["y"]),
    ]
    weights = {"zero": np.float32(0), "count": np.float32(4), "one": np.float32(1)}
    model = tools.build(nodes, {"ids": ("int64", [4])}, {"y": [4]}, weights)
    got = tools.run(session(to_fp16(model)), {"ids": np.array([5, 6, 7, 8])})["y"]
    np.testing.assert_array_equal(got, [5, 7, 9, 11])


def test_lowest_float32_in_a_mask_becomes_lowest_float16(session, tools):
    lowest = np.finfo(np.float32).min
    model = tools.build(
        [("Where", ["keep", "x", "low"], ["m"]), ("Softmax", ["m"], ["y"])],
        {"keep": ("bool", ["n", 3]), "x": ["n", 3]},
        {"y": ["n", 3]},
        {"low": lowest},
    )
    keep = np.array([[True, False, True], [False, False, False]])
    got = tools.run(session(to_fp16(model)), {"keep": keep, "x": np.zeros((2, 3), np.float32)})["y"]
    np.testing.assert_allclose(got, [[0.5, 0, 0.5], [1 / 3] * 3], atol=1e-3)


def test_a_weight_beyond_the_range_is_refused(tools):
    model = tools.build([("Mul", ["x", "w"], ["y"])], {"x": [2]}, {"y": [2]}, {"w": np.array([1, 7e4], np.float32)})
    with pytest.raises(CheckpointError, match="weight 'w' holds 70000, expected at most 65504"):
        to_fp16(model)
