"""Attention as exporters write it out: fused into the kernel, with the same answers at sizes that no graph names."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxport.graph.store import write
from onnxport.quantize.fusion import fuse
from onnxport.quantize.precisions import PRECISIONS
from onnxport.quantize.schemes.half import to_half

HEADS, SIZE = 4, 8
HIDDEN = HEADS * SIZE
LOWEST = np.float32(np.finfo(np.float32).min)


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng([seed, *shape]).standard_normal(shape) * 0.4).astype(np.float32)


def turned_key(key: str) -> list:
    """k_split → k_turned. folded: as torch.onnx before opset 23, batch and heads are one axis meanwhile; laid out: it is not turned."""
    if key == "one":
        return [("Transpose", ["k_split"], ["k_turned"], {"perm": [0, 2, 3, 1]})]
    heads = ("Transpose", ["k_split"], ["k_heads"], {"perm": [0, 2, 1, 3]})
    if key == "two":
        return [heads, ("Transpose", ["k_heads"], ["k_turned"], {"perm": [0, 1, 3, 2]})]
    if key == "placed":  # by rotary positions
        return [heads, ("Mul", ["k_heads", "turn"], ["k_placed"]), ("Transpose", ["k_placed"], ["k_turned"], {"perm": [0, 1, 3, 2]})]
    return [
        heads,
        ("Shape", ["k_heads"], ["k_shape"]),
        ("Slice", ["k_shape", "first", "second"], ["k_rows"]),
        ("Slice", ["k_shape", "second", "third"], ["k_length"]),
        ("Slice", ["k_shape", "minus", "last"], ["k_size"]),
        ("Concat", ["minus", "k_length", "k_size"], ["k_three"], {"axis": 0}),
        ("Reshape", ["k_heads", "k_three"], ["k_folded"]),
        ("Transpose", ["k_folded"], ["k_exchanged"], {"perm": [0, 2, 1]}),
        ("Concat", ["k_rows", "k_size", "k_length"], ["k_four"], {"axis": 0}),
        ("Reshape", ["k_exchanged" if key == "folded" else "k_folded", "k_four"], ["k_turned"]),
    ]


def asked_sizes() -> list:
    """`joined` as TorchScript's exporter makes it: sizes are read off the answer itself."""
    nodes = []
    for i in (0, 1):
        nodes += [("Shape", ["back"], [f"back_shape{i}"]), ("Gather", [f"back_shape{i}", f"at{i}"], [f"size{i}"])]
        nodes += [("Unsqueeze", [f"size{i}", "first"], [f"dim{i}"])]
    return [*nodes, ("Concat", ["dim0", "dim1", "hidden"], ["joined"], {"axis": 0})]


def relaid_answer() -> list:
    """`relaid` is the answer in the shape that it has: TorchScript's exporter of scaled_dot_product_attention."""
    nodes = []
    for i, (value, axis) in enumerate((("answer", "at0"), ("q_heads", "at2"), ("v_heads", "at3"))):
        nodes += [("Shape", [value], [f"heads_shape{i}"]), ("Gather", [f"heads_shape{i}", axis], [f"heads_size{i}"])]
        nodes += [("Unsqueeze", [f"heads_size{i}", "first"], [f"heads_dim{i}"])]
    parts = ["heads_dim0", "minus", "heads_dim1", "heads_dim2"]
    return [*nodes, ("Concat", parts, ["heads_shape"], {"axis": 0}), ("Reshape", ["answer", "heads_shape"], ["relaid"])]


def masked(mask: str | None, scores: str) -> list:
    """`masked` of scores and `real`."""
    if mask == "add":
        return [("Sub", ["one", "real"], ["padding"]), ("Mul", ["padding", "lowest"], ["bias"]), ("Add", [scores, "bias"], ["masked"])]
    seen = ("Greater", ["real", "zero"], ["seen"])
    if mask == "where":
        return [seen, ("Where", ["seen", scores, "lowest"], ["masked"])]
    if mask == "infinite":
        return [seen, ("Where", ["seen", "zero", "lowest"], ["bias"]), ("Add", [scores, "bias"], ["masked"])]
    if mask == "filled":
        hidden = [("Equal", ["real", "zero"], ["hides"]), ("Expand", ["hides", "spread"], ["hidden_all"])]
        return [*hidden, ("Where", ["hidden_all", "lowest", scores], ["masked"])]
    return []


def attention(
    build,
    scale: str = "scores",
    mask: str | None = "add",
    key: str = "one",
    split: list[int] | None = None,
    guard: bool = False,
    asks: bool = False,
    positions: bool = False,
    turned_query: bool = False,
    relaid: bool = False,
):
    """x [batch, length, hidden] and real [batch, 1, 1, length] (1 or 0) → y of the same shape; in the ways of several exporters."""
    split = split or [0, 0, HEADS, SIZE]
    constants = {f"w_{p}": weights(HIDDEN, HIDDEN, seed=i) for i, p in enumerate("qkv")}
    constants |= {
        "split": np.array(split),
        "join": np.array([0, 0, HIDDEN]),
        "half": np.float32(SIZE**-0.25),
        "whole": np.float32(SIZE**0.5),
    }
    constants |= {"lowest": np.float32(-np.inf) if mask == "infinite" else LOWEST, "one": np.float32(1), "zero": np.float32(0)}
    constants |= {"minus": np.array([-1]), "first": np.array([0]), "second": np.array([2]), "third": np.array([3])}
    constants |= {
        "last": np.array([9]),
        "at0": np.array(0),
        "at1": np.array(1),
        "at2": np.array(2),
        "at3": np.array(3),
        "hidden": np.array([HIDDEN]),
    }
    constants |= {"turn": weights(SIZE, seed=5), "spread": np.array([1, HEADS, 1, 1]), "positions": weights(1, HEADS, 1, 1, seed=6)}
    nodes = []
    for p in "qkv":
        nodes += [("MatMul", ["x", f"w_{p}"], [f"{p}_flat"]), ("Reshape", [f"{p}_flat", "split"], [f"{p}_split"])]
    nodes += [("Transpose", [f"{p}_split"], [f"{p}_heads"], {"perm": [0, 2, 1, 3]}) for p in "qv"]
    nodes += turned_key(key)
    query, turned, scores = "q_heads", "k_turned", "product"
    if turned_query:  # by rotary positions: it is no Transpose of a projection any more
        nodes += [("Mul", ["q_heads", "turn"], ["q_turned"])]
        query = "q_turned"
    if scale == "both":
        nodes += [("Mul", ["q_heads", "half"], ["q_scaled"]), ("Mul", ["half", "k_turned"], ["k_scaled"])]
        query, turned = "q_scaled", "k_scaled"
    nodes += [("MatMul", [query, turned], ["product"])]
    if scale == "scores":
        nodes += [("Div", ["product", "whole"], ["scaled"])]
        scores = "scaled"
    if positions:
        nodes += [("Add", [scores, "positions"], ["placed"])]
        scores = "placed"
    nodes += masked(mask, scores)
    scores = "masked" if mask else scores
    nodes += [("Softmax", [scores], ["p"], {"axis": -1})]
    if guard:
        nodes += [("IsNaN", ["p"], ["blind"]), ("Where", ["blind", "zero", "p"], ["seeing"])]
    nodes += [("MatMul", ["seeing" if guard else "p", "v_heads"], ["answer"])]
    nodes += relaid_answer() if relaid else []
    nodes += [("Transpose", ["relaid" if relaid else "answer"], ["back"], {"perm": [0, 2, 1, 3]})]
    nodes += asked_sizes() if asks else []
    nodes += [("Reshape", ["back", "joined" if asks else "join"], ["y"])]
    inputs = {"x": ["batch", "length", HIDDEN]} | ({"real": ["batch", 1, 1, "length"]} if mask else {})
    return build(nodes, inputs, {"y": ["batch", "length", HIDDEN]}, constants)


CASES = {
    "divided scores, added mask": {},
    "no mask": {"mask": None},
    "chosen by Where": {"mask": "where"},
    "both factors scaled": {"scale": "both"},
    "key turned twice": {"key": "two"},
    "heads left open": {"split": [0, 0, -1, SIZE]},
    "key turned with batch and heads as one": {"key": "folded", "scale": "both"},
    "rows that see nothing are zeros": {"guard": True, "mask": "infinite"},
    "guard that is not needed": {"guard": True, "mask": "where"},
    "sizes of the answer are asked for": {"asks": True},
    "hidden scores are filled": {"mask": "filled"},
    "positions and mask": {"positions": True},
    "positions under a filled mask": {"positions": True, "mask": "filled"},
    "a query that positions turned": {"turned_query": True},
    "query and key that positions turned": {"turned_query": True, "key": "placed"},
    "an answer that is laid out as it is": {"relaid": True, "guard": True, "mask": "infinite"},
    "a query that positions turned, sizes asked for": {"turned_query": True, "asks": True},
}


@pytest.mark.parametrize("case", CASES)
def test_written_out_attention_becomes_the_kernel(tools, session, case: str) -> None:
    model = attention(tools.build, **CASES[case])
    fused, counts = fuse(model, "model", "cpu")
    assert counts["softmax_attention"] == 1
    assert [node.op_type for node in fused.graph].count("MultiHeadAttention") == 1
    assert not any(node.op_type == "Softmax" for node in fused.graph)
    before, after = session(model), session(fused)
    for rows, length in ((1, 1), (3, 5), (2, 9)):
        real = np.ones((rows, 1, 1, length), np.float32)
        real[0, :, :, 1 + length // 2 :] = 0
        given = {"x": weights(rows, length, HIDDEN, seed=9), "real": real}
        np.testing.assert_allclose(tools.run(after, given)["y"], tools.run(before, given)["y"], atol=2e-6)


def folded(build, bias: bool, factor: bool):
    """As DeBERTa-v2 writes it: rows and heads are one axis in products; real [batch, 1, 1, length] → y."""
    constants = {f"w_{p}": weights(HIDDEN, HIDDEN, seed=i) for i, p in enumerate("qkv")}
    constants |= {"split": np.array([0, 0, HEADS, SIZE]), "join": np.array([0, 0, HIDDEN]), "whole": np.float32(SIZE**0.5)}
    constants |= {"lowest": LOWEST, "zero": np.float32(0), "minus": np.array([-1]), "heads": np.array([HEADS]), "size": np.array([SIZE])}
    nodes: list = [("Shape", ["x"], ["n"], {"start": 1, "end": 2}), ("Concat", ["minus", "n", "size"], ["three"], {"axis": 0})]
    for p in "qkv":
        nodes += [("MatMul", ["x", f"w_{p}"], [f"{p}_flat"]), ("Reshape", [f"{p}_flat", "split"], [f"{p}_split"])]
        nodes += [("Transpose", [f"{p}_split"], [f"{p}_heads"], {"perm": [0, 2, 1, 3]}), ("Reshape", [f"{p}_heads", "three"], [p])]
    nodes += [("Transpose", ["k"], ["k_turned"], {"perm": [0, 2, 1]}), ("Div", ["k_turned", "whole"], ["k_scaled"])]
    nodes += [("MatMul", ["q", "k_scaled" if factor else "k_turned"], ["product"])]
    if bias:
        nodes += [("Transpose", ["q"], ["q_turned"], {"perm": [0, 2, 1]}), ("MatMul", ["k", "q_turned"], ["relative"])]
        nodes += [("Add", ["product", "relative"], ["scores"])]
    nodes += [
        ("Concat", ["minus", "heads", "n", "n"], ["four"], {"axis": 0}),
        ("Reshape", ["scores" if bias else "product", "four"], ["scores4"]),
        ("Greater", ["real", "zero"], ["seen"]),
        ("Where", ["seen", "scores4", "lowest"], ["masked"]),
        ("Softmax", ["masked"], ["p4"], {"axis": -1}),
        ("Concat", ["minus", "n", "n"], ["three_of_scores"], {"axis": 0}),
        ("Reshape", ["p4", "three_of_scores"], ["p"]),
        ("MatMul", ["p", "v"], ["answer"]),
        ("Concat", ["minus", "heads", "n", "size"], ["four_of_values"], {"axis": 0}),
        ("Reshape", ["answer", "four_of_values"], ["answer4"]),
        ("Transpose", ["answer4"], ["back"], {"perm": [0, 2, 1, 3]}),
        ("Reshape", ["back", "join"], ["y"]),
    ]
    return build(
        nodes, {"x": ["batch", "length", HIDDEN], "real": ["batch", 1, 1, "length"]}, {"y": ["batch", "length", HIDDEN]}, constants
    )


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("factor", [False, True])
def test_heads_in_one_axis_with_rows(tools, session, bias: bool, factor: bool) -> None:
    model = folded(tools.build, bias, factor)
    name_inner_shapes(model)
    fused, counts = fuse(model, "model", "cpu")
    assert (counts["folded_heads"], counts["softmax_attention"]) == (1, 1)
    before, after = session(model), session(fused)
    for rows, length in ((1, 1), (3, 5), (2, 9)):
        real = np.ones((rows, 1, 1, length), np.float32)
        real[0, :, :, 1 + length // 2 :] = 0
        given = {"x": weights(rows, length, HIDDEN, seed=9), "real": real}
        np.testing.assert_allclose(tools.run(after, given)["y"], tools.run(before, given)["y"], atol=2e-6)


def name_inner_shapes(model) -> None:
    """Shapes as torch's exporter writes them: ONNX's inference does not name a dimension that a Reshape leaves open."""
    scores = ir.Shape(["rows", "length", "length"])
    wide = ir.Shape(["batch", HEADS, "length", "length"])
    heads = ir.Shape(["batch", HEADS, "length", SIZE])
    flat = ir.Shape(["rows", "length", SIZE])
    known = {"q_heads": heads, "k_heads": heads, "v_heads": heads, "q": flat, "k": flat, "v": flat, "answer": flat, "answer4": heads}
    known |= {"product": scores, "relative": scores, "scores": scores, "p": scores, "scores4": wide, "masked": wide, "p4": wide}
    for node in model.graph:
        for value in node.outputs:
            value.shape = known.get(str(value.name), value.shape)


def test_rows_that_see_nothing_stay_zeros(tools, session) -> None:
    model = attention(tools.build, guard=True, mask="infinite")
    fused, counts = fuse(model, "model", "cpu")
    assert counts["softmax_attention"] == 1
    real = np.ones((2, 1, 1, 5), np.float32)
    real[1] = 0
    given = {"x": weights(2, 5, HIDDEN, seed=9), "real": real}
    answer = tools.run(session(fused), given)["y"]
    assert (answer[1] == 0).all()
    np.testing.assert_allclose(answer, tools.run(session(model), given)["y"], atol=2e-6)


def test_a_key_that_is_laid_out_anew_stays(tools) -> None:
    _, counts = fuse(attention(tools.build, key="laid out"), "model", "cpu")
    assert "softmax_attention" not in counts


def test_probabilities_that_are_used_elsewhere_stay(tools) -> None:
    model = attention(tools.build)
    (softmax,) = (node for node in model.graph if node.op_type == "Softmax")
    model.graph.outputs.append(softmax.outputs[0])
    _, counts = fuse(model, "model", "cpu")
    assert "softmax_attention" not in counts


def test_a_softmax_over_another_axis_stays(tools) -> None:
    model = attention(tools.build)
    (softmax,) = (node for node in model.graph if node.op_type == "Softmax")
    softmax.attributes["axis"] = type(softmax.attributes["axis"])("axis", softmax.attributes["axis"].type, 2)
    _, counts = fuse(model, "model", "cpu")
    assert "softmax_attention" not in counts


def test_the_kernel_is_what_onnx_runtime_runs(tools, session, tmp_path) -> None:
    fused, _ = fuse(attention(tools.build), "model", "cpu")
    session(fused)
    (file,) = tmp_path.rglob("model.onnx")
    assert tools.running(file).count("MultiHeadAttention") == 1


def test_fp16_of_a_stored_graph_knows_its_types_again(tools, session, tmp_path) -> None:
    """Range takes float32 alone; once stored, a graph does not say which of its values are floating."""
    nodes = [
        ("Shape", ["x"], ["size"], {"start": 1, "end": 2}),
        ("Squeeze", ["size"], ["count"]),
        ("Cast", ["count"], ["end"], {"to": 1}),
        ("Range", ["zero", "end", "one"], ["places"]),
        ("Mul", ["x", "places"], ["y"]),
    ]
    model = tools.build(nodes, {"x": [2, "n"]}, {"y": [2, "n"]}, {"zero": np.float32(0), "one": np.float32(1)})
    write({"model": model}, tmp_path / "stored")
    stored = ir.load(str(tmp_path / "stored" / "model.onnx"))
    x = weights(2, 5)
    answer = tools.run(session(to_half(stored, PRECISIONS["fp16"].plan)), {"x": x})["y"]
    np.testing.assert_allclose(answer, x * np.arange(5), rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("given", ["constant", "computed"])
def test_fp16_keeps_the_scales_of_a_resize(tools, session, given: str) -> None:
    scales, nodes = np.array([1, 1, 2, 4 / 3], np.float32), []
    if given == "computed":
        nodes = [("Mul", ["scales", "factor"], ["used"])]
        scales = np.array([1, 1, 2, 1.5], np.float32)
    nodes += [("Resize", ["x", "", "used" if nodes else "scales"], ["y"], {"mode": "linear"})]
    model = tools.build(nodes, {"x": [1, 2, 3, 6]}, {"y": [1, 2, 6, "n"]}, {"scales": scales, "factor": np.float32(1)})
    x = weights(1, 2, 3, 6)
    expected = tools.run(session(model), {"x": x})["y"]
    found = tools.run(session(to_half(model, PRECISIONS["fp16"].plan)), {"x": x})["y"]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-3)
