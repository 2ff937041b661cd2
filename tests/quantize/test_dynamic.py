"""The default INT8 recipe: bounds, independence of batch-mates, tied weights, bytes."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from onnxport.errors import CheckpointError
from onnxport.quantize.dynamic import to_int8
from onnxport.quantize.fusion import fuse
from onnxport.quantize.store import write

RNG = np.random.default_rng(0)


def relative(got, expected):
    return float(np.sqrt(((got - expected) ** 2).mean() / expected.var()))


def linear_model(k, n, bias=True, kind="MatMul"):
    """x [batch, length, K] (Gemm: [batch, K]) -> y; the weight is random normal."""
    weight = RNG.standard_normal((k, n)).astype(np.float32)
    offset = RNG.standard_normal(n).astype(np.float32)
    shape = ["batch", k] if kind == "Gemm" else ["batch", "length", k]
    stored = {"fc.weight": weight if kind == "MatMul" else weight.T.copy(), "fc.bias": offset}
    if kind == "Gemm":
        nodes = [helper.make_node("Gemm", ["x", "fc.weight"] + ["fc.bias"] * bias, ["y"], transB=1)]
    elif bias:
        nodes = [helper.make_node("MatMul", ["x", "fc.weight"], ["xw"]), helper.make_node("Add", ["xw", "fc.bias"], ["y"])]
    else:
        nodes = [helper.make_node("MatMul", ["x", "fc.weight"], ["y"])]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*shape[:-1], n])],
        [onnx.numpy_helper.from_array(v, k) for k, v in stored.items() if bias or "bias" not in k],
    )  # fmt: skip
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10))
    return model, weight, offset if bias else np.float32(0)


@pytest.mark.parametrize("role", ["encoder", "decoder"])
@pytest.mark.parametrize(
    ("k", "n", "bias", "kind"),
    [(64, 48, True, "MatMul"), (128, 33, False, "MatMul"), (200, 24, True, "Gemm"), (24, 40, False, "Gemm"), (16, 7, True, "MatMul")],
)
def test_error_of_one_product(session, tools, role, k, n, bias, kind):
    model, weight, offset = linear_model(k, n, bias, kind)
    quantized, plan = to_int8({role: model})
    assert set(plan) == {"fc.weight"} and plan["fc.weight"].startswith("int8-rows" if role == "encoder" else "int8-blocks")
    x = RNG.standard_normal((5, k) if kind == "Gemm" else (2, 3, k)).astype(np.float32)
    got = tools.run(session(quantized[role]), {"x": x})["y"]
    assert relative(got, x @ weight + offset) < 0.012


def test_the_given_model_stays_as_it_was():
    model, _, _ = linear_model(32, 16)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    to_int8({"encoder": model})
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("role", ["encoder", "decoder"])
@pytest.mark.parametrize("outlier", [1.0, 60.0, 1e4])
def test_a_row_is_the_same_alone_and_in_any_batch(session, tools, role, outlier):
    """Row scales: to the last bit. Blocks: what stands in other rows changes nothing, their number only the order of a sum."""
    model, _, _ = linear_model(256, 48)
    opened = session(to_int8({role: model})[0][role])
    rows = RNG.standard_normal((7, 1, 256)).astype(np.float32)
    calm = tools.run(opened, {"x": rows})["y"]
    rows[3, 0, 5] = outlier
    together = tools.run(opened, {"x": rows})["y"]
    np.testing.assert_array_equal(np.delete(together, 3, 0), np.delete(calm, 3, 0))
    for i in range(7):
        for mates in ([i], [i, 3], [i, 3, 3, 3]):
            got = tools.run(opened, {"x": rows[mates]})["y"][0]
            if role == "encoder":
                np.testing.assert_array_equal(got, together[i])
            else:
                np.testing.assert_allclose(got, together[i], rtol=0, atol=1e-6 * np.abs(together[i]).max())


@pytest.mark.parametrize("role", ["encoder", "decoder"])
def test_rows_of_zeros_and_tiny_rows_stay_finite(session, tools, role):
    model, _, offset = linear_model(64, 16)
    x = np.zeros((1, 3, 64), np.float32)
    x[0, 1] = 1e-35
    got = tools.run(session(to_int8({role: model})[0][role]), {"x": x})["y"]
    np.testing.assert_allclose(got, np.broadcast_to(offset, got.shape), atol=1e-6)


def test_activations_are_quantized_once_for_all_who_read_them(session, tools):
    weights = [RNG.standard_normal((32, 16)).astype(np.float32) for _ in range(3)]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"]) for i in range(3)],
        "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 32])],
        [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, ["batch", 16]) for i in range(3)],
        [onnx.numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)],
    )  # fmt: skip
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10))
    quantized = to_int8({"model": model})[0]["model"]
    kinds = [n.op_type for n in quantized.graph]
    assert kinds.count("QuantizeLinear") == 1 and kinds.count("MatMulIntegerToFloat") == 3 and "MatMul" not in kinds
    x = RNG.standard_normal((4, 32)).astype(np.float32)
    for i, got in enumerate(tools.run(session(quantized), {"x": x}).values()):
        assert relative(got, x @ weights[i]) < 0.012


def tied(vocab, k):
    """ids -> table row, times the same table: logits of every token for every token."""
    table = RNG.standard_normal((vocab, k)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["embedding.weight", "input_ids"], ["x"]),
            helper.make_node("Gemm", ["x", "embedding.weight"], ["logits"], transB=1),
        ],
        "g", [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", vocab])],
        [onnx.numpy_helper.from_array(table, "embedding.weight")],
    )  # fmt: skip
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)), table


@pytest.mark.parametrize("k", [128, 96, 24])
def test_tied_weights_are_stored_once(session, tools, tmp_path, k):
    model, table = tied(80, k)
    quantized, plan = to_int8({"decoder": model, "encoder": model})
    assert list(plan) == ["embedding.weight"]
    only, _ = to_int8({"decoder": model})
    write(only, tmp_path)
    blocks = {128: 1, 96: 3, 24: 2}[k]
    stored = 80 * (-(-k // 16) * 16) + 80 * blocks * 4
    assert stored <= (tmp_path / "weights.bin").stat().st_size < stored + 128
    ids = np.arange(80)
    got = tools.run(session(only["decoder"]), {"input_ids": ids})["logits"]
    assert relative(got, table @ table.T) < 0.015
    assert (
        quantized["encoder"].graph.node("x/GatherBlockQuantized" if k != 24 else "x/padded/GatherBlockQuantized").op_type
        == "GatherBlockQuantized"
    )


def test_small_and_positional_tables_stay():
    model, _ = tied(12, 128)
    assert (
        to_int8({"decoder": model})[1]["embedding.weight"] == "int8-blocks128+float32"
    )  # the projection is quantized, a table of 12 rows is not


def test_a_model_without_a_weight_for_int8_is_refused():
    model, _ = tied(50, 8)
    with pytest.raises(CheckpointError, match="leave int8 out"):
        to_int8({"decoder": model})


def test_whole_decoder(standard, eager, session, tools):
    fused, counts = fuse(standard, "decoder")
    quantized, plan = to_int8({"decoder": fused})
    kinds = [n.op_type for n in quantized["decoder"].graph]
    assert kinds.count("MatMulNBits") == 13 and kinds.count("GatherBlockQuantized") == 1
    assert not {"MatMul", "Gemm"} & set(kinds)
    kept = [v.const_value.size for v in quantized["decoder"].graph.initializers.values() if v.dtype == ir.DataType.FLOAT]
    assert max(kept) == 40 * 32  # the positions are the largest tensor left in float32
    assert kinds.count("SkipLayerNormalization") == counts["skip_layer_norm"]
    assert plan["layers.1.qkv.weight"] == "int8-blocks32" and plan["embedding.weight"] == "int8-blocks32" and len(plan) == 13
    pairs = tools.replay_cached(eager, session(quantized["decoder"]))
    assert max(relative(got, expected) for expected, got in pairs) < 0.05


def test_bytes_are_reproducible(standard, tmp_path):
    files = []
    for name in ("a", "b"):
        write(to_int8({"decoder": fuse(standard, "decoder")[0]})[0], tmp_path / name)
        files.append({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()})
    assert files[0] == files[1] and set(files[0]) == {"decoder.onnx", "weights.bin"}
