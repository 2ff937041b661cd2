"""ONNX files whose weights are stored in integers: they are read without loss, and a precision that they do not take is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxport.build.stages import build
from onnxport.errors import CheckpointError
from onnxport.export.onnx_file.stored_weights import to_float
from onnxport.quantize.precisions import DEFAULT
from onnxport.quantize.schemes.blocks.rounding import stored_step
from onnxport.runtime import load

INNER, OUTER = 48, 24
RANDOM = np.random.default_rng(7)


def codes(*shape: int, kind: type = np.int8, most: int = 90) -> np.ndarray:
    """Integers that leave a part of their range unused, so that a scale made of the largest weight is another one."""
    return RANDOM.integers(-most, most + 1, shape).astype(kind) if kind == np.int8 else RANDOM.integers(20, 220, shape).astype(kind)


def saved(path: Path, nodes: list, arrays: dict[str, np.ndarray], opset: int = 17) -> Path:
    """x [batch, length, INNER] → y [batch, length, OUTER]."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", INNER])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "length", OUTER])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    domains = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=9), path)
    return path


def by_cast(path: Path) -> Path:
    nodes = [
        helper.make_node("Cast", ["fc.q"], ["fc.float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["fc.float", "fc.scale"], ["fc.weight"]),
        helper.make_node("MatMul", ["x", "fc.weight"], ["y"]),
    ]
    return saved(path, nodes, {"fc.q": codes(INNER, OUTER), "fc.scale": RANDOM.uniform(0.01, 0.03, OUTER).astype(np.float32)})


def by_dequantize(path: Path, kind: type = np.int8) -> Path:
    arrays = {
        "fc.q": codes(INNER, OUTER, kind=kind),
        "fc.scale": RANDOM.uniform(0.01, 0.03, OUTER).astype(np.float32),
        "fc.zero": np.zeros(OUTER, np.int8) if kind == np.int8 else RANDOM.integers(100, 140, OUTER).astype(kind),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["fc.q", "fc.scale", "fc.zero"], ["fc.weight"], axis=1),
        helper.make_node("MatMul", ["x", "fc.weight"], ["y"]),
    ]
    return saved(path, nodes, arrays)


def by_integers(path: Path) -> Path:
    """As onnxruntime.quantization.quantize_dynamic writes it."""
    arrays = {"fc.q": codes(INNER, OUTER), "fc.scale": np.float32(0.02), "fc.zero": np.int8(0)}
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["x.q", "x.scale", "x.zero"]),
        helper.make_node("MatMulInteger", ["x.q", "fc.q", "x.zero", "fc.zero"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["sum.float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x.scale", "fc.scale"], ["scale"]),
        helper.make_node("Mul", ["sum.float", "scale"], ["y"]),
    ]
    return saved(path, nodes, arrays)


def by_static(path: Path) -> Path:
    """Activations with a scale of their own: QuantizeLinear and DequantizeLinear around the product."""
    arrays = {
        "fc.q": codes(INNER, OUTER),
        "fc.scale": np.float32(0.02),
        "fc.zero": np.int8(0),
        "x.scale": np.float32(0.03),
        "x.zero": np.uint8(128),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x.scale", "x.zero"], ["x.q"]),
        helper.make_node("DequantizeLinear", ["x.q", "x.scale", "x.zero"], ["x.float"]),
        helper.make_node("DequantizeLinear", ["fc.q", "fc.scale", "fc.zero"], ["fc.weight"]),
        helper.make_node("MatMul", ["x.float", "fc.weight"], ["y"]),
    ]
    return saved(path, nodes, arrays)


def in_blocks(path: Path) -> Path:
    arrays = {
        "fc.q": RANDOM.integers(0, 256, (OUTER, INNER // 16, 8)).astype(np.uint8),
        "fc.scale": RANDOM.uniform(0.01, 0.03, (OUTER, INNER // 16)).astype(np.float32),
    }
    attributes = {"K": INNER, "N": OUTER, "bits": 4, "block_size": 16, "domain": "com.microsoft"}
    return saved(path, [helper.make_node("MatMulNBits", ["x", "fc.q", "fc.scale"], ["y"], **attributes)], arrays)


def by_qlinear(path: Path) -> Path:
    """Quantized operators of ONNX, activations int8 as onnxruntime.quantization.quantize_static has them."""
    arrays = {
        "fc.q": codes(INNER, OUTER),
        "fc.scale": np.float32(0.02),
        "x.scale": np.float32(0.03),
        "y.scale": np.float32(0.2),
        "zero": np.int8(0),
    }
    product = ["x.q", "x.scale", "zero", "fc.q", "fc.scale", "zero", "y.scale", "zero"]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x.scale", "zero"], ["x.q"]),
        helper.make_node("QLinearMatMul", product, ["y.q"]),
        helper.make_node("DequantizeLinear", ["y.q", "y.scale", "zero"], ["y"]),
    ]
    return saved(path, nodes, arrays)


FILES = {
    "cast": by_cast,
    "dequantize": by_dequantize,
    "uint8": lambda path: by_dequantize(path, np.uint8),
    "integers": by_integers,
    "static": by_static,
    "qlinear": by_qlinear,
    "blocks": in_blocks,
}
# What the plain command makes of each: a precision is left out where nothing is there for it to change.
MADE = {
    "cast": ["fp32", "fp16", "int8"],
    "dequantize": ["fp32", "fp16", "int8"],
    "uint8": ["fp32", "fp16", "int8"],
    "integers": ["fp32"],
    "static": ["fp32"],
    "qlinear": ["fp32"],
    "blocks": ["fp32", "fp16"],
}


def answer(path: Path, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


@pytest.mark.parametrize("form", FILES)
def test_plain_export_of_stored_weights(tmp_path, form):
    file = FILES[form](tmp_path / "model.onnx")
    bundle = build(str(file), tmp_path / "bundle", precision=DEFAULT)
    assert list(bundle.variants) == MADE[form]
    assert bundle.default == "fp32"
    x = RANDOM.standard_normal((3, 5, INNER)).astype(np.float32)
    expected = answer(file, x)
    got = load(tmp_path / "bundle", precision="fp32").run({"x": x})["y"]
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())
    left_out = [note for note in bundle.provenance.get("notes", []) if "is left out" in note]
    assert [note.split()[0] for note in left_out] == [name for name in DEFAULT if name not in MADE[form]]


def test_only_precision_that_does_not_apply_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no weight of this model can be int8-rows.*1 of its nodes are quantized already"):
        build(str(by_integers(tmp_path / "model.onnx")), tmp_path / "bundle", precision=("int8",))


@pytest.mark.parametrize("form", [by_cast, by_dequantize])
def test_int8_keeps_the_integers_of_the_file(tmp_path, form):
    file = form(tmp_path / "model.onnx")
    build(str(file), tmp_path / "bundle", precision=("fp32", "int8"))
    stored = {name: numpy_helper.to_array(one) for one in onnx.load(file).graph.initializer if (name := one.name)}
    made = ir.load(tmp_path / "bundle" / "int8" / "model.onnx").graph
    (product,) = [node for node in made if node.op_type == "MatMulIntegerToFloat"]
    kept, scale = (product.inputs[i].const_value.numpy() for i in (1, 3))
    common = np.gcd.reduce(stored["fc.q"].astype(int))  # a column of multiples of 3 may be stored with 3 times the scale
    assert (kept.astype(int) * np.rint(scale / stored["fc.scale"]) == stored["fc.q"]).all()
    np.testing.assert_allclose(scale, stored["fc.scale"] * common, rtol=1e-6)


def test_static_products_keep_their_integers(tmp_path):
    graph = ir.load(by_static(tmp_path / "model.onnx")).graph
    assert to_float(graph) == 0
    assert [node.op_type for node in graph] == ["QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "MatMul"]


def test_step_of_stored_weights():
    step = RANDOM.uniform(1e-4, 10, 6).astype(np.float32)
    stored = codes(40, 6).astype(np.float32)
    stored[:, 3] = 0
    stored[0] = 89  # no common factor
    stored[0, 3] = 0
    found = stored_step(stored * step, 127)
    np.testing.assert_allclose(found[[0, 1, 2, 4, 5]], step[[0, 1, 2, 4, 5]], rtol=1e-6)
    assert found[3] == 1
    assert np.isnan(stored_step(RANDOM.standard_normal((40, 6)).astype(np.float32), 127)).all()
    assert np.isnan(stored_step(stored[:, :1] * step[0], 64)).all()  # 89 steps are more than 64
