"""Products of integers that an attention's queries, keys and values come from are one, with the same answers to the last bit."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxport.quantize.fusion import join_products
from onnxport.quantize.plan import Plan
from onnxport.quantize.schemes.apply import quantize

HEADS, KV_HEADS, SIZE, HIDDEN = 4, 2, 8, 32
WIDTHS = {"q": HEADS * SIZE, "k": KV_HEADS * SIZE, "v": KV_HEADS * SIZE}
ROWS = "int8-rows"


def attention(tools, biased=False, tied=False, normed=False):
    """x -> y, present_key_0, present_value_0 by three products, as a graph that was traced has them."""
    rng = np.random.default_rng(0)
    weights = {f"{one}_proj.weight": rng.standard_normal((HIDDEN, width)).astype(np.float32) for one, width in WIDTHS.items()}
    weights |= {f"{one}_proj.bias": rng.standard_normal(width).astype(np.float32) for one, width in WIDTHS.items()}
    weights |= {"norm.weight": np.linspace(1, 2, SIZE, dtype=np.float32), "heads": np.array([0, 0, KV_HEADS, SIZE])}
    weights |= {"flat": np.array([0, 0, KV_HEADS * SIZE])}
    nodes, read = [], []
    for one in WIDTHS:
        name = f"{'k' if tied and one == 'v' else one}_proj.weight"
        nodes.append(("MatMul", ["x", name], [f"{one}_product"]))
        if biased:
            nodes.append(("Add", [f"{one}_product", f"{one}_proj.bias"], [f"{one}_biased"]))
        read.append(f"{one}_biased" if biased else f"{one}_product")
    if normed:
        nodes += [("Reshape", [read[1], "heads"], ["k4"]), ("RMSNormalization", ["k4", "norm.weight"], ["k4n"], {"axis": -1})]
        nodes.append(("Reshape", ["k4n", "flat"], ["kn"]))
        read[1] = "kn"
    nodes.append(("Identity", ["x"], ["y"]))
    past, present = ["batch", KV_HEADS, "past", SIZE], ["batch", KV_HEADS, "total", SIZE]
    inputs = {"x": ["batch", "length", HIDDEN], "past_key_0": past, "past_value_0": past, "seqlens_k": ("int32", ["batch"])}
    inputs |= {"total_sequence_length": ("int32", [])}
    model = tools.build(nodes, inputs, {"y": ["batch", "length", HIDDEN]}, weights)
    graph = model.graph
    values = {v.name: v for v in [*graph.inputs, *(v for node in graph for v in node.outputs)]}
    given = [values[name] for name in (*read, "past_key_0", "past_value_0", "seqlens_k", "total_sequence_length")]
    attributes = {"num_heads": HEADS, "kv_num_heads": KV_HEADS}
    node = ir.node("GroupQueryAttention", given, attributes, domain="com.microsoft", num_outputs=3)
    for value, name, shape in zip(node.outputs, ("a", "present_key_0", "present_value_0"), (None, present, present), strict=True):
        value.name, value.type = name, ir.TensorType(ir.DataType.FLOAT)
        value.shape = ir.Shape(shape or ["batch", "length", HIDDEN])
    graph.append(node)
    graph.opset_imports["com.microsoft"] = 1
    graph.outputs[:] = node.outputs
    return model


def in_integers(model, **schemes):
    plan = Plan({"*": ROWS} | {f"{name}_proj.weight": scheme for name, scheme in schemes.items()})
    return quantize({"decoder": model}, plan)[0]["decoder"]


def products(model):
    return [node.op_type for node in model.graph if node.op_type in ("MatMulIntegerToFloat", "MatMulNBits", "MatMul")]


def answers(session, tools, model, batch, length):
    empty = np.zeros((batch, KV_HEADS, 0, SIZE), np.float32)
    x = np.random.default_rng(1).standard_normal((batch, length, HIDDEN)).astype(np.float32)
    feed = {"x": x, "past_key_0": empty, "past_value_0": empty, "seqlens_k": np.full(batch, length - 1, np.int32)}
    return tools.run(session(model, "decoder"), feed | {"total_sequence_length": np.array(length, np.int32)})


@pytest.mark.parametrize("form", [{}, {"biased": True}, {"normed": True}], ids=["plain", "biased", "normed"])
def test_answers_are_the_same_to_the_last_bit(session, tools, form):
    model = in_integers(attention(tools, **form))
    joined, counts = join_products({"decoder": model}, "cpu")
    assert counts == {"joined_products": 1}
    assert products(model) == ["MatMulIntegerToFloat"] * 3 and products(joined["decoder"]) == ["MatMulIntegerToFloat"]
    for batch, length in ((1, 1), (3, 1), (2, 7)):
        before, after = (answers(session, tools, one, batch, length) for one in (model, joined["decoder"]))
        assert np.abs(before["a"]).max() > 0.1
        for name, value in before.items():
            assert np.array_equal(value, after[name]), name


def test_values_keep_their_names_and_weights_their_bytes(tools):
    model = in_integers(attention(tools))
    joined, _ = join_products({"decoder": model}, "cpu")
    names = {str(value.name) for node in joined["decoder"].graph for value in node.outputs}
    assert {"q_product", "k_product", "v_product"} <= names
    large = [
        [v.const_value.nbytes for v in one.graph.initializers.values() if v.dtype == ir.DataType.INT8] for one in (model, *joined.values())
    ]
    assert sum(large[0]) == sum(large[1]) and len(large[1]) == 1


@pytest.mark.parametrize(
    ("schemes", "left"),
    [({"q": "fp32"}, ["MatMul", "MatMulIntegerToFloat"]), ({"k": "int8-blocks32"}, ["MatMulIntegerToFloat", "MatMulNBits"])],
)
def test_what_a_plan_treats_apart_stays_apart(session, tools, schemes, left):
    model = in_integers(attention(tools), **schemes)
    joined, counts = join_products({"decoder": model}, "cpu")
    assert counts == {"joined_products": 1} and sorted(products(joined["decoder"])) == left
    before, after = (answers(session, tools, one, 2, 3) for one in (model, joined["decoder"]))
    assert all(np.array_equal(value, after[name]) for name, value in before.items())


def test_one_product_of_integers_stays(tools):
    models = {"decoder": in_integers(attention(tools), q="fp32", k="fp32")}
    assert join_products(models, "cpu") == (models, {})


def test_weights_with_other_uses_stay(tools):
    assert join_products({"decoder": in_integers(attention(tools, tied=True))}, "cpu")[1] == {}
    decoder = in_integers(attention(tools))
    assert join_products({"decoder": decoder, "encoder": decoder}, "cpu")[1] == {}
    assert join_products({"decoder": decoder}, "cuda")[1] == {}
