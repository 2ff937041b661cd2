"""Scaled channels leave the answers of a float graph as they are, cost no node where something takes the division, and lose less."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxport.quantize.plan import Plan
from onnxport.quantize.schemes.apply import quantize
from onnxport.quantize.schemes.channel_scales import ChannelScales

ROWS, BLOCKS = Plan({"*": "int8-rows"}), Plan({"*": "int4-blocks32-asym"})


def weight(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def spiky(width: int) -> np.ndarray:
    """The weight of a norm that makes three channels stand out."""
    found = np.ones(width, np.float32)
    found[[1, 5, 17]] = 60
    return found


def feed(rows: int = 24, width: int = 32) -> dict[str, np.ndarray]:
    return {"x": weight(1, rows, width, seed=rows)}


NORM = ("RMSNormalization", ["x", "norm.weight"], ["n"])
GATED = [
    NORM,
    ("MatMul", ["n", "gate.weight"], ["g"]),
    ("MatMul", ["n", "up.weight"], ["u0"]),
    ("Add", ["u0", "up.bias"], ["u"]),
    ("Sigmoid", ["g"], ["s"]),
    ("Mul", ["s", "u"], ["m"]),
    ("MatMul", ["m", "down.weight"], ["y"]),
]


def gated() -> dict[str, np.ndarray]:
    up = weight(32, 64, seed=1)
    up[:, 7] *= 40
    return {
        "norm.weight": spiky(32),
        "gate.weight": weight(32, 64, seed=2),
        "up.weight": up,
        "up.bias": weight(64, seed=3),
        "down.weight": weight(64, 32, seed=4),
    }


def joined() -> dict[str, np.ndarray]:
    parts = gated()
    both = np.concatenate([parts["gate.weight"], parts["up.weight"]], 1)
    return {"norm.weight": parts["norm.weight"], "gate_up.weight": both, "down.weight": parts["down.weight"]}


JOINED = [
    NORM,
    ("MatMul", ["n", "gate_up.weight"], ["b"]),
    ("Split", ["b"], ["g", "u"], {"axis": -1, "num_outputs": 2}),
    ("Sigmoid", ["g"], ["s"]),
    ("Mul", ["s", "u"], ["m"]),
    ("MatMul", ["m", "down.weight"], ["y"]),
]


def build(tools, nodes, weights, width: int = 32) -> ir.Model:
    return tools.build(nodes, {"x": [1, "n", width]}, {"y": [1, "n", 32]}, weights)


def error(session, tools, plain: ir.Model, other: ir.Model, plan: Plan) -> float:
    x = feed(40)
    expected = tools.run(session(plain), x)["y"]
    found = tools.run(session(quantize({"decoder": other}, plan)[0]["decoder"]), x)["y"]
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(("plan", "share"), [(ROWS, 0.5), (BLOCKS, 0.9)], ids=["rows", "blocks"])
@pytest.mark.parametrize(("nodes", "weights"), [(GATED, gated), (JOINED, joined)], ids=["two products", "one product"])
def test_norms_and_factors_take_the_division(session, tools, nodes, weights, plan: Plan, share: float) -> None:
    model = build(tools, nodes, weights())
    other = ChannelScales(model, [feed()]).scaled(plan)
    assert [node.op_type for node in other.graph] == [node.op_type for node in model.graph]
    x = feed(9)
    np.testing.assert_allclose(tools.run(session(other), x)["y"], tools.run(session(model), x)["y"], rtol=1e-4, atol=2e-2)
    assert error(session, tools, model, other, plan) < share * error(session, tools, model, model, plan)
    changed = {name for name, value in other.graph.initializers.items() if not same(value, model.graph.initializers[name])}
    assert {"norm.weight", "down.weight"} <= changed  # under the names that plans know
    assert "gate.weight" in changed or "gate_up.weight" in changed


def same(one: ir.Value, other: ir.Value) -> bool:
    assert one.const_value is not None and other.const_value is not None
    return np.array_equal(one.const_value.numpy(), other.const_value.numpy())


def test_a_bias_is_divided_with_its_weight(tools) -> None:
    model = build(tools, GATED, gated())
    other = ChannelScales(model, [feed()]).scaled(ROWS)
    ratio = {
        name: other.graph.initializers[name].const_value.numpy() / model.graph.initializers[name].const_value.numpy()
        for name in ("up.bias", "down.weight")
    }
    np.testing.assert_allclose(ratio["up.bias"] * ratio["down.weight"][:, 0], 1, rtol=1e-4)
    assert ratio["up.bias"].std() > 0.1


def test_heads_that_share_values_share_scales() -> None:
    """Four heads of 8 read the values of two: what divides a value is the same in both heads that read it."""
    nodes = [
        ("MatMul", ["x", "q.weight"], ["q"]),
        ("MatMul", ["x", "k.weight"], ["k"]),
        ("MatMul", ["x", "v.weight"], ["v"]),
        (
            "GroupQueryAttention",
            ["q", "k", "v", "", "", "seqlens_k", "total"],
            ["a", "present_key", "present_value"],
            {"num_heads": 4, "kv_num_heads": 2, "domain": "com.microsoft"},
        ),
        ("MatMul", ["a", "o.weight"], ["y"]),
    ]
    values = weight(32, 16, seed=5)
    values[:, 3] *= 50
    weights = {
        "q.weight": weight(32, 32, seed=6),
        "k.weight": weight(32, 16, seed=7),
        "v.weight": values,
        "o.weight": weight(32, 32, seed=8),
    }
    values_of = [helper.make_tensor_value_info(name, TensorProto.INT32, dims) for name, dims in (("seqlens_k", [1]), ("total", []))]
    graph = helper.make_graph(
        [helper.make_node(op, read, made, **dict(*more)) for op, read, made, *more in nodes],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "n", 32]), *values_of],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "n", 32])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    imports = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=10))
    x = feed(12) | {"seqlens_k": np.array([11], np.int32), "total": np.array(12, np.int32)}
    other = ChannelScales(model, [x]).scaled(ROWS)
    scale = other.graph.initializers["o.weight"].const_value.numpy() / weights["o.weight"]
    scale = scale.mean(1).reshape(2, 2, 8)
    np.testing.assert_allclose(scale[:, 0], scale[:, 1], rtol=1e-4)
    divided = other.graph.initializers["v.weight"].const_value.numpy() / weights["v.weight"]
    np.testing.assert_allclose(divided.mean(0), 1 / scale[:, 0].ravel(), rtol=1e-4)
    assert scale[0, 0, 3] > 2


def test_what_something_else_reads_stays(session, tools) -> None:
    """The norm's result goes on beside the products: a division of its own has to pay, and here it does."""
    nodes = [*GATED[:-1], ("MatMul", ["m", "down.weight"], ["d"]), ("Add", ["d", "n"], ["y"])]
    model = build(tools, nodes, gated())
    other = ChannelScales(model, [feed()]).scaled(ROWS)
    assert same(other.graph.initializers["norm.weight"], model.graph.initializers["norm.weight"])
    assert [node.op_type for node in other.graph].count("Mul") == 2
    x = feed(9)
    np.testing.assert_allclose(tools.run(session(other), x)["y"], tools.run(session(model), x)["y"], rtol=1e-4, atol=2e-2)


def test_even_channels_get_no_node(tools) -> None:
    nodes = [("MatMul", ["x", "a.weight"], ["y"])]
    model = build(tools, nodes, {"a.weight": weight(32, 32)})
    assert [node.op_type for node in ChannelScales(model, [feed()]).scaled(ROWS).graph] == ["MatMul"]


def test_tied_and_float_weights_stay(tools) -> None:
    model = build(tools, GATED, gated())
    other = ChannelScales(model, [feed()]).scaled(Plan({"down": "int8-rows"}))
    assert same(other.graph.initializers["norm.weight"], model.graph.initializers["norm.weight"])
    assert not same(other.graph.initializers["down.weight"], model.graph.initializers["down.weight"])


@pytest.mark.parametrize(
    ("nodes", "more"),
    [
        ([("Add", ["u0", "one"], ["u"])], {"one": np.array(1, np.float32)}),  # a bias that is one number
        ([("MatMul", ["n", "narrow.weight"], ["u"])], {"narrow.weight": weight(32, 1, seed=9)}),  # a gate for a whole token
    ],
    ids=["scalar bias", "narrow product"],
)
def test_what_has_other_channels_takes_no_division(session, tools, nodes, more) -> None:
    """A factor of one channel, or a bias of one number, cannot be divided channel by channel."""
    some = [NORM, GATED[1], GATED[2], *nodes, ("Mul", ["g", "u"], ["m"]), GATED[-1]]
    weights = {name: array for name, array in (gated() | more).items() if name != "up.bias"}
    model = build(tools, some, weights)
    other = ChannelScales(model, [feed()]).scaled(ROWS)
    x = feed(9)
    expected = tools.run(session(model), x)["y"]
    assert np.abs(tools.run(session(other), x)["y"] - expected).max() < 1e-4 * np.abs(expected).max()


def test_blocks_are_those_of_the_kernel(tools) -> None:
    """192 inputs have blocks of 64: a plan that tells the size finds the same scales as one that leaves it open."""
    norm = ("RMSNormalization", ["x", "norm.weight"], ["n"])
    for seed in range(5):
        weights = {"norm.weight": spiky(192), "a.weight": weight(192, 32, seed=seed)}
        model = tools.build([norm, ("MatMul", ["n", "a.weight"], ["y"])], {"x": [1, "n", 192]}, {"y": [1, "n", 32]}, weights)
        one, other = (ChannelScales(model, [feed(width=192)]).scaled(Plan({"*": name})) for name in ("int8-blocks", "int8-blocks64"))
        assert same(one.graph.initializers["norm.weight"], other.graph.initializers["norm.weight"])
