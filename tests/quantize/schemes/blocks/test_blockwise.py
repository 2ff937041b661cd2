"""Blocks of 8 and 4 bit: errors of each scheme, zero points, padding, tied weights, HQQ and GPTQ, plans carried out again."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from onnxport.graph.store import write
from onnxport.quantize.activation_statistics import Hessian
from onnxport.quantize.plan import Plan
from onnxport.quantize.schemes.apply import quantize
from onnxport.quantize.schemes.blocks.gptq import quantize_gptq
from onnxport.quantize.schemes.blocks.hqq import cost, quantize_hqq
from onnxport.quantize.schemes.blocks.least_error import quantize_nearest
from onnxport.quantize.schemes.blocks.rounding import in_blocks, pack


def relative(got, expected):
    return float(np.sqrt(((got - expected) ** 2).mean() / (expected**2).mean()))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def model(nodes, inputs, outputs, weights):
    """A graph of `nodes` (op, inputs, outputs, attributes) as the fused graphs are, from lists."""
    kinds = {"ids": TensorProto.INT64}
    info = lambda name, shape: helper.make_tensor_value_info(name, kinds.get(name.split("_")[-1], TensorProto.FLOAT), shape)  # noqa: E731
    graph = helper.make_graph(
        [helper.make_node(op, i, o, **attributes) for op, i, o, attributes in nodes],
        "g", [info(*item) for item in inputs.items()], [info(*item) for item in outputs.items()],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10))


def product(weight):
    """x [rows, K] -> x Wᵀ."""
    nodes = [("Gemm", ["x", "fc.weight"], ["y"], {"transB": 1})]
    return model(nodes, {"x": ["rows", weight.shape[1]]}, {"y": ["rows", len(weight)]}, {"fc.weight": weight})


def tied(table):
    """ids -> rows of a table; x -> products with it."""
    nodes = [("Gather", ["embedding.weight", "input_ids"], ["row"], {}), ("Gemm", ["x", "embedding.weight"], ["logits"], {"transB": 1})]
    inputs = {"input_ids": ["ids"], "x": ["rows", table.shape[1]]}
    return model(nodes, inputs, {"row": ["ids", table.shape[1]], "logits": ["rows", len(table)]}, {"embedding.weight": table})


# Relative errors of normal weights; a step's uniform error alone, step / sqrt(12), would be 0.07 to 0.1 of them at 4 bit.
EXPECTED = {(4, 16): 0.075, (4, 32): 0.084, (4, 64): 0.091, (4, 128): 0.1, (4, 256): 0.106, (8, 32): 0.0058, (8, 128): 0.0068}


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "size"), list(EXPECTED))
def test_error_of_weights(bits, size, symmetric):
    weight = normal(64, 512)
    found = relative(quantize_nearest(weight, bits, size, symmetric).values(512), weight)
    assert 0.75 * EXPECTED[bits, size] < found < EXPECTED[bits, size]


@pytest.mark.parametrize("bits", [4, 8])
def test_zero_points_follow_weights_that_are_all_of_one_sign(bits):
    weight = np.abs(normal(32, 128)) + 0.5
    symmetric, asymmetric = (relative(quantize_nearest(weight, bits, 32, s).values(128), weight) for s in (True, False))
    assert asymmetric < 1.05 * symmetric
    shifted = normal(32, 128) + np.float32(1.5)  # -1 to 4: symmetric codes waste half of their range
    symmetric, asymmetric = (relative(quantize_nearest(shifted, bits, 32, s).values(128), shifted) for s in (True, False))
    assert asymmetric < 0.8 * symmetric


def test_blocks_of_zeros_stay_zero_and_others_of_any_size_are_held():
    weight = np.concatenate([np.zeros((1, 64)), normal(3, 64) * 1e-12, normal(3, 64) * 1e12]).astype(np.float32)
    for bits, solve in ((4, quantize_nearest), (8, quantize_nearest), (4, quantize_hqq)):
        for symmetric in (True, False):
            values = solve(weight, bits, 32, symmetric).values(64)
            assert not values[0].any() and np.isfinite(values).all()
            assert relative(values[1:4] * 1e12, weight[1:4] * 1e12) < 0.1 and relative(values[4:], weight[4:]) < 0.1


def test_the_first_of_two_values_is_the_low_half_of_a_byte():
    np.testing.assert_array_equal(pack(np.array([[1, 2, 15]], np.uint8), 4), [[0x21, 0x0F]])


SCHEMES = [f"int{bits}-blocks{size}{asym}" for bits in (4, 8) for size in (16, 32, 128) for asym in ("", "-asym")]


@pytest.mark.parametrize("name", [*SCHEMES, "int4-blocks64-hqq", "int4-blocks-asym-hqq"])
@pytest.mark.parametrize(("k", "n"), [(256, 48), (200, 7), (96, 33), (24, 16)])
def test_kernels_read_what_was_written(session, tools, name, k, n):
    """Blocks that do not divide K, odd numbers of blocks, few outputs: rows that are looked up are those that are multiplied by."""
    table = normal(n + 16, k, seed=1)
    quantized, plan = quantize({"decoder": tied(table)}, Plan({"*": name}))
    opened = session(quantized["decoder"])
    x = np.concatenate([normal(3, k, seed=2), np.zeros((1, k), np.float32)])
    for rows in (1, 4):
        got = tools.run(opened, {"input_ids": np.arange(len(table)), "x": x[-rows:]})
        assert relative(got["row"], table) < (0.115 if "int4" in name else 0.008)
        assert not got["logits"][-1].any()
        if rows > 1:
            assert relative(got["logits"], x @ got["row"].T) < 0.012  # activations are rounded to 8 bit
    size = int(plan["embedding.weight"].split("blocks")[1].split("-")[0])
    assert size <= max(16, 2 * k)


@pytest.mark.parametrize(
    "name", ["int4-blocks32", "int4-blocks64-asym", "int8-blocks64-asym", "int4-blocks64-gptq", "int4-blocks32-asym-hqq"]
)
def test_a_tied_table_is_stored_once(tmp_path, name):
    table = normal(300, 192)
    feeds = {"decoder": [{"input_ids": np.arange(3), "x": normal(400, 192)}]}
    quantized, plan = quantize({"decoder": tied(table)}, Plan({"*": name}), feeds)
    write(quantized, tmp_path)
    bits, size = int(name[3]), int(name.split("blocks")[1][:2])
    blocks = 192 // size
    zero = (blocks * bits + 7) // 8 if "asym" in name else 0
    expected = 300 * (192 * bits // 8 + 4 * blocks + zero)
    assert expected <= (tmp_path / "weights.bin").stat().st_size < expected + 1024
    assert plan == {"embedding.weight": name}


def test_hqq_errs_less_than_the_nearest_by_its_own_measure_and_keeps_ordinary_weights_beside_outliers():
    weight = np.random.default_rng(3).standard_t(3, (64, 256)).astype(np.float32)
    for symmetric in (True, False):
        nearest, hqq = (solve(weight, 4, 64, symmetric) for solve in (quantize_nearest, quantize_hqq))
        blocks = in_blocks(weight, 64)
        assert (cost(hqq.grid, blocks) <= cost(nearest.grid, blocks)).all()
        assert cost(hqq.grid, blocks).sum() < 0.99 * cost(nearest.grid, blocks).sum()
        ordinary = np.abs(weight) < 2
        errors = [np.abs(found.values(256) - weight)[ordinary].mean() for found in (nearest, hqq)]
        assert errors[1] < errors[0]


@pytest.mark.parametrize(("symmetric", "k"), [(True, 192), (False, 192), (True, 200)])
def test_gptq_errs_less_at_outputs_than_the_nearest(symmetric, k):
    """On inputs that hang together, as real ones do, and on others of their kind; a channel that is never used does no harm."""
    mix = normal(12, k, seed=4)
    inputs = [normal(500, 12, seed=s) @ mix + 0.3 * normal(500, k, seed=s + 9) for s in (5, 6)]
    for x in inputs:
        x[:, 7] = 0
    weight = normal(48, k, seed=7)
    found = quantize_gptq(weight, 4, 64, symmetric, [(inputs[0].T @ inputs[0] / 500).astype(np.float64)]).values(k)
    nearest = quantize_nearest(weight, 4, 64, symmetric).values(k)
    for x in inputs:
        assert relative(x @ found.T, x @ weight.T) < 0.6 * relative(x @ nearest.T, x @ weight.T)
    assert np.isfinite(found).all() and relative(found, weight) < 0.3


def test_gptq_of_a_layer_that_gets_white_noise_is_near_the_nearest():
    weight = normal(48, 128)
    found = quantize_gptq(weight, 4, 32, True, [np.eye(128)])
    assert (found.codes != quantize_nearest(weight, 4, 32, True).codes).mean() == 0


def test_of_a_wide_layer_parts_are_solved_alone(monkeypatch):
    monkeypatch.setattr(Hessian, "WIDEST", 64)
    weight, rows, watched = normal(16, 160), normal(300, 160, seed=1) @ normal(160, 160, seed=2), Hessian()
    for some in np.array_split(rows, 7):
        watched.add(some)
    parts = watched.mean()
    assert [part.shape for part in parts] == [(64, 64), (64, 64), (32, 32)] and Hessian.bytes_of(160) == sum(part.nbytes for part in parts)
    assert relative(parts[1], rows[:, 64:128].T @ rows[:, 64:128] / 300) < 1e-6
    whole = quantize_gptq(weight, 4, 32, False, parts)
    alone = [quantize_gptq(weight[:, a:b], 4, 32, False, [part]) for a, b, part in zip((0, 64, 128), (64, 128, 160), parts, strict=True)]
    assert np.array_equal(whole.codes, np.concatenate([one.codes for one in alone], 1))


def test_a_weight_with_two_uses_is_rounded_once_for_both_of_their_inputs(tmp_path, session, tools):
    weight = normal(64, 128)
    nodes = [("Gemm", [x, "fc.weight"], [y], {"transB": 1}) for x, y in (("x", "y"), ("other", "z"))]
    shared = model(nodes, {"x": ["n", 128], "other": ["m", 128]}, {"y": ["n", 64], "z": ["m", 64]}, {"fc.weight": weight})
    narrow = {seed: normal(300, 6, seed=seed) @ normal(6, 128, seed=seed + 1) for seed in (1, 5)}
    feeds = {"decoder": [{"x": narrow[1], "other": narrow[5]}]}
    quantized, _ = quantize({"decoder": shared}, Plan({"*": "int4-blocks128-gptq"}), feeds)
    write(quantized, tmp_path)
    assert (tmp_path / "weights.bin").stat().st_size < 64 * 64 + 64 * 4 + 512
    got = tools.run(session(quantized["decoder"]), feeds["decoder"][0])
    assert relative(got["y"], narrow[1] @ weight.T) < 0.05 and relative(got["z"], narrow[5] @ weight.T) < 0.05


def test_mixed_plans_give_the_same_bytes_again(standard, tmp_path):
    from onnxport.quantize.fusion import fuse

    fused, _ = fuse(standard, "decoder", "cpu")
    plan = Plan(
        {
            "*": "int4-blocks16-hqq",
            "layers.0": "int8-blocks-asym",
            "layers.1.up": "fp32",
            "layers.1.qkv": "int8-rows",
            "*.down": "int4-blocks",
        }
    )
    files = []
    for name in ("a", "b"):
        quantized, became = quantize({"decoder": fused}, plan)
        write(quantized, tmp_path / name)
        files.append([(tmp_path / name / file).read_bytes() for file in ("decoder.onnx", "weights.bin")])
        plan = Plan(became)  # with all sizes told
    assert files[0] == files[1]
    assert became["layers.0.qkv.weight"] == "int8-blocks32-asym" and became["layers.0.down.weight"] in (
        "int4-blocks16",
        "int8-blocks16-asym",
    )
    assert set(became.values()) >= {"fp32", "int8-rows", "int4-blocks16-hqq"}


@pytest.mark.parametrize(
    ("narrow", "asked", "told"),
    [(32, "int8-blocks", "int8-blocks"), (32, "int4-blocks16", "int4-blocks16"), (12, "int8-rows", "int8-rows+fp32")],
)
def test_a_weight_that_is_used_both_ways_has_one_scheme(tools, narrow, asked, told):
    """As in an autoencoder with tied weights: K is `narrow` in one use and 64 in the other."""
    weight = np.eye(narrow, 64, dtype=np.float32)
    nodes = [("MatMul", ["x", "w"], ["y"]), ("Gemm", ["y", "w"], ["z"], {"transB": 1})]
    model = tools.build(nodes, {"x": ["n", narrow]}, {"z": ["n", narrow]}, {"w": weight})
    one, became = quantize({"model": model}, Plan({"*": asked}))
    assert became == {"w": told}
    again, _ = quantize({"model": model}, Plan(became))
    assert [node.op_type for node in again["model"].graph] == [node.op_type for node in one["model"].graph]


def test_parts_of_a_weight_have_names_that_a_plan_can_hold(tools):
    """A weight that the graph splits: its parts are called `qk[0]` and `qk[1]`, which is no pattern."""
    nodes = [("Split", ["qk"], ["q", "k"], {"axis": 1, "num_outputs": 2}), ("MatMul", ["x", "q"], ["a"]), ("MatMul", ["x", "k"], ["b"])]
    model = tools.build([*nodes, ("Add", ["a", "b"], ["y"])], {"x": ["n", 32]}, {"y": ["n", 16]}, {"qk": np.eye(32, dtype=np.float32)})
    wanted = {"qk[0]": "int8-rows", "qk[1]": "int4-blocks32"}
    assert quantize({"model": model}, Plan(wanted))[1] == wanted
