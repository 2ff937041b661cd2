"""One scale serves what norms make, where texts show that products hardly lose by it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxport.quantize.plan import Plan
from onnxport.quantize.safeguards.static_norms import STATIC, settle
from onnxport.quantize.schemes.apply import quantize
from onnxport.quantize.schemes.channel_scales import ChannelScales

ROWS = Plan({"*": "int8-rows"})
NODES = [
    ("LayerNormalization", ["x", "norm.weight", "norm.bias"], ["n"]),
    ("MatMul", ["n", "up.weight"], ["u0"]),
    ("Add", ["u0", "up.bias"], ["u"]),
    ("Gelu", ["u"], ["g"]),
    ("MatMul", ["g", "down.weight"], ["d"]),
    ("Add", ["d", "n"], ["y"]),
]


def model(tools, weight: np.ndarray | None = None) -> ir.Model:
    random = np.random.default_rng(0)
    weights = {
        "norm.weight": np.ones(64, np.float32) if weight is None else weight,
        "norm.bias": np.zeros(64, np.float32),
        "up.weight": (random.standard_normal((64, 128)) / 8).astype(np.float32),
        "up.bias": random.standard_normal(128).astype(np.float32),
        "down.weight": (random.standard_normal((128, 64)) / 11).astype(np.float32),
    }
    return tools.build(NODES, {"x": ["n", 64]}, {"y": ["n", 64]}, weights)


def feeds(seed: int, small: int = 0) -> list[dict[str, np.ndarray]]:
    """small: so many rows are so small that the norm's epsilon leaves them small."""
    x = np.random.default_rng(seed).standard_normal((200, 64)).astype(np.float32)
    x[:small] *= 1e-4
    return [{"x": x}]


def test_what_a_norm_makes_gets_one_scale(session, tools) -> None:
    graph = model(tools)
    seen = feeds(1)
    scales = ChannelScales(graph, seen)
    plan = settle(graph, ROWS, scales)
    assert plan.of("up.weight").name == STATIC
    assert plan.of("down.weight").name == "int8-rows"  # no norm bounds what an activation function makes
    made = quantize({"encoder": scales.scaled(plan)}, plan, {"encoder": seen})[0]["encoder"]
    products = [node for node in made.graph if node.op_type == "MatMulIntegerToFloat"]
    assert len(products[0].inputs) == 7  # with its bias
    given = feeds(2)[0]
    right, found = (tools.run(session(one), given)["y"] for one in (graph, made))
    rows = quantize({"encoder": ChannelScales(graph, seen).scaled(ROWS)}, ROWS)[0]["encoder"]
    by_rows = tools.run(session(rows), given)["y"]
    assert np.square(found - right).mean() < 1.5 * np.square(by_rows - right).mean()


def test_one_channel_that_stands_out_is_evened(session, tools) -> None:
    weight = np.ones(64, np.float32)
    weight[9] = 30
    graph = model(tools, weight)
    scales = ChannelScales(graph, seen := feeds(1))
    assert settle(graph, ROWS, scales).of("up.weight").name == STATIC
    losses = scales.losses(Plan({"*": STATIC}))
    plain = ChannelScales(model(tools), seen).losses(Plan({"*": STATIC}))
    assert losses["n"] < 3 * plain["n"]


def test_rows_of_unlike_sizes_keep_their_own_scales(tools) -> None:
    graph = model(tools)
    assert settle(graph, ROWS, ChannelScales(graph, feeds(1, small=120))).of("up.weight").name == "int8-rows"


def test_what_the_plan_leaves_stays(tools) -> None:
    graph = model(tools)
    plan = Plan({"*": "int8-rows", "up.weight": "fp32"})
    assert settle(graph, plan, ChannelScales(graph, feeds(1))).of("up.weight").name == "fp32"
    reduced = settle(graph, Plan({"*": "int8-rows-reduced"}), ChannelScales(graph, feeds(1)))
    assert reduced.of("up.weight").name == f"{STATIC}-reduced"
