"""The table of targets: what a graph is fused into for each of them, and the ONNX Runtime that it needs."""

import onnx_ir as ir
import pytest

from onnxport.errors import UsageError
from onnxport.quantize.fusion import TARGETS, fuse, min_onnxruntime
from onnxport.quantize.fusion.attention.group_query_attention import LENGTHS

SHAPE = ["batch", "length", 8]


def cached(tools, inputs):
    """A node GroupQueryAttention with so many inputs."""
    names = ["qkv", *(f"in_{i}" for i in range(1, inputs))]
    model = tools.build([("Identity", ["x"], ["y"])], {"x": SHAPE}, {"y": SHAPE})
    values = [ir.Value(name=name) for name in names]
    model.graph.append(ir.node("GroupQueryAttention", values, {}, domain="com.microsoft"))
    return model


def test_a_target_without_a_kernel_gets_no_such_node():
    for target in TARGETS.values():
        assert not {rule.kernel for rule in target.rules} & target.lacks
        assert not {rule.kernel for rule in target.further} & target.lacks
    assert "MatMulIntegerToFloat" in TARGETS["web"].lacks and not TARGETS["cpu"].lacks


def test_lengths_of_queries_need_a_newer_onnx_runtime(tools):
    plain = {"decoder": cached(tools, LENGTHS)}
    ragged = {"encoder": cached(tools, 9), "decoder": cached(tools, LENGTHS + 1)}
    assert {name: min_onnxruntime(plain, name) for name in TARGETS} == dict.fromkeys(TARGETS, "1.30") | {"cuda": "1.31"}
    assert {name: min_onnxruntime(ragged, name) for name in TARGETS} == dict.fromkeys(TARGETS, "1.32")


def test_a_decoder_with_a_memory_runs_in_older_versions(standard):
    for target in ("cpu", "cuda", "web"):
        fused, counts = fuse(standard, "decoder", target)
        assert min_onnxruntime({"decoder": fused}, target) == ("1.31" if target == "cuda" else "1.30")
        assert ("skip_layer_norm" in counts) == (target == "cuda")


def test_an_unknown_target_is_refused(tools):
    with pytest.raises(UsageError, match=r"expected one of \['any', 'cpu', 'cuda', 'web'\]"):
        min_onnxruntime({}, "tpu")
