"""The weights that are kept in float32 are those whose products make the error, and no more than the bound asks for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxport.graph.session import answers
from onnxport.quantize.plan import Plan
from onnxport.quantize.safeguards.sensitive_weights import _error, of_an_encoder
from onnxport.quantize.schemes.apply import quantize

ROWS = Plan({"*": "int8-rows"})


@pytest.fixture(scope="module")
def model() -> ir.Model:
    """Three layers, where what the second reads has a channel 300 times as large as the others and a weight that takes it back."""
    random = np.random.default_rng(0)
    weights = {f"layers.{i}.weight": (random.standard_normal((32, 32)) / 6).astype(np.float32) for i in range(3)}
    scale = np.ones(32, np.float32)
    scale[5] = 300
    weights["layers.1.weight"] /= scale[:, None]
    nodes = []
    x = "x"
    for i, name in enumerate(weights):
        if i == 1:
            nodes.append(helper.make_node("Mul", [x, "scale"], ["outlier"]))
            x = "outlier"
        nodes += [helper.make_node("MatMul", [x, name], [f"m{i}"]), helper.make_node("Add", [f"m{i}", "bias"], [f"y{i}"])]
        x = f"y{i}"
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "sequence", 32])]
    outputs = [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["batch", "sequence", 32])]
    constants = weights | {"scale": scale, "bias": random.standard_normal(32).astype(np.float32) / 9}
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(a, n) for n, a in constants.items()])
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


@pytest.fixture(scope="module")
def feeds() -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(1)
    return [{"x": random.standard_normal((2, rows, 32)).astype(np.float32)} for rows in (1, 7)]


def error(model: ir.Model, feeds: list[dict[str, np.ndarray]], kept: dict[str, str]) -> float:
    made = quantize({"encoder": model}, Plan({**ROWS.schemes, **kept}))[0]["encoder"]
    return _error(answers(made, feeds), answers(model, feeds), feeds)


def test_the_layer_with_the_outlier_is_kept(model: ir.Model, feeds: list[dict[str, np.ndarray]]) -> None:
    assert error(model, feeds, {}) > 0.1
    kept = of_an_encoder(model, feeds, ROWS, 0.05)
    assert kept == {"layers.1.weight": "fp32"}
    assert error(model, feeds, kept) <= 0.05


def test_nothing_is_kept_within_the_bound_and_all_where_nothing_helps(model: ir.Model, feeds: list[dict[str, np.ndarray]]) -> None:
    assert of_an_encoder(model, feeds, ROWS, 1.0) == {}
    assert set(of_an_encoder(model, feeds, Plan({"layers.0": "int8-rows", "layers.2": "int8-rows"}), 1e-9)) == {
        "layers.0.weight",
        "layers.2.weight",
    }
