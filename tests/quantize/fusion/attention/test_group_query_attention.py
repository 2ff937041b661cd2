"""When a cached layer does not fuse, the reason says what was found; whole decoders are in test_fuse_decoder.py."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxport.errors import FusionError
from onnxport.quantize.fusion import fuse
from onnxport.quantize.fusion.attention.group_query_attention import GroupQueryAttention
from onnxport.quantize.fusion.rule import apply

RNG = np.random.default_rng(0)


def layer(tools, heads=4, kv_heads=2, size=8, mask="self_mask", order=(0, 1, 2), scale=0.4, extra=()):
    """One layer of cached self-attention with grouped heads: x [batch, length, hidden] -> y, present_key_0, present_value_0."""
    hidden = heads * size
    widths = [hidden, kv_heads * size, kv_heads * size]
    q, k, v = (["q3", "k3", "v3"][i] for i in order)
    nodes = [("MatMul", ["x", "w"], ["qkv"]), ("Split", ["qkv", "widths"], ["q3", "k3", "v3"], {"axis": -1})]
    for flat, count, name in ((q, "heads", "q"), (k, "kv", "k"), (v, "kv", "v")):
        nodes += [("Reshape", [flat, count], [f"{name}4"]), ("Transpose", [f"{name}4"], [f"{name}t"], {"perm": [0, 2, 1, 3]})]
    nodes += [("Concat", [f"past_{c}_0", f"{c[0]}t"], [f"present_{c}_0"], {"axis": 2}) for c in ("key", "value")]
    nodes += [("Attention", ["qt", "present_key_0", "present_value_0", mask], ["a"], {"scale": scale})]
    nodes += [("Transpose", ["a"], ["a4"], {"perm": [0, 2, 1, 3]}), ("Reshape", ["a4", "flat"], ["y"]), *extra]
    weights = {
        "w": RNG.standard_normal((hidden, sum(widths))).astype(np.float32) / 4,
        "widths": np.array(widths),
        "flat": np.array([0, 0, hidden]),
    }
    weights |= {"heads": np.array([0, 0, heads, size]), "kv": np.array([0, 0, kv_heads, size])}
    past, present = ["batch", kv_heads, "past", size], ["batch", kv_heads, "total", size]
    inputs = {"x": ["batch", "length", hidden], mask: ("bool", ["batch", 1, "length", "total"]), "past_key_0": past, "past_value_0": past}
    return tools.build(nodes, inputs, {"y": ["batch", "length", hidden], "present_key_0": present, "present_value_0": present}, weights)


def reason(model):
    graph = model.clone().graph
    return apply(graph, [GroupQueryAttention()]).misses["group_query_attention"][0]


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(("batch", "lengths"), [(1, (1, 1)), (3, (4, 1, 1)), (2, (2,))])
def test_grouped_heads_with_a_cache_in_place(session, tools, kv_heads, batch, lengths):
    model = layer(tools, kv_heads=kv_heads)
    fused, counts = fuse(model, "decoder", "cpu")
    assert counts == {"group_query_attention": 1}
    assert [n.op_type for n in fused.graph] == ["MatMul", "GroupQueryAttention"]
    assert [v.name for v in fused.graph.outputs] == ["y", "present_key_0", "present_value_0"]
    plain, ours, done = session(model), session(fused), 0
    past = {f"past_{c}_0": np.zeros((batch, kv_heads, 0, 8), np.float32) for c in ("key", "value")}
    buffers = {f"past_{c}_0": np.zeros((batch, kv_heads, 7, 8), np.float32) for c in ("key", "value")}
    for length in lengths:
        x = RNG.standard_normal((batch, length, 32)).astype(np.float32)
        done += length
        mask = np.tile(np.tril(np.ones((length, done), bool), done - length), (batch, 1, 1, 1))
        expected = tools.run(plain, {"x": x, "self_mask": mask, **past})
        past = {k.replace("present", "past"): v for k, v in expected.items() if k != "y"}
        counts_in = {"seqlens_k": np.full(batch, done - 1, np.int32), "total_sequence_length": np.array(done, np.int32)}
        counts_in["query_seqlens"] = np.full(batch, length, np.int32)
        got = tools.run(ours, {"x": x, **buffers, **counts_in})
        buffers = {k.replace("present", "past"): v for k, v in got.items() if k != "y"}
        np.testing.assert_allclose(got["y"], expected["y"], atol=1e-5)
        np.testing.assert_allclose(buffers["past_key_0"][:, :, :done], past["past_key_0"], atol=1e-6)


@pytest.mark.parametrize(("changed", "expected"), [
    ({"size": 4}, "head size 4 is not a multiple of 8"),
    ({"mask": "mask"}, "the mask is 'mask', which is not made of the graph input 'self_mask'"),
    ({"order": (0, 2, 1)}, "not the outputs of one Split in that order"),
])  # fmt: skip
def test_a_miss_says_why(tools, changed, expected):
    assert expected in reason(layer(tools, **changed))


def test_a_graph_that_asks_for_the_length_of_the_past_is_refused(tools):
    model = layer(tools, extra=[("Shape", ["past_key_0"], ["n"], {"start": 2, "end": 3})])
    n = next(node for node in model.graph if node.op_type == "Shape").outputs[0]
    n.type, n.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([1])
    model.graph.outputs.append(n)
    with pytest.raises(FusionError, match=r"^decoder: the graph reads dimension 2 .* of 'past_key_0'"):
        fuse(model, "decoder", "cpu")


def test_dimensions_read_from_what_goes_are_read_from_what_stays(session, tools):
    model = layer(tools, extra=[("Shape", ["self_mask"], ["n"], {"start": 0, "end": 3})])
    n = next(node for node in model.graph if node.op_type == "Shape").outputs[0]
    n.type, n.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([3])
    model.graph.outputs.append(n)
    fused, _ = fuse(model, "decoder", "cpu")
    cache = np.zeros((2, 2, 5, 8), np.float32)
    inputs = {"x": np.zeros((2, 3, 32), np.float32), "past_key_0": cache, "past_value_0": cache}
    inputs |= {
        "query_seqlens": np.full(2, 3, np.int32),
        "seqlens_k": np.full(2, 2, np.int32),
        "total_sequence_length": np.array(3, np.int32),
    }
    np.testing.assert_array_equal(tools.run(session(fused), inputs)["n"], [2, 1, 3])
