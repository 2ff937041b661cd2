"""The INT8 recipes, `int8` in rows and `int8-weight` in blocks: bounds, independence of batch-mates, tied weights, bytes."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from onnxport.errors import CheckpointError
from onnxport.graph.store import write
from onnxport.quantize.fusion import fuse
from onnxport.quantize.precisions import PRECISIONS
from onnxport.quantize.schemes.apply import quantize

RNG = np.random.default_rng(0)
KERNELS = {"int8": {"MatMulIntegerToFloat"}, "int8-weight": {"MatMulNBits"}}
EACH = pytest.mark.parametrize("precision", ["int8", "int8-weight"])


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


@EACH
@pytest.mark.parametrize("role", ["encoder", "decoder"])
@pytest.mark.parametrize(
    ("k", "n", "bias", "kind", "block"),
    [
        (64, 48, True, "MatMul", 64),
        (128, 33, False, "MatMul", 128),
        (200, 24, True, "Gemm", 32),  # no block divides it: the last one is padded
        (24, 40, False, "Gemm", 16),
        (16, 7, True, "MatMul", 16),
    ],
)
def test_error_of_one_product(session, tools, precision, role, k, n, bias, kind, block):
    model, weight, offset = linear_model(k, n, bias, kind)
    quantized, plan = quantize({role: model}, PRECISIONS[precision].plan)
    assert plan == {"fc.weight": "int8-rows" if precision == "int8" else f"int8-blocks{block}"}
    kinds = {n.op_type for n in quantized[role].graph}
    assert not {"MatMul", "Gemm"} & kinds and kinds & {"MatMulIntegerToFloat", "MatMulNBits"} == KERNELS[precision]
    x = RNG.standard_normal((5, k) if kind == "Gemm" else (2, 3, k)).astype(np.float32)
    got = tools.run(session(quantized[role]), {"x": x})["y"]
    assert relative(got, x @ weight + offset) < 0.012


def test_the_given_model_stays_as_it_was():
    model, _, _ = linear_model(32, 16)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    quantize({"encoder": model}, PRECISIONS["int8"].plan)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@EACH
@pytest.mark.parametrize("outlier", [1.0, 60.0, 1e4])
def test_a_row_is_the_same_alone_and_in_any_batch(session, tools, precision, outlier):
    """Rows: to the last bit. Blocks: what stands in other rows changes nothing, their number only the order of a sum."""
    model, _, _ = linear_model(256, 48)
    opened = session(quantize({"decoder": model}, PRECISIONS[precision].plan)[0]["decoder"])
    rows = RNG.standard_normal((64, 1, 256)).astype(np.float32)
    calm = tools.run(opened, {"x": rows})["y"]
    rows[3, 0, 5] = outlier
    together = tools.run(opened, {"x": rows})["y"]
    np.testing.assert_array_equal(np.delete(together, 3, 0), np.delete(calm, 3, 0))
    for count in (1, 4, 16, 63):
        for i in (0, 3, 40):
            got = tools.run(opened, {"x": rows[[i, *[3] * (count - 1)]]})["y"][0]
            if precision == "int8":
                np.testing.assert_array_equal(got, together[i])
            else:
                np.testing.assert_allclose(got, together[i], rtol=0, atol=1e-6 * np.abs(together[i]).max())


@EACH
def test_rows_of_zeros_give_the_bias_and_tiny_rows_stay_finite(session, tools, precision):
    model, _, offset = linear_model(64, 16)
    opened = session(quantize({"model": model}, PRECISIONS[precision].plan)[0]["model"])
    x = np.zeros((1, 3, 64), np.float32)
    np.testing.assert_array_equal(tools.run(opened, {"x": x})["y"], np.broadcast_to(offset, (1, 3, 16)))
    x[0, 1] = 1e-35
    np.testing.assert_allclose(tools.run(opened, {"x": x})["y"], np.broadcast_to(offset, (1, 3, 16)), atol=1e-6)
    plain = session(quantize({"model": linear_model(64, 16, bias=False)[0]}, PRECISIONS[precision].plan)[0]["model"])
    assert not tools.run(plain, {"x": np.zeros((2, 1, 64), np.float32)})["y"].any()


def test_activations_are_quantized_once_for_all_who_read_them(session, tools):
    weights = [RNG.standard_normal((32, 16)).astype(np.float32) for _ in range(3)]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"]) for i in range(3)],
        "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 32])],
        [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, ["batch", 16]) for i in range(3)],
        [onnx.numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)],
    )  # fmt: skip
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10))
    quantized = quantize({"model": model}, PRECISIONS["int8"].plan)[0]["model"]
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


def weight_bytes(model, folder):
    write({"decoder": model}, folder)
    return (folder / "weights.bin").stat().st_size


@EACH
@pytest.mark.parametrize("k", [128, 96, 24])
def test_tied_weights_are_stored_once(session, tools, tmp_path, precision, k):
    """Table and projection read the same bytes: one of 8 bits a weight, and the scales."""
    model, table = tied(80, k)
    quantized, plan = quantize({"decoder": model}, PRECISIONS[precision].plan)
    size = {128: 128, 96: 32, 24: 16}[k]
    assert plan == {"embedding.weight": "int8-rows" if precision == "int8" else f"int8-blocks{size}"}
    if precision == "int8":
        stored, scales = 80 * k, 80 * 4
    else:
        stored, scales = 80 * -(-k // size) * size, 80 * -(-k // size) * 4
    assert stored + scales <= weight_bytes(quantized["decoder"], tmp_path) < stored + 2 * scales + 256 < 2 * stored
    got = tools.run(session(quantized["decoder"]), {"input_ids": np.arange(80)})["logits"]
    assert relative(got, table @ table.T) < 0.015
    kinds = [n.op_type for n in quantized["decoder"].graph]
    found = {kind: kinds.count(kind) for kind in ("Gather", "Cast", "Transpose", "GatherBlockQuantized")}
    assert found == dict(zip(found, (2, 1, 1, 0) if precision == "int8" else (0, 0, 0, 1), strict=True))


@pytest.mark.parametrize("k", [128, 24])
def test_a_looked_up_row_of_integers_is_within_half_a_step_of_its_own_scale(session, tools, k):
    """A table that shares its bytes with nothing: rows of zeros stay zeros, a row's error hangs on that row alone."""
    table = RNG.standard_normal((40, k)).astype(np.float32) * np.geomspace(1e-6, 1e6, 40, dtype=np.float32)[:, None]
    table[7] = 0
    model = tools.build(
        [("Gather", ["embedding.weight", "input_ids"], ["x"])],
        {"input_ids": ("int64", ["batch", "length"])}, {"x": ["batch", "length", k]}, {"embedding.weight": table},
    )  # fmt: skip
    quantized, plan = quantize({"encoder": model}, PRECISIONS["int8"].plan)
    assert plan == {"embedding.weight": "int8-rows"}
    ids = np.array([[0, 7, 39], [5, 5, 20]])
    got = tools.run(session(quantized["encoder"]), {"input_ids": ids})["x"]
    assert not got[0, 1].any()
    assert (np.abs(got - table[ids]) <= 0.5001 / 127 * np.abs(table[ids]).max(-1, keepdims=True)).all()


@EACH
def test_small_tables_stay(precision):
    """The projection is quantized, a table of 12 rows is not."""
    model, _ = tied(12, 128)
    scheme = {"int8": "int8-rows", "int8-weight": "int8-blocks128"}[precision]
    assert quantize({"decoder": model}, PRECISIONS[precision].plan)[1]["embedding.weight"] == f"{scheme}+fp32"


def test_a_model_without_a_weight_for_int8_is_refused():
    model, _ = tied(50, 8)
    with pytest.raises(CheckpointError, match="no weight of this model can be int8-rows"):
        quantize({"decoder": model}, PRECISIONS["int8"].plan)


@EACH
def test_whole_decoder(standard, eager, session, tools, precision):
    fused, _ = fuse(standard, "decoder", "cpu")
    quantized, plan = quantize({"decoder": fused}, PRECISIONS[precision].plan)
    kinds = [n.op_type for n in quantized["decoder"].graph]
    (kernel,) = KERNELS[precision]
    assert kinds.count(kernel) == 13 and not {"MatMul", "Gemm"} & set(kinds)
    assert kinds.count("GatherBlockQuantized") == (precision == "int8-weight")
    kept = [v.const_value.size for v in quantized["decoder"].graph.initializers.values() if v.dtype == ir.DataType.FLOAT]
    assert max(kept) == 40 * 32  # the positions are the largest tensor left in float32
    assert set(plan.values()) == ({"int8-rows"} if precision == "int8" else {"int8-blocks32", "int8-blocks16"})
    assert {"layers.1.qkv.weight", "embedding.weight"} < plan.keys() and len(plan) == 13
    pairs = tools.replay_cached(eager, session(quantized["decoder"]))
    assert max(relative(got, expected) for expected, got in pairs) < 0.05


def test_bytes_are_reproducible(standard, tmp_path):
    files = []
    for name in ("a", "b"):
        write(quantize({"decoder": fuse(standard, "decoder", "cpu")[0]}, PRECISIONS["int8"].plan)[0], tmp_path / name)
        files.append({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()})
    assert files[0] == files[1] and set(files[0]) == {"decoder.onnx", "weights.bin"}
