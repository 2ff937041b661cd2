"""Caches of 8 bits: what the kernel keeps and answers, at scales that hold what it sees and at such that do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxport.errors import NotApplicable
from onnxport.graph.edit import attribute
from onnxport.graph.session import answers
from onnxport.quantize.schemes import int8_cache

HEADS, KV_HEADS, SIZE, LENGTH = 4, 2, 16, 12
Feed = dict[str, np.ndarray]


def decoder(**settings: Any) -> ir.Model:
    """One attention over a packed projection that is the graph's input. settings: rotary, bias, sinks are inputs, others attributes."""
    float_ = TensorProto.FLOAT
    width = (HEADS + 2 * KV_HEADS) * SIZE
    caches = ["batch", KV_HEADS, "capacity", SIZE]
    inputs = [helper.make_tensor_value_info("x", float_, ["batch", "length", width])]
    inputs += [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])]
    inputs += [helper.make_tensor_value_info(f"past_{part}_0", float_, caches) for part in ("key", "value")]
    inputs += [helper.make_tensor_value_info(name, TensorProto.INT32, ["batch"]) for name in ("seqlens_k", "query_seqlens")]
    inputs += [helper.make_tensor_value_info("total_sequence_length", TensorProto.INT32, [])]
    read = ["x", "", "", "past_key_0", "past_value_0", "seqlens_k", "total_sequence_length", *[""] * 9, "query_seqlens"]
    weights: dict[str, np.ndarray] = {}
    if settings.pop("rotary", False):
        angles = np.arange(64)[:, None] / 100 ** (np.arange(SIZE // 2) / (SIZE // 2))
        weights |= {"cosines": np.cos(angles), "sines": np.sin(angles)}
        read[7:9], settings["do_rotary"] = ["cosines", "sines"], 1
    if settings.pop("bias", False):
        inputs.append(helper.make_tensor_value_info("bias", float_, ["batch", HEADS, "length", "total"]))
        read[10] = "bias"
    if settings.pop("sinks", False):
        weights["sinks"], read[11] = np.linspace(-1, 1, HEADS), "sinks"
    node = helper.make_node(
        "GroupQueryAttention", read, ["answer", "present_key_0", "present_value_0"], "attention", domain="com.microsoft",
        num_heads=HEADS, kv_num_heads=KV_HEADS, **settings,
    )  # fmt: skip
    outputs = [helper.make_tensor_value_info("answer", float_, ["batch", "length", HEADS * SIZE])]
    outputs += [helper.make_tensor_value_info(f"present_{part}_0", float_, caches) for part in ("key", "value")]
    arrays = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    graph = helper.make_graph([node], "g", inputs, outputs, arrays)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def feed(seed: int = 0, capacity: int = 24, loud: float = 1.0) -> Feed:
    """Two rows over an empty cache, the first with two ids fewer. loud: a factor of one channel of the keys."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((2, LENGTH, HEADS + 2 * KV_HEADS, SIZE), dtype=np.float32)
    x[:, :, HEADS : HEADS + KV_HEADS, 3] *= loud
    real = np.array([LENGTH - 2, LENGTH], np.int32)
    empty = np.zeros((2, KV_HEADS, capacity, SIZE), np.float32)
    return {
        "x": x.reshape(2, LENGTH, -1), "input_ids": np.zeros((2, LENGTH), np.int64), "past_key_0": empty, "past_value_0": empty,
        "seqlens_k": real - 1, "query_seqlens": real, "total_sequence_length": np.array(LENGTH, np.int32),
        "bias": random.standard_normal((2, HEADS, LENGTH, LENGTH), dtype=np.float32),
    }  # fmt: skip


def cast(given: Feed, model: ir.Model) -> Feed:
    """A feed in the types of a graph's inputs."""
    return {str(v.name): given[str(v.name)].astype(v.dtype.numpy()) for v in model.graph.inputs if v.dtype is not None}


def made(model: ir.Model, given: Feed, room: float = 1.2, positions: int | None = 64) -> ir.Model:
    return int8_cache.quantized(model, int8_cache.turning(model), [given], room, positions)


def scales(model: ir.Model, part: str) -> np.ndarray:
    value = model.graph.initializers[f"past_{part}_0/scale"].const_value
    assert value is not None
    return value.numpy()


def error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Of the rows that are real."""
    real = np.arange(LENGTH) < np.array([[LENGTH - 2], [LENGTH]])
    return float(np.sqrt(np.square(ours - theirs)[real].mean() / np.square(theirs[real]).mean()))


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"rotary": True}, {"local_window_size": 4}, {"local_window_size": 8, "sliding_window_cache": 1, "rotary": True},
        {"softcap": 5.0, "sinks": True, "bias": True},
    ],
    ids=["plain", "rotary", "window", "bounded", "scores"],
)  # fmt: skip
def test_answers_are_near_those_of_float32(settings: dict[str, Any]) -> None:
    model, given = decoder(**settings), feed(capacity=8 if "sliding_window_cache" in settings else 24)
    small = made(model, given)
    (expected,), (found,) = answers(model, [cast(given, model)]), answers(small, [cast(given, small)])
    assert found["present_key_0"].dtype == np.int8
    assert error(found["answer"], expected["answer"]) < 0.02


def test_the_cache_holds_what_a_scale_times_a_whole_number_gives() -> None:
    """Attention in float32 over keys and values that are rounded so is what the kernel computes; what is beyond a scale becomes its end."""
    model, given = decoder(), feed(loud=20)
    for room in (1.2, 0.3):  # the second holds a third of what comes
        small = made(model, given, room)
        (found,) = answers(small, [cast(given, small)])
        x = given["x"].reshape(2, LENGTH, HEADS + 2 * KV_HEADS, SIZE).copy()
        for part, first in (("key", HEADS), ("value", HEADS + KV_HEADS)):
            scale, plain = scales(small, part), x[:, :, first : first + KV_HEADS].transpose(0, 2, 1, 3)
            rounded = np.clip(np.rint(plain / scale), -128, 127)
            np.testing.assert_array_equal(found[f"present_{part}_0"][:, :, : LENGTH - 2], rounded[:, :, : LENGTH - 2])
            assert (np.abs(rounded[1]) >= 127).any() == (room < 1)
            x[:, :, first : first + KV_HEADS] = (rounded * scale).transpose(0, 2, 1, 3)
        (expected,) = answers(model, [cast(given | {"x": x.reshape(2, LENGTH, -1)}, model)])
        assert error(found["answer"], expected["answer"]) < 1e-5


def test_one_loud_channel_takes_no_precision_from_the_others() -> None:
    model, given = decoder(), feed(loud=100)
    small = made(model, given)
    key = scales(small, "key")[0, :, 0]
    assert (key[:, 3] > 30 * np.delete(key, 3, axis=1).max()).all()
    one = small.clone()
    one.graph.initializers["past_key_0/scale"].const_value = ir.tensor(np.full_like(scales(small, "key"), key.max()))
    (expected,) = answers(model, [cast(given, model)])
    own, shared = (error(answers(m, [cast(given, m)])[0]["answer"], expected["answer"]) for m in (small, one))
    assert own < shared


def behind(given: Feed, at: int) -> Feed:
    """The same keys behind a cache of so many empty entries."""
    empty = np.zeros((2, KV_HEADS, 64, SIZE), np.float32)
    later = {"seqlens_k": given["seqlens_k"] + at, "total_sequence_length": np.array(LENGTH + at, np.int32)}
    return given | {"past_key_0": empty, "past_value_0": empty} | later


def test_scales_hold_keys_at_positions_that_no_text_had() -> None:
    """A channel that is loud turns into its partner further on; one that no position turns far keeps the partner its own scale."""
    model, given = decoder(rotary=True), feed()
    keys = given["x"].reshape(2, LENGTH, HEADS + 2 * KV_HEADS, SIZE)[:, :, HEADS : HEADS + KV_HEADS]
    keys[..., 7], keys[..., 15] = 100, 0  # the slowest pair: 0.018 radians a position
    keys[..., 0], keys[..., 8] = 100, 0  # the fastest: 1 radian
    (small, short) = (made(model, given, 1.0, positions) for positions in (64, LENGTH))
    for at in (0, 17, 64 - LENGTH):
        (found,) = answers(small, [cast(behind(given, at), small)])
        assert np.abs(found["present_key_0"][1].astype(int)).max() <= 127
        (floats,) = answers(model, [cast(behind(given, at), model)])
        errors = np.abs(found["present_key_0"] * scales(small, "key")[0] - floats["present_key_0"])[1, :, at : at + LENGTH]
        assert (errors <= 0.51 * scales(small, "key")[0]).all()  # rounded, never cut
    partner = [scales(m, "key")[0, :, 0, 15] for m in (small, short)]
    assert (partner[1] < partner[0] / 3).all()
    for m in (small, short):
        np.testing.assert_allclose(scales(m, "key")[0, :, 0, [0, 8]], 100 / 127, rtol=0.05)


@pytest.mark.parametrize("neighbours", [False, True])
def test_keys_that_are_turned_before_the_kernel_have_pairs_too(neighbours: bool) -> None:
    """As they are in classes that are traced: by a node whose tables are made in the graph."""
    model = decoder(rotary=True)
    (node,) = model.graph
    cosines, sines = (node.inputs[place].name for place in (7, 8))
    packed, parts = node.inputs[0], [ir.Value(name=name) for name in ("query", "key", "value")]
    width, kv_width = HEADS * SIZE, KV_HEADS * SIZE
    sizes = ir.Value(name="sizes", const_value=ir.tensor(np.array([width, kv_width, kv_width], np.int64), name="sizes"))
    model.graph.register_initializer(sizes)
    split = ir.Node("", "Split", [packed, sizes], [ir.AttrInt64("axis", -1)], outputs=parts)
    tables = []
    for name in (cosines, sines):
        made_of = [model.graph.initializers[name], model.graph.inputs[1]]
        rows = ir.node("Gather", [made_of[0], made_of[1]], {"axis": 0})
        rows.outputs[0].name = f"{name}/rows"
        tables.append(rows)
    turned = ir.node(
        "RotaryEmbedding", [parts[1], *(rows.outputs[0] for rows in tables)], {"num_heads": KV_HEADS, "interleaved": int(neighbours)}
    )
    turned.outputs[0].name = "turned"
    for new in (split, *tables, turned):
        model.graph.insert_before(node, new)
    for place, value in ((0, parts[0]), (1, turned.outputs[0]), (2, parts[2]), (7, None), (8, None)):
        node.replace_input_with(place, value)
    node.attributes["do_rotary"] = ir.AttrInt64("do_rotary", 0)
    model.graph.opset_imports[""] = 23
    given = feed() | {"input_ids": np.tile(np.arange(LENGTH), (2, 1))}  # in the place of positions
    given["x"].reshape(2, LENGTH, HEADS + 2 * KV_HEADS, SIZE)[:, :, HEADS : HEADS + KV_HEADS, 0] = 100
    assert int8_cache.turning(model)["past_key_0"].neighbours == neighbours
    key = scales(made(model, given), "key")[0, :, 0]
    np.testing.assert_allclose(key[:, 1 if neighbours else SIZE // 2], key[:, 0], rtol=0.05)
    assert (np.delete(key, [0, 1 if neighbours else SIZE // 2], axis=1) < key[:, :1] / 10).all()


def test_what_is_silent_or_zero_has_a_scale() -> None:
    given = feed()
    x = given["x"].reshape(2, LENGTH, HEADS + 2 * KV_HEADS, SIZE)
    x[:, :, HEADS:, 5:] = 0  # heads that are padded
    small = made(decoder(), given)
    for part in ("key", "value"):
        assert (scales(small, part) > 0).all()
    (found,) = answers(small, [cast(given, small)])
    assert np.isfinite(found["answer"][1]).all()


def test_a_window_sees_what_it_will_drop() -> None:
    """Scales come from all ids of a text, not from those alone that a window holds at its end."""
    model, given = decoder(local_window_size=4, sliding_window_cache=1), feed(capacity=4)
    given["x"].reshape(2, LENGTH, HEADS + 2 * KV_HEADS, SIZE)[:, 0, HEADS:, 7] = 1000
    assert (scales(made(model, given), "value")[0, :, 0, 7] > 1000 / 127).all()


def test_the_model_stays_as_it_is() -> None:
    model = decoder()
    made(model, feed())
    (node,) = model.graph
    assert attribute(node, "kv_cache_bit_width", None) is None and model.graph.inputs[2].dtype == ir.DataType.FLOAT


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"model": decoder()}, "does not generate"),
        ({"encoder": decoder(), "decoder": decoder()}, "an encoder beside its decoder"),
    ],
)
def test_other_models_are_refused(models: dict[str, ir.Model], message: str) -> None:
    with pytest.raises(NotApplicable, match=message):
        int8_cache.check(models)


def test_a_cache_of_another_node_is_refused() -> None:
    model = decoder()
    model.graph.inputs.append(
        ir.Value(name="past_key_1", shape=ir.Shape(["batch", 2, "capacity", 16]), type=ir.TensorType(ir.DataType.FLOAT))
    )
    with pytest.raises(NotApplicable, match="past_key_1 is read by another node"):
        int8_cache.check({"decoder": model})
