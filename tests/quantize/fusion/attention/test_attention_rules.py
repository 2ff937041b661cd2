"""Attention without a cache, masks that broadcast, Reshapes and constants: one small graph a rule."""

import numpy as np
import pytest

from onnxport.graph.normalize import parameter_of
from onnxport.quantize.fusion import fuse

RNG = np.random.default_rng(0)
H, S, D = 2, 8, 16  # heads, head size, hidden
SPLIT = {"heads": np.array([0, 0, H, S]), "flat": np.array([0, 0, D]), "axes": np.array([1, 2]), "zero": np.int32(0), "zero64": np.int64(0)}
PERM = {"perm": [0, 2, 1, 3]}


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def to_heads(x, out):
    return [("Reshape", [x, "heads"], [f"{out}4"]), ("Transpose", [f"{out}4"], [out], PERM)]


def padding(kind="int32"):
    zero = "zero" if kind == "int32" else "zero64"
    return [("Equal", ["mask", zero], ["is_pad"]), ("Not", ["is_pad"], ["real"]), ("Unsqueeze", ["real", "axes"], ["mask4"])]


MERGE = [("Transpose", ["a"], ["a4"], PERM), ("Reshape", ["a4", "flat"], ["y"])]


def encoder(tools, kind="int32", scale=None, masked=True):
    """Packed qkv -> Attention with a padding mask -> [batch, source, hidden]."""
    nodes = [("MatMul", ["x", "w"], ["qkv"]), ("Split", ["qkv"], ["q3", "k3", "v3"], {"axis": -1, "num_outputs": 3})]
    nodes += [*to_heads("q3", "q"), *to_heads("k3", "k"), *to_heads("v3", "v"), *(padding(kind) if masked else [])]
    nodes += [("Attention", ["q", "k", "v"] + ["mask4"] * masked, ["a"], {} if scale is None else {"scale": scale}), *MERGE]
    shape = ["batch", "source", D]
    inputs = {"x": shape} | ({"mask": (kind, ["batch", "source"])} if masked else {})
    return tools.build(nodes, inputs, {"y": shape}, {"w": normal(D, 3 * D) / 4, **SPLIT})


def attention(q, k, v, mask, scale):
    """[batch, heads, length, size] each, mask [batch, source] -> [batch, length, hidden], in double precision."""
    scores = q.astype(float) @ k.astype(float).transpose(0, 1, 3, 2) * scale
    scores = np.where(mask[:, None, None, :] != 0, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3).reshape(len(q), -1, D)


@pytest.mark.parametrize("kind", ["int32", "int64"])
@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("batch", "source"), [(1, 1), (3, 6)])
def test_encoder_self_attention(session, tools, kind, scale, masked, batch, source):
    model = encoder(tools, kind, scale, masked)
    fused, counts = fuse(model, "encoder", "cpu")
    kinds = [n.op_type for n in fused.graph]
    assert counts["multi_head_attention"] == 1 and "Attention" not in kinds and "Transpose" not in kinds
    assert kinds.count("Cast") == (masked and kind == "int64")
    mask = np.ones((batch, source), kind)
    mask[0, (source + 1) // 2 :] = 0 if masked else 1
    x = normal(batch, source, D)
    weight = model.graph.initializers["w"].const_value.numpy()
    q, k, v = (p.reshape(batch, source, H, S).transpose(0, 2, 1, 3) for p in np.split(x @ weight, 3, -1))
    got = tools.run(session(fused), {"x": x, "mask": mask})["y"]
    np.testing.assert_allclose(got, attention(q, k, v, mask, scale or S**-0.5), atol=1e-5)


def test_a_row_of_nothing_but_padding_is_finite(session, tools):
    fused, _ = fuse(encoder(tools), "encoder", "cpu")
    got = tools.run(session(fused), {"x": normal(2, 3, D), "mask": np.array([[0, 0, 0], [1, 1, 0]], np.int32)})["y"]
    assert np.isfinite(got).all()


def cross(tools, query_of_beams):
    """Keys and values come from outside, in four dimensions; the query may be that of several beams a source."""
    nodes = [("Reshape", ["x", "beams"], ["q4"]), ("Transpose", ["q4"], ["q"], PERM)] if query_of_beams else to_heads("x", "q")
    nodes += [*padding(), ("Attention", ["q", "k", "v", "mask4"], ["a"]), *MERGE]
    memory = ["source_batch", H, "source", S]
    weights = {**SPLIT, "beams": np.array([3, -1, H, S])} if query_of_beams else SPLIT
    first = 3 if query_of_beams else "source_batch"
    memory[0] = first
    inputs = {"x": ["rows" if query_of_beams else first, "length", D], "k": memory, "v": memory, "mask": ("int32", [first, "source"])}
    return tools.build(nodes, inputs, {"y": [first, "queries", D]}, weights)


@pytest.mark.parametrize("beams", [1, 2])
def test_cross_attention_reads_keys_and_values_as_they_are(session, tools, beams):
    fused, counts = fuse(cross(tools, beams > 1), "decoder", "cpu")
    assert counts["multi_head_attention"] == 1
    node = next(n for n in fused.graph if n.op_type == "MultiHeadAttention")
    assert [v.name if v else None for v in node.inputs[1:]] == ["k", "v", None, "mask"]
    x, k, v = normal(3 * beams, 2, D), normal(3, H, 5, S), normal(3, H, 5, S)
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]], np.int32)
    q = x.reshape(3, -1, H, S).transpose(0, 2, 1, 3)
    got = tools.run(session(fused), {"x": x, "k": k, "v": v, "mask": mask})["y"]
    np.testing.assert_allclose(got, attention(q, k, v, mask, S**-0.5), atol=1e-5)


ONE = {"one": np.int32(1), "low": np.float32(np.finfo(np.float32).min), "nothing": np.float32(0)}
OTHER_MASKS = {
    "compared with 1": [("Equal", ["mask", "one"], ["real"]), ("Unsqueeze", ["real", "axes"], ["mask4"])],
    "less than 1": [("Less", ["mask", "one"], ["is_pad"]), ("Not", ["is_pad"], ["real"]), ("Unsqueeze", ["real", "axes"], ["mask4"])],
    "joined with another": [
        *padding()[:2],
        ("Unsqueeze", ["real", "axes"], ["real4"]),
        ("And", ["real4", "also"], ["mask4"]),
    ],
    "added": [*padding()[:2], ("Unsqueeze", ["real", "axes"], ["real4"]), ("Where", ["real4", "score", "low"], ["mask4"])],
}


@pytest.mark.parametrize("form", OTHER_MASKS)
@pytest.mark.parametrize("turned", [False, True])
def test_other_masks_become_a_bias_of_scores(session, tools, form, turned):
    """Two layers share it, and so they do in the fused graph; queries that positions turned come in four dimensions."""
    query = [*to_heads("x", "q1"), ("Mul", ["q1", "turn"], ["q"])] if turned else to_heads("x", "q")
    nodes = [*query, *OTHER_MASKS[form], ("Attention", ["q", "k", "v", "mask4"], ["a"]), MERGE[0], ("Reshape", ["a4", "flat"], ["h"])]
    again = [("Attention", ["q", "k", "v", "mask4"], ["b"]), ("Transpose", ["b"], ["b4"], PERM), ("Reshape", ["b4", "flat"], ["g"])]
    nodes += [*again, ("Add", ["h", "g"], ["y"])]
    memory = ["batch", H, "source", S]
    inputs = {"x": ["batch", "length", D], "k": memory, "v": memory, "mask": ("int32", ["batch", "source"])}
    inputs |= {"also": ("bool", ["batch", 1, "length", "source"])} if form == "joined with another" else {}
    inputs |= {"score": ["batch", H, "length", "source"]} if form == "added" else {}
    turn = normal(S)
    model = tools.build(nodes, inputs, {"y": ["batch", "length", D]}, {**SPLIT, **ONE, "turn": turn})
    fused, counts = fuse(model, "model", "cpu")
    assert counts["multi_head_attention"] == 2
    kinds = [node.op_type for node in fused.graph]
    assert "Attention" not in kinds and kinds.count("Where") <= 1 and kinds.count("Expand") <= 1
    for rows, length, places in ((1, 1, 1), (3, 4, 5), (2, 6, 3)):
        real = np.ones((rows, places), np.int32)
        real[0, (places + 1) // 2 :] = 0
        seen = np.broadcast_to(real[:, None, None] != 0, (rows, 1, length, places)).copy()
        also, score = RNG.random(seen.shape) < 0.7, normal(rows, H, length, places)
        also[..., 0] = True
        x, k, v = normal(rows, length, D), normal(rows, H, places, S), normal(rows, H, places, S)
        q = x.reshape(rows, length, H, S).transpose(0, 2, 1, 3) * (turn if turned else 1)
        scores = q.astype(float) @ k.transpose(0, 1, 3, 2) * S**-0.5 + (score if form == "added" else 0)
        scores = np.where(seen & also if form == "joined with another" else seen, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        expected = 2 * (weights / weights.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3).reshape(rows, length, D)
        given = {"x": x, "k": k, "v": v, "mask": real, "also": also, "score": score}
        got = tools.run(session(fused), {value.name: given[value.name] for value in fused.graph.inputs})["y"]
        np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize("target", ["any", "cpu"])
def test_mask_that_broadcasts_runs_on_every_target(session, tools, target):
    nodes = [*padding(), ("Attention", ["q", "k", "v", "mask4"], ["y"])]
    memory = ["batch", H, "source", S]
    inputs = {"q": ["batch", H, "length", S], "k": memory, "v": memory, "mask": ("int32", ["batch", "source"])}
    fused, counts = fuse(tools.build(nodes, inputs, {"y": ["batch", H, "length", S]}, SPLIT), "model", target)
    assert counts == {"mask_broadcast": 1}
    q, k, v = normal(2, H, 3, S), normal(2, H, 4, S), normal(2, H, 4, S)
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1]], np.int32)
    got = tools.run(session(fused), {"q": q, "k": k, "v": v, "mask": mask})["y"]
    np.testing.assert_allclose(got.transpose(0, 2, 1, 3).reshape(2, 3, D), attention(q, k, v, mask, S**-0.5), atol=1e-5)


def test_reshapes_that_do_nothing_go(session, tools):
    nodes = [
        ("Reshape", ["x", "wide"], ["a"]),
        ("Reshape", ["a", "narrow"], ["b"]),
        ("Reshape", ["b", "same"], ["c"]),
        ("Neg", ["c"], ["y"]),
    ]
    weights = {"wide": np.array([-1, 2, 3]), "narrow": np.array([-1, 6]), "same": np.array([4, 6])}
    model = tools.build(nodes, {"x": [4, 6]}, {"y": [4, 6]}, weights)
    fused, counts = fuse(model, "model", "cpu")
    assert [n.op_type for n in fused.graph] == ["Neg"] and counts["reshape_of_reshape"] == 2
    x = normal(4, 6)
    np.testing.assert_array_equal(tools.run(session(fused), {"x": x})["y"], -x)


def test_reshape_that_copies_dimensions_keeps_the_one_before(tools):
    nodes = [("Reshape", ["x", "wide"], ["a"]), ("Reshape", ["a", "copies"], ["y"])]
    model = tools.build(nodes, {"x": ["n", 6]}, {"y": ["m", 2, 3, 1]}, {"wide": np.array([-1, 2, 3]), "copies": np.array([0, 0, 0, 1])})
    assert fuse(model, "model", "cpu")[1] == {}


def test_rearranged_weights_become_initializers_with_their_names(session, tools):
    nodes = [
        ("Split", ["in_proj", "sizes"], ["wq", "wkv"], {"axis": 0}),
        ("Transpose", ["wkv"], ["t"], {"perm": [1, 0]}),
        ("MatMul", ["x", "t"], ["y"]),
    ]
    weight = normal(3 * D, D)
    model = tools.build(nodes, {"x": ["n", D]}, {"y": ["n", 2 * D]}, {"in_proj": weight, "sizes": np.array([D, 2 * D])})
    fused, _ = fuse(model, "model", "cpu")
    assert [n.op_type for n in fused.graph] == ["MatMul"] and len(fused.graph.initializers) == 1
    assert parameter_of(fused.graph[0].inputs[1]) == "in_proj[1]"
    x = normal(3, D)
    np.testing.assert_allclose(tools.run(session(fused), {"x": x})["y"], x @ weight[D:].T, atol=1e-5)
