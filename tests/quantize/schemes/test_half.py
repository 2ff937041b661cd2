"""FP16 keeps what users see in float32 and is right at shapes that were not traced."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from onnxport.graph import pieces
from onnxport.graph.store import write
from onnxport.quantize.fusion import check_runs, fuse
from onnxport.quantize.plan import Plan
from onnxport.quantize.safeguards import half_overflow
from onnxport.quantize.safeguards.half_overflow import rounded, safe
from onnxport.quantize.schemes.half import owners, to_half

RNG = np.random.default_rng(0)
FP16, BF16 = Plan({"*": "fp16"}), Plan({"*": "bf16"})


def test_decoder(standard, eager, session, tools, tmp_path):
    fused, counts = fuse(standard, "decoder", "cpu")
    half = to_half(fused, FP16)
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
    half = to_half(model, FP16)
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
    got = tools.run(session(to_half(model, FP16)), {"ids": np.array([5, 6, 7, 8])})["y"]
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
    got = tools.run(session(to_half(model, FP16)), {"keep": keep, "x": np.zeros((2, 3), np.float32)})["y"]
    np.testing.assert_allclose(got, [[0.5, 0, 0.5], [1 / 3] * 3], atol=1e-3)


@pytest.fixture(params=["whole", "pieces"])
def walked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs run whole or, as large ones do, piece by piece, with weights that are rounded row by row."""
    if request.param == "pieces":
        monkeypatch.setattr(pieces.cuts, "__defaults__", (1,))
        monkeypatch.setattr(half_overflow, "PIECE", 8)


def test_a_weight_beyond_the_range_stays_with_what_is_computed_from_it(session, tools, walked):
    """And the plan names the layer, without any data."""
    weights = {"up.weight": np.array([[1, 7e4], [2e5, 1]], np.float32), "down.weight": np.full((2, 2), 1e-5, np.float32)}
    model = tools.build(
        [("MatMul", ["x", "up.weight"], ["a"]), ("Relu", ["a"], ["b"]), ("MatMul", ["b", "down.weight"], ["y"])],
        {"x": ["n", 2]}, {"y": ["n", 2]}, weights,
    )  # fmt: skip
    half = to_half(model, FP16)
    assert half.graph.initializers["up.weight"].dtype == ir.DataType.FLOAT
    assert half.graph.initializers["down.weight"].dtype == ir.DataType.FLOAT16
    plan = safe({"encoder": model}, FP16, {})
    assert plan.schemes == {"*": "fp16", "up.weight": "fp32"}
    x = np.array([[0.01, 0.02]], np.float32)
    fed = safe({"encoder": model}, FP16, {"encoder": [{"x": x}]})
    assert fed.schemes == {"*": "fp16", "up.weight": "fp32"}
    np.testing.assert_allclose(
        tools.run(session(to_half(model, fed)), {"x": x})["y"], x @ weights["up.weight"] @ weights["down.weight"], rtol=4e-3
    )


def t5_block(tools):
    """Norm, feed-forward, sum, norm, projection, as T5: the hidden layer and the stream after it are beyond 65,504."""
    normal = lambda *shape: RNG.standard_normal(shape).astype(np.float32)  # noqa: E731
    weights = {"norm.weight": np.ones(16, np.float32), "wi.weight": 60 * normal(16, 32), "wo.weight": 200 * normal(32, 16)}
    weights |= {"final.weight": np.ones(16, np.float32), "head.weight": normal(16, 24)}
    nodes = [
        ("RMSNormalization", ["x", "norm.weight"], ["n"]), ("MatMul", ["n", "wi.weight"], ["h"]), ("Relu", ["h"], ["r"]),
        ("MatMul", ["r", "wo.weight"], ["o"]), ("Add", ["x", "o"], ["s"]),
        ("RMSNormalization", ["s", "final.weight"], ["f"]), ("MatMul", ["f", "head.weight"], ["y"]),
    ]  # fmt: skip
    return tools.build(nodes, {"x": ["n", 16]}, {"y": ["n", 24]}, weights)


def test_what_overflows_as_in_t5_stays_in_float32(session, tools, walked):
    """Found on other data than that of the check; without it the answers are not numbers."""
    model = t5_block(tools)
    feeds = [{"x": RNG.standard_normal((4, 16)).astype(np.float32)} for _ in range(3)]
    x = RNG.standard_normal((6, 16)).astype(np.float32)
    expected = tools.run(session(model), {"x": x})["y"]
    plan = safe({"encoder": model}, FP16, {"encoder": feeds})
    assert plan.schemes == {"*": "fp16", "wo.weight": "fp32", "final.weight": "fp32"}
    half = to_half(model, plan)
    stored = {name: value.dtype for name, value in half.graph.initializers.items()}
    assert stored["wi.weight"] == stored["head.weight"] == ir.DataType.FLOAT16 and stored["wo.weight"] == ir.DataType.FLOAT
    np.testing.assert_allclose(tools.run(session(half), {"x": x})["y"], expected, atol=5e-3 * np.abs(expected).max())
    plain = to_half(model, FP16)
    plain.graph.outputs.append(next(v for node in plain.graph for v in node.outputs if v.name == "s"))
    found = tools.run(session(plain), {"x": x})
    assert not np.isfinite(found["s"]).all()


def test_a_layer_that_loses_too_much_is_found(session, tools, walked):
    """The mean of large numbers taken away from them: nothing overflows, and float16 cannot tell them apart."""
    weights = {"a.weight": np.eye(8, dtype=np.float32), "b.weight": RNG.standard_normal((8, 8)).astype(np.float32)}
    nodes = [
        ("MatMul", ["x", "a.weight"], ["h"]), ("ReduceMean", ["h", "axes"], ["m"]), ("Sub", ["h", "m"], ["c"]),
        ("MatMul", ["c", "b.weight"], ["y"]),
    ]  # fmt: skip
    model = tools.build(nodes, {"x": ["n", 8]}, {"y": ["n", 8]}, {**weights, "axes": np.array([-1])})
    x = (3000 + RNG.standard_normal((5, 8))).astype(np.float32)
    plan = safe({"encoder": model}, FP16, {"encoder": [{"x": x}]})
    assert plan.schemes == {"*": "fp16", "a.weight": "fp32"}
    y, good, bad = (tools.run(session(m), {"x": x})["y"] for m in (model, to_half(model, plan), rounded(model, FP16)))
    error = lambda got: np.abs(got - y).max() / np.abs(y).max()  # noqa: E731
    assert error(good) < 5e-3 < 0.1 < error(bad)


def test_layers_that_a_plan_names_are_exact_in_a_decoder(standard, eager, session, tools):
    """Casts around what stays, caches half; nearer to float32 the more stays."""
    fused, _ = fuse(standard, "decoder", "cpu")
    plan = Plan({"*": "fp16", "layers.0": "fp32", "norm": "fp32", "embedding.weight": "fp32"})
    half = to_half(fused, plan)
    single = set(owners(half.graph).values())  # weights that are float32 still
    assert {"layers.0.up.weight", "embedding.weight"} <= single and not any(name.startswith("layers.1") for name in single)
    assert {v.dtype for v in half.graph.inputs if str(v.name).startswith(("past", "cross"))} == {ir.DataType.FLOAT16}
    for expected, got in tools.replay_cached(eager, session(half)):
        np.testing.assert_allclose(got, expected, atol=0.02 * np.abs(expected).max())


def test_bf16_graph(tools, tmp_path):
    """No kernel of ONNX Runtime's CPU runs it: types, the checker, and ONNX's own evaluator tell."""
    model = t5_block(tools)
    half = to_half(model, BF16)
    write({"encoder": half}, tmp_path)
    onnx.checker.check_model(str(tmp_path / "encoder.onnx"), full_check=True)
    assert {v.dtype for v in half.graph.initializers.values()} == {ir.DataType.BFLOAT16}
    assert [v.dtype for v in [*half.graph.inputs, *half.graph.outputs]] == [ir.DataType.FLOAT] * 2
    assert {v.dtype for node in half.graph for v in node.outputs if v.name != "y"} == {ir.DataType.BFLOAT16}
    x = RNG.standard_normal((6, 16)).astype(np.float32)
    bound = {v.name: v.const_value.numpy().astype(np.float32) for v in half.graph.initializers.values()}
    n = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    s = x + np.maximum(n @ bound["wi.weight"], 0) @ bound["wo.weight"]
    y = s / np.sqrt((s**2).mean(-1, keepdims=True)) @ bound["head.weight"]
    got = ReferenceEvaluator(str(tmp_path / "encoder.onnx")).run(None, {"x": x})[0]
    np.testing.assert_allclose(got, y, atol=0.05 * np.abs(y).max())


def test_a_graph_that_was_made_half_before(session, tools):
    weights = {"w": RNG.standard_normal((8, 8)).astype(np.float32)}
    model = tools.build([("MatMul", ["x", "w"], ["y"])], {"x": ["n", 8]}, {"y": ["n", 8]}, weights)
    foreign = to_half(model, FP16)
    for node in foreign.graph:  # in float32 again, as a foreign file is read
        if node.op_type == "Cast":
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    weight = foreign.graph.initializers["w"]
    weight.const_value = ir.tensor(weight.const_value.numpy().astype(np.float32), name="w")
    weight.type = ir.TensorType(ir.DataType.FLOAT)
    again = to_half(foreign, FP16)
    x = RNG.standard_normal((5, 8)).astype(np.float32)
    np.testing.assert_allclose(tools.run(session(again), {"x": x})["y"], x @ weights["w"], atol=0.02)
