"""Rotated rows: products and lookups as they were, less lost to a channel that stands out, no row that depends on another."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from onnxport.quantize.plan import Plan
from onnxport.quantize.schemes.apply import quantize
from onnxport.quantize.schemes.rotation import hadamard, rotated, run_length

ROTATED, PLAIN = Plan({"*": "int8-rows-rotated"}), Plan({"*": "int8-rows"})


def relative(got, expected):
    return float(np.sqrt(((got - expected) ** 2).mean() / expected.var()))


def tied(k, vocab=80):
    """ids -> table row, times the same table."""
    table = np.random.default_rng(0).standard_normal((vocab, k)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["embedding.weight", "input_ids"], ["x"]),
        helper.make_node("Gemm", ["x", "embedding.weight"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", vocab])],
        [onnx.numpy_helper.from_array(table, "embedding.weight")],
    )  # fmt: skip
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)), table


def product(k, n=24):
    weight = np.random.default_rng(1).standard_normal((k, n)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "fc.weight"], ["y"])],
        "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "length", n])],
        [onnx.numpy_helper.from_array(weight, "fc.weight")],
    )  # fmt: skip
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)), weight


@pytest.mark.parametrize("size", [8, 16, 32])
def test_the_matrix_is_orthogonal_and_its_own_inverse(size):
    matrix = hadamard(size)
    np.testing.assert_allclose(matrix @ matrix, np.eye(size), atol=1e-6)
    rows = np.random.default_rng(0).standard_normal((3, 5 * size)).astype(np.float32)
    np.testing.assert_allclose(rotated(rotated(rows)), rows, atol=1e-5)


def test_runs_divide_the_channels():
    assert [run_length(k) for k in (576, 1536, 48, 24, 20, 7)] == [32, 32, 16, 8, None, None]


@pytest.mark.parametrize("k", [24, 48, 128, 160])
def test_a_tied_table_is_looked_up_and_multiplied(session, tools, k):
    model, table = tied(k)
    quantized, plan = quantize({"decoder": model}, ROTATED)
    assert plan == {"embedding.weight": "int8-rows-rotated"}
    tables = [v for v in quantized["decoder"].graph.initializers.values() if v.dtype == ir.DataType.INT8]
    assert len({v.const_value.tobytes() for v in tables}) == 1
    got = tools.run(session(quantized["decoder"]), {"input_ids": np.arange(80)})["logits"]
    assert relative(got, table @ table.T) < 0.015


def test_a_channel_that_stands_out_costs_a_fraction(session, tools):
    model, weight = product(256)
    x = np.random.default_rng(2).standard_normal((2, 7, 256)).astype(np.float32)
    x[:, :, 40] *= 80
    expected = x @ weight
    plain, turned = (
        relative(tools.run(session(quantize({"m": model}, plan)[0]["m"]), {"x": x})["y"], expected) for plan in (PLAIN, ROTATED)
    )
    assert turned < plain / 2.5


@pytest.mark.parametrize("solver", ["", "-gptq", "-fit"])
def test_blocks_of_4_bits_are_found_of_rotated_weights(session, tools, solver):
    model, weight = product(128)
    x = np.random.default_rng(5).standard_normal((4, 100, 128)).astype(np.float32)
    quantized, plan = quantize({"m": model}, Plan({"*": f"int4-blocks32-asym-rotated{solver}"}), {"m": [{"x": x}]})
    assert plan == {"fc.weight": f"int4-blocks32-asym-rotated{solver}"}
    assert {"MatMulNBits", "MatMul"} <= {node.op_type for node in quantized["m"].graph}
    assert relative(tools.run(session(quantized["m"]), {"x": x})["y"], x @ weight) < 0.1


def test_a_plan_made_of_what_became_gives_the_same_graph(session):
    model = tied(64)[0]
    first, plan = quantize({"d": model}, ROTATED)
    second, again = quantize({"d": model}, Plan(plan))
    assert plan == again
    assert ir.to_proto(first["d"]).SerializeToString(deterministic=True) == ir.to_proto(second["d"]).SerializeToString(deterministic=True)


def test_channels_that_no_run_divides_keep_plain_rows(session, tools):
    model, weight = product(20)
    quantized, plan = quantize({"m": model}, ROTATED)
    assert plan == {"fc.weight": "int8-rows"}
    x = np.random.default_rng(3).standard_normal((2, 3, 20)).astype(np.float32)
    assert relative(tools.run(session(quantized["m"]), {"x": x})["y"], x @ weight) < 0.012


def test_a_row_is_the_same_alone_and_in_any_batch(session, tools):
    opened = session(quantize({"m": product(256)[0]}, ROTATED)[0]["m"])
    rows = np.random.default_rng(4).standard_normal((64, 1, 256)).astype(np.float32)
    together = tools.run(opened, {"x": rows})["y"]
    for count in (1, 4, 16, 63):
        np.testing.assert_array_equal(tools.run(opened, {"x": rows[:count]})["y"], together[:count])
    long = tools.run(opened, {"x": rows.reshape(1, 64, 256)})["y"]
    np.testing.assert_array_equal(long[0], together[:, 0])
