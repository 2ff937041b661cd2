"""Graphs for the CPU become those of other targets, and answer the same."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxport.errors import NotApplicable
from onnxport.graph.normalize import name_shapes
from onnxport.quantize.fusion import fuse
from onnxport.quantize.fusion.attention.sliced_positions import SlicedPositions
from onnxport.quantize.fusion.rule import apply
from onnxport.quantize.targets.float32_attention import written_out
from onnxport.quantize.targets.kernels import missing, table
from onnxport.quantize.targets.retarget import retargeted, settled

D = 16


def kinds(model):
    return [node.op_type for node in model.graph]


@pytest.fixture(scope="module")
def fused(standard):
    return fuse(standard, "decoder", "cpu")[0]


def test_cuda_gets_its_own_kernels_and_the_graph_that_was_given_stays(fused):
    made, counts = retargeted({"decoder": fused}, "cuda")
    assert counts == {"skip_layer_norm": 7}
    assert kinds(made["decoder"]).count("SkipLayerNormalization") == 7 and "SkipLayerNormalization" not in kinds(fused)
    assert retargeted({"decoder": fused}, "web")[1] == {}


@pytest.mark.parametrize(("sources", "beams", "prompt"), [(1, 1, 1), (2, 3, 3), (1, 4, 6)])
def test_attention_in_float32_answers_as_pytorch(fused, eager, session, tools, sources, beams, prompt):
    made = written_out(retargeted({"decoder": fused}, "cuda")[0]["decoder"])
    assert {"TensorScatter", "Attention"} <= set(kinds(made)) and "GroupQueryAttention" not in kinds(made)
    for expected, got in tools.replay_cached(eager, session(made), sources, beams, prompt, 3, 5):
        np.testing.assert_allclose(got, expected, atol=2e-5, rtol=1e-5)


def test_sinks_have_no_kernel_in_float32(fused):
    model = fused.clone()
    node = next(node for node in model.graph if node.op_type == "GroupQueryAttention")
    node.resize_inputs(12)
    node.replace_input_with(11, model.graph.inputs[0])
    with pytest.raises(NotApplicable, match="attention has sinks"):
        written_out(model)


def rows_of(tools, start=0, axis=0):
    nodes = [
        ("Shape", ["x"], ["shape"], {"start": 1, "end": 2}),
        ("Squeeze", ["shape"], ["count"]),
        ("Range", ["start", "count", "step"], ["rows"]),
        ("Gather", ["table", "rows"], ["found"], {"axis": axis}),
        ("Add", ["x", "found"], ["y"]),
    ]
    table = np.random.default_rng(0).standard_normal((9, D)).astype(np.float32)
    weights = {"table": table if axis == 0 else table[:8, :8], "start": np.array(start, np.int64), "step": np.array(1, np.int64)}
    return tools.build(nodes, {"x": ["batch", "length", D]}, {"y": ["batch", "length", D]}, weights)


def test_the_first_rows_of_a_table_are_a_slice(tools, session):
    model = rows_of(tools)
    made = model.clone()
    assert apply(made.graph, [SlicedPositions()]).counts == {"sliced_positions": 1}
    assert "Range" not in kinds(made) and "Gather" not in kinds(made)
    for length in (1, 5, 9):
        x = np.random.default_rng(length).standard_normal((2, length, D)).astype(np.float32)
        np.testing.assert_array_equal(session(made).run(None, {"x": x})[0], session(model).run(None, {"x": x})[0])


def test_other_rows_are_left_alone(tools):
    assert "begin or go on otherwise" in apply(rows_of(tools, start=1).graph, [SlicedPositions()]).misses["sliced_positions"][0]


def test_every_node_for_cuda_has_a_kernel_of_its_types(fused):
    made, _ = retargeted({"decoder": fused}, "cuda")
    name_shapes(made["decoder"])
    assert missing(made, "cuda") == ["GroupQueryAttention(float, int32)"]  # in float32, until it is written out
    assert missing({"decoder": written_out(made["decoder"])}, "cuda") == []
    assert missing({"decoder": fused}, "web") == []


def test_what_a_target_lacks_is_named(tools):
    model = tools.build([("Identity", ["x"], ["y"])], {"x": ["rows", D]}, {"y": ["rows", D]})
    for name in ("MatMulIntegerToFloat", "NoSuchKernel"):
        model.graph.append(ir.node(name, [model.graph.inputs[0]], {}, domain="com.microsoft"))
    assert missing({"model": model}, "cuda") == ["MatMulIntegerToFloat", "NoSuchKernel"]
    assert missing({"model": model}, "web") == ["MatMulIntegerToFloat(float)", "NoSuchKernel"]  # float is no 8-bit activation


@pytest.mark.parametrize(("target", "version"), [("cuda", "1.31.1"), ("web", "1.30.0")])
def test_tables_are_of_the_versions_that_targets_have(target, version):
    from onnxport.quantize.fusion import TARGETS

    assert table(target)["onnxruntime"] == TARGETS[target].newest == version


@pytest.mark.parametrize(("target", "left"), [("cpu", {"QMoE", "MatMulNBits"}), ("web", {"MatMulNBits"}), ("cuda", set())])
def test_activations_are_rounded_where_the_target_does_so(tools, target, left):
    model = tools.build([("Identity", ["x"], ["y"])], {"x": ["rows", D]}, {"y": ["rows", D]})
    for kind in ("QMoE", "MatMulNBits"):
        model.graph.append(ir.node(kind, [model.graph.inputs[0]], {"accuracy_level": 4}, domain="com.microsoft", name=kind))
    assert {node.op_type for node in settled(model, target).graph if "accuracy_level" in node.attributes} == left
    assert all("accuracy_level" in node.attributes for node in list(model.graph)[-2:])
