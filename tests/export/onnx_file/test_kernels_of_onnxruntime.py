"""ONNX files that hold ONNX Runtime's own kernels already, as its optimizer for transformers writes them, stay right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxport.build.stages import build
from onnxport.runtime import load

VOCAB, WIDTH, HEADS = 50, 32, 4
MICROSOFT = "com.microsoft"


def optimized(path: Path) -> Path:
    """Embeddings, one layer with packed attention, and a norm; input_ids, token_type_ids and attention_mask → y."""
    random = np.random.default_rng(5)

    def normal(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) * 0.3).astype(np.float32)

    arrays = {"words": normal(VOCAB, WIDTH), "places": normal(16, WIDTH), "types": normal(2, WIDTH)}
    arrays |= {f"{norm}.{part}": normal(WIDTH) + (part == "weight") for norm in ("first", "second", "third") for part in ("weight", "bias")}
    arrays |= {"qkv.weight": normal(WIDTH, 3 * WIDTH), "qkv.bias": normal(3 * WIDTH)}
    arrays |= {"wide.weight": normal(WIDTH, 48), "wide.bias": normal(48), "narrow.weight": normal(48, WIDTH), "narrow.bias": normal(WIDTH)}
    embedded = ["input_ids", "token_type_ids", "words", "places", "types", "first.weight", "first.bias", "attention_mask"]
    nodes = [
        helper.make_node("EmbedLayerNormalization", embedded, ["x", "lengths"], domain=MICROSOFT),
        helper.make_node("Attention", ["x", "qkv.weight", "qkv.bias", "lengths"], ["a"], domain=MICROSOFT, num_heads=HEADS),
        helper.make_node("SkipLayerNormalization", ["x", "a", "second.weight", "second.bias"], ["h"], domain=MICROSOFT),
        helper.make_node("MatMul", ["h", "wide.weight"], ["wide"]),
        helper.make_node("BiasGelu", ["wide", "wide.bias"], ["g"], domain=MICROSOFT),
        helper.make_node("MatMul", ["g", "narrow.weight"], ["narrow"]),
        helper.make_node("SkipLayerNormalization", ["narrow", "h", "third.weight", "third.bias", "narrow.bias"], ["y"], domain=MICROSOFT),
    ]
    inputs = ("input_ids", "token_type_ids", "attention_mask")
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", "length"]) for name in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "length", WIDTH])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    domains = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=8), path)
    return path


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-5), ("fp16", 2e-2), ("int8", 0.2)])
def test_answers_of_an_optimized_file(tmp_path, precision, bound):
    file = optimized(tmp_path / "model.onnx")
    build(str(file), tmp_path / "bundle", precision=(precision,))
    ids = np.random.default_rng(6).integers(0, VOCAB, (3, 7)).astype(np.int32)
    mask = np.ones_like(ids)
    mask[1, 4:] = 0
    given = {"input_ids": ids, "token_type_ids": np.zeros_like(ids), "attention_mask": mask}
    (expected,) = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"]).run(None, given)
    got = load(tmp_path / "bundle").run(given)["y"]
    np.testing.assert_allclose(got[mask > 0], expected[mask > 0], atol=bound)
