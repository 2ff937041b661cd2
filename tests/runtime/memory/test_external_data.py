"""The walk through an ONNX file finds every location that ONNX's own parser finds."""

import random

import onnx
import pytest
from onnx import TensorProto, helper

from onnxport.runtime.memory.external_data import locations


def outside(location: str, name: str = "w") -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("offset", "0"), ("location", location), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph(*tensors: onnx.TensorProto, nodes: tuple[onnx.NodeProto, ...] = ()) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), "g", [], [], list(tensors))


def sparse(values: str, indices: str) -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(values=outside(values), indices=outside(indices), dims=[9])


def everywhere() -> onnx.ModelProto:
    """A location, numbered, in each place that can hold a tensor."""
    inner = graph(outside("8"), nodes=(helper.make_node("Constant", [], ["z"], value=outside("9")),))
    nodes = (
        helper.make_node("Constant", [], ["a"], value=outside("1")),
        helper.make_node("Constant", [], ["b"], sparse_value=sparse("2", "3")),
        helper.make_node("Odd", [], ["c"], tensors=[outside("4"), outside("5")], many=[sparse("6", "7")]),
        helper.make_node("If", ["t"], ["d"], then_branch=inner, else_branch=graph(outside("10"))),
        helper.make_node("Odd", [], ["e"], graphs=[graph(outside("11"))]),
    )
    model = helper.make_model(graph(outside("12"), nodes=nodes))
    model.graph.sparse_initializer.append(sparse("13", "14"))
    function = helper.make_function("own", "F", [], ["y"], [helper.make_node("Constant", [], ["y"], value=outside("15"))], [])
    function.attribute_proto.append(helper.make_attribute("k", outside("16")))
    model.functions.append(function)
    training = model.training_info.add()
    training.initialization.CopyFrom(graph(outside("17")))
    training.algorithm.CopyFrom(graph(outside("18")))
    return model


def walked(message: object) -> set[str]:
    """Every location that the parsed message holds, found by its descriptors."""
    found = set()
    if isinstance(message, TensorProto):
        found |= {entry.value for entry in message.external_data if entry.key == "location"}
    for field, value in message.ListFields():  # type: ignore[attr-defined]
        if field.message_type is not None:
            for one in value if field.is_repeated else [value]:
                found |= walked(one)
    return found


def test_every_place_that_holds_tensors() -> None:
    model = everywhere()
    assert walked(model) == {str(i) for i in range(1, 19)}
    assert locations(model.SerializeToString()) == walked(model)


def test_no_external_data() -> None:
    assert locations(helper.make_model(graph(helper.make_tensor("location", 1, [1], [1.0]))).SerializeToString()) == set()
    assert locations(b"") == set()


def entry(key: bytes, value: bytes) -> bytes:
    return field(1, key) + field(2, value)


def field(number: int, content: bytes, size: bytes | None = None) -> bytes:
    return bytes([number << 3 | 2]) + (bytes([len(content)]) if size is None else size) + content


def model_of(*entries: bytes) -> bytes:
    return field(7, field(5, b"".join(field(13, one) for one in entries)))


ODD = {
    "value before key": field(2, b"x") + field(1, b"location"),
    "key twice": field(1, b"offset") + entry(b"location", b"x"),
    "value twice": entry(b"location", b"y") + field(2, b"x"),
    "numbers longer than need be": field(1, b"location", b"\x88\x80\x80\x00") + field(2, b"x", b"\x81\x00"),
    "unknown fields between": b"\x18\x05" + entry(b"location", b"x") + b"\x25abcd" + b"\x31abcdefgh" + field(15, b"?"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_but_legal_entries(name: str) -> None:
    data = model_of(ODD[name])
    assert walked(onnx.ModelProto.FromString(data)) == {"x"}
    assert "x" in locations(data)


def test_parts_that_a_parser_joins() -> None:
    data = model_of(entry(b"location", b"one")) + model_of(entry(b"location", b"two"), entry(b"location", b"three"))
    assert walked(onnx.ModelProto.FromString(data)) == locations(data) == {"one", "two", "three"}


@pytest.mark.parametrize("cut", [1, 5, 9, 15])
def test_a_message_that_is_cut_short(cut: int) -> None:
    data = model_of(entry(b"location", b"weights.bin"), entry(b"location", b"more"))
    with pytest.raises(ValueError, match=r"left|end|short"):
        locations(data[:-cut])


@pytest.mark.parametrize("data", [b"\x0b", b"\x00\x00", b"\xff" * 12, b"\x3a\xff\xff\xff\xff\x0f", b"\x0f"])
def test_what_is_no_message(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"field|number"):
        locations(data + b"location")


def test_what_is_no_text() -> None:
    with pytest.raises(ValueError, match="utf-8"):
        locations(model_of(entry(b"location", b"\xff\xfe")))


def test_depth_needs_no_stack() -> None:
    data = field(5, field(13, entry(b"location", b"x")))
    for _ in range(20_000):  # a graph in an attribute of a node of a graph
        for number in (6, 5, 1):
            size, length = b"", len(data)
            while length > 0x7F:
                size, length = size + bytes([length & 0x7F | 0x80]), length >> 7
            data = field(number, data, size + bytes([length]))
        if len(data) > 200_000:
            break
    size, length = b"", len(data)
    while length > 0x7F:
        size, length = size + bytes([length & 0x7F | 0x80]), length >> 7
    assert locations(field(7, data, size + bytes([length]))) == {"x"}


def test_damaged_files_never_hide_a_location() -> None:
    """A byte is changed or left out at random: what ONNX still reads, the walk reads too."""
    draw, whole, read = random.Random(0), everywhere().SerializeToString(), 0
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(draw.choice((1, 1, 2))):
            place = draw.randrange(len(data))
            if draw.random() < 0.8:
                data[place] = draw.randrange(256)
            else:
                del data[place]
        try:
            wanted = walked(onnx.ModelProto.FromString(bytes(data)))
        except Exception:  # the parser's error, of no class that is promised
            continue
        try:
            found = locations(bytes(data))
        except ValueError:
            continue  # refused
        read += 1
        assert wanted <= found, data
    assert read > 1000
