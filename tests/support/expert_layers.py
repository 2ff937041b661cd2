"""A small decoder of layers x + experts(x), written node by node: two of four experts answer each token, by SwiGLU."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

VOCABULARY, HIDDEN, INNER, EXPERTS, TOP = 96, 64, 128, 4, 2
ATTRIBUTES = {
    "k": TOP, "activation_type": "swiglu", "swiglu_fusion": 1, "activation_alpha": 1.0, "activation_beta": 0.0,
    "normalize_routing_weights": 1,
}  # fmt: skip


def decoder(layers: int, spiky: int | None = None) -> ir.Model:
    """Layers over an embedding that is tied to the logits, with weights `layers.N.experts.gate_up_proj` and `down_proj`.

    spiky: the layer whose first two experts have an input in each block of 32 that is 40 times as large as the others, in every row.
    """
    random = np.random.default_rng(0)
    constants = {"embedding.weight": (random.standard_normal((VOCABULARY, HIDDEN)) / 4).astype(np.float32), "one": np.array([1], np.int64)}
    nodes = [helper.make_node("Gather", ["embedding.weight", "input_ids"], ["x0"], axis=0)]
    for i in range(layers):
        own = f"layers.{i}"
        up = random.standard_normal((EXPERTS, 2 * INNER, HIDDEN)) / HIDDEN**0.5
        if i == spiky:
            up[: EXPERTS // 2, :, ::32] *= 40
        constants[f"{own}.experts.gate_up_proj"] = up.astype(np.float32)
        constants[f"{own}.experts.down_proj"] = (random.standard_normal((EXPERTS, HIDDEN, INNER)) / INNER**0.5 / 4).astype(np.float32)
        constants[f"{own}.router.weight"] = (random.standard_normal((HIDDEN, EXPERTS)) / HIDDEN**0.5).astype(np.float32)
        inputs = [f"rows{i}", f"router{i}", f"{own}.experts.gate_up_proj", "", f"{own}.experts.down_proj"]
        nodes += [
            helper.make_node("Reshape", [f"x{i}", "rows"], [f"rows{i}"]),
            helper.make_node("MatMul", [f"rows{i}", f"{own}.router.weight"], [f"router{i}"]),
            helper.make_node("MoE", inputs, [f"experts{i}"], domain="com.microsoft", **ATTRIBUTES),
            helper.make_node("Shape", [f"x{i}"], [f"shape{i}"]),
            helper.make_node("Reshape", [f"experts{i}", f"shape{i}"], [f"answer{i}"]),
            helper.make_node("Add", [f"x{i}", f"answer{i}"], [f"x{i + 1}"]),
        ]
    nodes += [
        helper.make_node("Unsqueeze", ["logits_index", "one"], ["places"]),
        helper.make_node("GatherND", [f"x{layers}", "places"], ["last"], batch_dims=1),
        helper.make_node("Gemm", ["last", "embedding.weight"], ["logits"], transB=1),
    ]
    constants["rows"] = np.array([-1, HIDDEN], np.int64)
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])
    index = helper.make_tensor_value_info("logits_index", TensorProto.INT64, ["batch"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", VOCABULARY])
    graph = helper.make_graph(nodes, "g", [ids, index], [logits], [numpy_helper.from_array(a, n) for n, a in constants.items()])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def feeds() -> list[dict[str, np.ndarray]]:
    """Texts of random ids."""
    random = np.random.default_rng(1)
    rows = [random.integers(0, VOCABULARY, (1, length)) for length in (20, 31, 12, 25)]
    return [{"input_ids": ids, "logits_index": np.array([ids.shape[1] - 1])} for ids in rows]
