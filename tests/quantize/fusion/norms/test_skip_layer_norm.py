"""Residual sums with norms, at shapes nobody traced."""

import numpy as np
import pytest

from onnxport.graph.store import write
from onnxport.quantize.fusion import TARGETS, fuse

RNG = np.random.default_rng(0)
D = 16
WEIGHTS = {k: RNG.standard_normal(s).astype(np.float32) for k, s in {"w": (8, D), "bias": D, "gamma": D, "beta": D}.items()}
SHAPE = ["batch", "length", D]


def kinds(model):
    return [n.op_type for n in model.graph]


def model_of(tools, bias=True, beta=True, goes_on=False, swapped=False, skip=SHAPE, epsilon=1e-3):
    nodes = [("MatMul", ["y", "w"], ["p"])]
    nodes += [("Add", ["bias", "p"] if swapped else ["p", "bias"], ["q"])] if bias else []
    term = "q" if bias else "p"
    nodes += [("Add", [term, "x"] if swapped else ["x", term], ["total"])]
    nodes += [("LayerNormalization", ["total", "gamma"] + ["beta"] * beta, ["z"], {"axis": -1, "epsilon": epsilon})]
    nodes += [("Mul", ["total", "total"], ["square"])] if goes_on else []
    outputs = {"z": SHAPE} | ({"square": SHAPE} if goes_on else {})
    weights = {k: v for k, v in WEIGHTS.items() if (bias or k != "bias") and (beta or k != "beta")}
    return tools.build(nodes, {"x": skip, "y": ["batch", "length", 8]}, outputs, weights)


def test_on_the_cpu_onnx_runtime_does_not_put_it_in_either(tools, tmp_path):
    write({"model": fuse(model_of(tools), "model", "cpu")[0]}, tmp_path)
    assert tools.running(tmp_path / "model.onnx").count("LayerNormalization") == 1
    assert "SkipLayerNormalization" in tools.running(tmp_path / "model.onnx", disabled=[])  # as it would by itself


def test_on_the_cpu_the_sum_and_the_norm_stay(tools):
    fused, counts = fuse(model_of(tools), "model", "cpu")
    assert counts == {} and "SkipLayerNormalization" not in kinds(fused)
    assert not any(rule.name == "skip_layer_norm" for rule in TARGETS["cpu"].rules)


@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(("bias", "beta"), [(True, True), (False, True), (False, False), (True, False)])
def test_sum_and_norm_become_one_kernel(session, tools, bias, beta, swapped, goes_on):
    model = model_of(tools, bias, beta, goes_on, swapped)
    fused, counts = fuse(model, "model", "cuda")
    assert counts == {"skip_layer_norm": 1}
    assert kinds(fused)[:2] == ["MatMul", "SkipLayerNormalization"] and "Add" not in kinds(fused)
    for batch, length in ((1, 1), (3, 5)):
        inputs = {
            "x": RNG.standard_normal((batch, length, D)).astype(np.float32),
            "y": RNG.standard_normal((batch, length, 8)).astype(np.float32),
        }
        expected, got = tools.run(session(model), inputs), tools.run(session(fused), inputs)
        for name in expected:
            np.testing.assert_allclose(got[name], expected[name], atol=1e-5, rtol=1e-5)


def test_sum_that_is_an_output_keeps_its_name(session, tools):
    model = tools.build(
        [("Add", ["x", "y"], ["total"]), ("LayerNormalization", ["total", "gamma", "beta"], ["z"], {"axis": -1})],
        {"x": SHAPE, "y": SHAPE}, {"z": SHAPE, "total": SHAPE}, {k: WEIGHTS[k] for k in ("gamma", "beta")},
    )  # fmt: skip
    fused, counts = fuse(model, "model", "cuda")
    assert counts["skip_layer_norm"] == 1
    inputs = {k: RNG.standard_normal((2, 3, D)).astype(np.float32) for k in "xy"}
    expected, got = tools.run(session(model), inputs), tools.run(session(fused), inputs)
    assert list(got) == ["z", "total"]
    np.testing.assert_allclose(got["total"], expected["total"], atol=1e-6)


@pytest.mark.parametrize("skip", [[1, "length", D], ["length", D], [D]])
def test_a_sum_that_broadcasts_stays(tools, skip):
    assert "skip_layer_norm" not in fuse(model_of(tools, skip=skip), "model", "cuda")[1]


def test_norm_over_two_axes_stays(tools):
    model = tools.build(
        [("Add", ["x", "y"], ["total"]), ("LayerNormalization", ["total", "gamma"], ["z"], {"axis": 1})],
        {"x": [2, 3, D], "y": [2, 3, D]}, {"z": [2, 3, D]}, {"gamma": np.ones((3, D), np.float32)},
    )  # fmt: skip
    assert fuse(model, "model", "cuda")[1] == {}
