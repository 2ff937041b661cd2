"""Weights that lie on a grid of integers already keep their codes: nothing is lost, whatever the grid's blocks."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from onnxport.quantize.plan import Plan, scheme
from onnxport.quantize.schemes.apply import quantize
from onnxport.quantize.schemes.blocks.stored import own_plan, scheme_of, stored_blocks


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def on_a_grid(
    bits: int, size: int, zeros: bool, seed: int = 0, n: int = 24, k: int = 256
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Codes and zeros uint8, steps of float16, and the weight [N, K] that they stand for."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0 if bits == 4 else 1, 1 << bits, (n, k // size, size)).astype(np.uint8)
    step = (rng.random((n, k // size)) * 0.1 + 0.01).astype(np.float16).astype(np.float32)
    zero = rng.integers(1, 1 << bits, step.shape).astype(np.uint8) if zeros else np.full(step.shape, 1 << (bits - 1), np.uint8)
    weight = (codes.astype(np.float32) - zero[..., None]) * step[..., None]
    return codes, zero, step, weight.reshape(n, k).astype(np.float32)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("size", [16, 32, 128, 256])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_very_codes_are_found(bits: int, size: int, zeros: bool) -> None:
    codes, zero, step, weight = on_a_grid(bits, size, zeros)
    name = scheme_of(weight, (4, 8))
    assert name == f"int{bits}-blocks{size}{'-asym' if zeros else ''}"
    found = stored_blocks(weight, scheme(name), size)
    assert found is not None and np.array_equal(found.values(weight.shape[1]), weight)
    full = (np.abs(codes.astype(int) - zero[..., None]).max(-1) > (6 if bits == 4 else 100)) & (found.grid.scale > 0)
    same = np.isclose(found.grid.scale, step, rtol=1e-6)
    assert same[full].mean() > 0.9  # codes with a common divisor may be said with a larger step
    assert np.array_equal(found.codes[same], codes[same]) or zeros


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_weights_that_lie_on_no_grid(kind: type) -> None:
    weight = np.random.default_rng(1).standard_normal((24, 256)).astype(kind).astype(np.float32)
    assert scheme_of(weight, (4, 8)) is None
    assert stored_blocks(weight, scheme("int4-blocks32"), 32) is None


def test_one_row_off_the_grid_is_enough() -> None:
    _, _, _, weight = on_a_grid(4, 32, False)
    weight[17, 200] += 1e-3
    assert scheme_of(weight, (4, 8)) is None


def test_steps_that_float32_rounded() -> None:
    rng = np.random.default_rng(2)
    codes = rng.integers(-8, 8, (16, 2, 32)).astype(np.float32)
    weight = (codes * rng.random((16, 2, 1), np.float32)).reshape(16, 64)
    found = stored_blocks(weight, scheme("int4-blocks32"), 32)
    assert found is not None and np.abs(found.values(64) - weight).max() < 2e-7 * np.abs(weight).max()


def test_the_largest_codes_of_both_signs_in_a_block() -> None:
    weight = np.tile(np.array([3, -3, 0, 0] * 4 + [7, -8, 1, 2] * 4, np.float32) * 0.1, (8, 1))
    found = stored_blocks(weight, scheme("int4-blocks16"), 16)
    assert found is not None and np.allclose(found.values(32), weight, rtol=1e-6)
    assert scheme_of(weight[:, :16] + 0.0, (4, 8)) == "int4-blocks16"


@pytest.mark.parametrize(("bits", "most"), [(4, 3), (4, 15), (8, 31)])  # of Q2_K, Q4_K, Q5_K
def test_blocks_that_begin_at_a_number_of_their_own(bits: int, most: int) -> None:
    rng = np.random.default_rng(5)
    codes = rng.integers(0, most + 1, (24, 8, 32)).astype(np.float32)
    step, least = rng.random((24, 8, 1), np.float32) * 0.01 + 0.001, rng.random((24, 8, 1), np.float32) * 0.1
    weight = (step * codes - least).reshape(24, 256)
    assert scheme_of(weight) == f"int{bits}-blocks32-min"
    found = stored_blocks(weight, scheme(f"int{bits}-blocks32-min"), 32)
    assert found is not None and np.abs(found.values(256) - weight).max() < 2e-7 * np.abs(weight).max()


def sorted_weight(zeros: bool, seed: int = 0, n: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """A weight whose groups of 32 lie across its inputs, as GPTQ's `desc_act` leaves them, and its columns in the order of their groups."""
    _, _, _, weight = on_a_grid(4, 32, zeros, seed, n)
    place = np.random.default_rng([seed, 1]).permutation(256)
    mixed = np.empty_like(weight)
    mixed[:, place] = weight
    return mixed, weight


@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("zeros", [False, True])
def test_groups_that_lie_across_the_inputs(zeros: bool, dead: bool) -> None:
    weight, _ = sorted_weight(zeros)
    if dead:  # inputs without any weight are of any group
        weight[:, [3, 77, 78]] = 0
    name = scheme_of(weight)
    assert name == f"int4-blocks32{'-asym' if zeros else ''}-sorted"
    found = stored_blocks(weight, scheme(name), 32)
    assert found is not None and found.order is not None and sorted(found.order) == list(range(256))
    assert np.array_equal(found.values(256), weight)


def test_groups_of_two_sizes_are_none() -> None:
    weight, _ = sorted_weight(False)
    weight[:, 5] = np.random.default_rng(6).standard_normal(len(weight))
    assert scheme_of(weight) is None


@pytest.mark.parametrize("name", ["int4-blocks32-min", "int8-blocks16-min", "int4-blocks32-asym-sorted"])
@pytest.mark.parametrize("stored", [False, True])
def test_kernels_of_these_forms_give_the_weights_products(name: str, stored: bool) -> None:
    weight = sorted_weight(True, n=256)[0] if name.endswith("sorted") else on_a_grid(4, 32, False, n=256)[3] + np.float32(0.01)
    if not stored:  # a plan may name any weight: it is rounded to the form
        weight = np.random.default_rng(7).standard_normal(weight.shape).astype(np.float32)
    graphs = {"model": product({"a.first": weight, "b.second": weight[::-1].copy()})}
    made, became = quantize(graphs, Plan({"*": name}))
    assert set(became.values()) == {name} and quantize(graphs, Plan(became))[1] == became
    x = np.random.default_rng(4).standard_normal((3, 256)).astype(np.float32)
    wanted, found = run(graphs["model"], x), run(made["model"], x)
    bound = 0.02 if stored else 0.2 if name.startswith("int4") else 0.03
    assert np.sqrt(((wanted - found) ** 2).mean() / (wanted**2).mean()) < bound


def test_rows_that_begin_at_numbers_of_their_own_are_looked_up() -> None:
    table = on_a_grid(4, 32, False, n=48)[3] + np.float32(0.01)
    ids = ir.Value(name="input_ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["batch", "length"]))
    rows = ir.Value(name="embed.weight", const_value=ir.tensor(table, name="embed.weight"))
    node = ir.Node("", "Gather", [rows, ids])
    node.outputs[0].name, node.outputs[0].type = "x", ir.TensorType(ir.DataType.FLOAT)
    node.outputs[0].shape = ir.Shape(["batch", "length", 256])
    graph = ir.Graph([ids], node.outputs, nodes=[node], initializers=[rows], opset_imports={"": 23})
    assert scheme_of(table) == "int4-blocks32-min"
    made, _ = quantize({"model": ir.Model(graph, ir_version=10)}, Plan({"*": "int4-blocks32-min"}))
    asked = np.array([[3, 47, 0], [9, 9, 30]])
    session = onnxruntime.InferenceSession(ir.to_proto(made["model"]).SerializeToString(), providers=["CPUExecutionProvider"])
    assert np.abs(session.run(None, {"input_ids": asked})[0] - table[asked]).max() < 1e-6


def product(weights: dict[str, np.ndarray]) -> ir.Model:
    """x → one product after the other."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["rows", 256]))
    nodes, initializers, y = [], [], x
    for name, weight in weights.items():
        value = ir.Value(name=f"{name}.weight", const_value=ir.tensor(weight.T.copy(), name=f"{name}.weight"))
        initializers.append(value)
        nodes.append(ir.Node("", "MatMul", [y, value]))
        y = nodes[-1].outputs[0]
        y.name, y.type = f"{name}.out", ir.TensorType(ir.DataType.FLOAT)
    y.shape = ir.Shape(["rows", len(weight)])
    graph = ir.Graph([x], [y], nodes=nodes, initializers=initializers, opset_imports={"": 23})
    return ir.Model(graph, ir_version=10)


def test_a_plan_of_blocks_takes_codes_over_and_keeps_the_rest_in_8_bits() -> None:
    _, _, _, four = on_a_grid(4, 128, True, n=256)
    _, _, _, eight = on_a_grid(8, 32, False, seed=1, n=256)
    free = np.random.default_rng(3).standard_normal((32, 256)).astype(np.float32)
    graphs = {"model": product({"a.four": four, "b.more": four[::-1].copy(), "c.eight": eight, "d.free": free})}
    plan = own_plan(Plan({"*": "int4-blocks64"}), graphs)
    assert plan.schemes == {
        "*": "int8-blocks",
        "a.four.weight": "int4-blocks128-asym",
        "b.more.weight": "int4-blocks128-asym",
        "c.eight.weight": "int8-blocks32",
    }
    made, became = quantize(graphs, plan)
    assert became["d.free.weight"] == "int8-blocks128" and became["a.four.weight"] == "int4-blocks128-asym"
    assert quantize(graphs, Plan(became))[1] == became
    x = np.random.default_rng(4).standard_normal((3, 256)).astype(np.float32)
    wanted, found = run(graphs["model"], x), run(made["model"], x)
    assert np.sqrt(((wanted - found) ** 2).mean() / (wanted**2).mean()) < 0.02  # activations are rounded to 8 bits four times


def test_other_plans_and_other_weights_stay_as_they_are() -> None:
    _, _, _, four = on_a_grid(4, 128, True)
    free = np.random.default_rng(3).standard_normal((256, 256)).astype(np.float32)
    graphs = {"model": product({"a.free": free, "b.four": four})}
    assert own_plan(Plan({"*": "int4-blocks64"}), graphs).schemes == {"*": "int4-blocks64", "b.four.weight": "int4-blocks128-asym"}
    for schemes in ({"*": "int8-rows"}, {"*": "int4-blocks64-gptq"}, {"*": "int4-blocks64", "a.free": "fp32"}):
        assert own_plan(Plan(schemes), graphs).schemes == schemes
    assert own_plan(Plan({"*": "int8-blocks"}), {"model": product({"a.free": free})}).schemes == {"*": "int8-blocks"}
    assert scheme("int8-blocks").kind == "blocks"
