"""Smoothing moves what stands out from activations into weights, and blows nothing up that the inputs did not show."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxport.graph.normalize import PARAMETER
from onnxport.quantize.plan import Plan
from onnxport.quantize.schemes.apply import quantize
from onnxport.quantize.schemes.channel_scales import ChannelScales
from onnxport.quantize.schemes.linear import linears


def smooth(model: ir.Model, feeds: list[dict[str, np.ndarray]]) -> ir.Model:
    return ChannelScales(model, feeds).scaled(Plan({"*": "int8-rows"}))


def relative(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


@pytest.fixture
def model(tools) -> ir.Model:
    """Two layers around a ReLU. The hidden units from 48 on answer to the last inputs alone; input 2 is a hundred times the others."""
    random = np.random.default_rng(0)
    weights = {
        "a.weight": random.standard_normal((32, 64)).astype(np.float32),
        "b.weight": random.standard_normal((64, 16)).astype(np.float32),
    }
    weights["a.weight"][:24, 48:] = 0
    weights["a.weight"][24:, :48] = 0
    weights["a.weight"][2] /= 100
    nodes = [("MatMul", ["x", "a.weight"], ["h"]), ("Relu", ["h"], ["r"]), ("MatMul", ["r", "b.weight"], ["y"])]
    return tools.build(nodes, {"x": ["n", 32]}, {"y": ["n", 16]}, weights)


def inputs(rows: int, seed: int, silent: bool) -> dict[str, np.ndarray]:
    x = np.random.default_rng(seed).standard_normal((rows, 32)).astype(np.float32)
    x[:, 2] *= 100
    x[:, 24:] *= not silent
    return {"x": x}


def error(session, tools, plain: ir.Model, other: ir.Model, feed: dict[str, np.ndarray]) -> float:
    made = quantize({"encoder": other}, Plan({"*": "int8-rows"}))[0]["encoder"]
    return relative(tools.run(session(made), feed)["y"], tools.run(session(plain), feed)["y"])


def test_the_answers_stay(session, tools, model: ir.Model) -> None:
    feed = inputs(50, 1, silent=False)
    even = smooth(model, [inputs(20, 2, silent=False)])
    assert relative(tools.run(session(even), feed)["y"], tools.run(session(model), feed)["y"]) < 1e-5


def test_a_channel_that_stands_out_costs_the_others_less(session, tools, model: ir.Model) -> None:
    feed = inputs(50, 1, silent=False)
    even = smooth(model, [inputs(20, 2, silent=False)])
    assert error(session, tools, model, even, feed) < 0.5 * error(session, tools, model, model, feed)


def test_units_that_were_silent_may_speak_later(session, tools, model: ir.Model) -> None:
    feed = inputs(50, 1, silent=False)
    shown, unshown = (error(session, tools, model, smooth(model, [inputs(20, 2, silent)]), feed) for silent in (False, True))
    assert unshown < 2 * shown


def test_nothing_at_all_is_no_reason_to_divide_by_nothing(session, tools, model: ir.Model) -> None:
    even = smooth(model, [{"x": np.zeros((3, 32), np.float32)}])
    feed = inputs(50, 1, silent=False)
    assert relative(tools.run(session(even), feed)["y"], tools.run(session(model), feed)["y"]) < 1e-5


def test_a_folded_weight_keeps_its_name_in_the_plan(model: ir.Model) -> None:
    weight = model.graph.initializers["b.weight"]
    weight.meta[PARAMETER] = "layer.b.weight"
    even = smooth(model, [inputs(20, 2, silent=False)])
    assert "layer.b.weight" in [linear.parameter for linear in linears(even.graph)]
