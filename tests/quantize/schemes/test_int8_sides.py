"""Rows of 8 bits behind an activation function: nearly all codes are for values above zero, and what is below keeps its own."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest

from onnxport.graph.edit import new_node, take_over
from onnxport.quantize.plan import Plan
from onnxport.quantize.schemes.apply import quantize
from onnxport.quantize.schemes.int8 import BELOW_ZERO, LOWEST, SILU, Sides, sides_of

ROWS = Plan({"*": "int8-rows"})
SILU_NODES = [("Sigmoid", ["x"], ["s"]), ("Mul", ["x", "s"], ["a"])]
ACTIVATIONS = {
    "Relu": ([("Relu", ["x"], ["a"])], lambda x: np.maximum(x, 0)),
    "Gelu": ([("Gelu", ["x"], ["a"])], lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2),
    "SiLU": (SILU_NODES, lambda x: x / (1 + np.exp(-x.clip(-700)))),
}
WEIGHT = np.random.default_rng(0).standard_normal((64, 24)).astype(np.float32)


def graph(tools, nodes: list) -> ir.Model:
    return tools.build([*nodes, ("MatMul", ["a", "w.weight"], ["y"])], {"x": ["n", 64]}, {"y": ["n", 24]}, {"w.weight": WEIGHT})


def made(tools, nodes: list) -> ir.Model:
    return quantize({"encoder": graph(tools, nodes)}, ROWS)[0]["encoder"]


def given(rows: int = 40, size: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(1).standard_normal((rows, 64)) * size).astype(np.float32)


def of_two_sides(a: np.ndarray) -> np.ndarray:
    step = np.abs(a).max(1, keepdims=True) / 127
    return np.rint(a / step) * step


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_least_value_is_that_of_the_function(name: str) -> None:
    _, function = ACTIVATIONS[name]
    least = -function(np.linspace(-8, 8, 200_001)).min()
    bound = SILU if name == "SiLU" else LOWEST[name]
    assert least <= bound < least + 1e-3


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_half_the_error_of_codes_on_both_sides(session, tools, name: str) -> None:
    nodes, function = ACTIVATIONS[name]
    x, model = given(), made(tools, nodes)
    assert "Abs" not in {node.op_type for node in model.graph}
    a = function(x.astype(np.float64))
    scale = np.abs(WEIGHT).max(0) / 127
    weight = np.rint(WEIGHT / scale) * scale
    ours = np.square(tools.run(session(model), {"x": x})["y"] - a @ weight).mean()
    both = np.square((of_two_sides(a) - a) @ weight).mean()
    assert ours < both * (0.35 if name == "Relu" else 0.6)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("size", [0.0, 0.02, 0.5, 1e4])
def test_rows_of_any_size(session, tools, name: str, size: float) -> None:
    nodes, function = ACTIVATIONS[name]
    x = given(size=size)
    x[0], x[1] = 0, -np.abs(x[1])  # nothing above zero
    found = tools.run(session(made(tools, nodes)), {"x": x})["y"]
    a = function(x.astype(np.float64))
    sides = Sides(SILU if name == "SiLU" else LOWEST[name])
    step = np.maximum(a.max(1, keepdims=True), sides.floor) / sides.steps
    assert np.isfinite(found).all()
    assert (np.abs(found - a @ WEIGHT) <= (step / 2 * np.abs(WEIGHT).sum(0) + np.abs(a).sum(1, keepdims=True) * 0.02) + 1e-6).all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_row_does_not_depend_on_the_others(session, tools, name: str) -> None:
    runner, x = session(made(tools, ACTIVATIONS[name][0])), given()
    alone = np.concatenate([tools.run(runner, {"x": row[None]})["y"] for row in x])
    large = x.copy()
    large[5] *= 100
    assert np.array_equal(np.delete(alone, 5, 0), np.delete(tools.run(runner, {"x": large})["y"], 5, 0))


def test_channels_that_are_multiplied_move_the_bound(tools) -> None:
    factor = np.linspace(0.5, 4, 64).astype(np.float32)
    nodes = [("Gelu", ["x"], ["g"]), ("Mul", ["g", "factor"], ["a"]), ("MatMul", ["a", "w.weight"], ["y"])]
    model = tools.build(nodes, {"x": ["n", 64]}, {"y": ["n", 24]}, {"w.weight": WEIGHT, "factor": factor})
    *_, product = model.graph
    assert sides_of(product.inputs[0]) == Sides(LOWEST["Gelu"] * 4)
    negative = tools.build(nodes, {"x": ["n", 64]}, {"y": ["n", 24]}, {"w.weight": WEIGHT, "factor": -factor})
    *_, product = negative.graph
    assert sides_of(product.inputs[0]) == Sides()


@pytest.mark.parametrize("alpha", [1.0, 1.702])
def test_a_sigmoid_gate_of_another_steepness_has_a_bound_of_its_own(session, tools, alpha: float) -> None:
    model = tools.build([("Identity", ["x"], ["a"])], {"x": ["n", 64]}, {"a": ["n", 64]})
    (node,) = model.graph
    like = ir.Value(name="gated", type=node.outputs[0].type, shape=node.outputs[0].shape)
    gate = new_node(model.graph, node, "QuickGelu", [node.inputs[0]], {"alpha": alpha}, [like])
    take_over(node.outputs[0], gate.outputs[0])
    x = np.linspace(-8, 8, 6400, dtype=np.float32).reshape(-1, 64)
    values, bound = tools.run(session(model), {"x": x})["a"], sides_of(gate.outputs[0]).least
    assert bound is not None and -values.min() <= bound < 1.01 * -values.min()


def test_gated_values_have_two_sides(session, tools) -> None:
    nodes = [*SILU_NODES[:1], ("Mul", ["x", "s"], ["g"]), ("Mul", ["g", "x"], ["a"])]
    model = made(tools, nodes)
    assert "Abs" in {node.op_type for node in model.graph}


def test_zero_is_a_code_and_the_ends_are_held() -> None:
    for least in (None, 0.0, 0.17, 12.0):
        sides = Sides(least)
        x = np.array([[0.0, 5.0, -(least or 0.0)]], np.float32)
        rounded = sides.rounded(x)
        assert rounded[0, 0] == 0
        assert np.abs(rounded - x).max() <= max(5.0, sides.floor) / sides.steps / 2 + 1e-6
    assert (Sides(0.0).zero, Sides(0.17).zero, Sides().zero) == (0, BELOW_ZERO, 128)
