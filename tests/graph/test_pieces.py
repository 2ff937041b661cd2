"""Graphs that are run piece by piece answer as they do whole."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxport.graph import pieces
from onnxport.graph.session import opened


def residual_layers(count: int, seed: int = 0) -> ir.Model:
    """x + relu(x a) b for each layer, and one mask that all layers read."""
    rng = np.random.default_rng(seed)
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([None, 8]))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 21}, name="layers")

    def weight(name: str, *shape: int) -> ir.Value:
        tensor = ir.tensor(rng.normal(size=shape).astype(np.float32), name=name)
        value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
        graph.register_initializer(value)
        return value

    def node(op: str, inputs: list[ir.Value], name: str, width: int) -> ir.Value:
        made = ir.node(op, inputs, name=name)
        made.outputs[0].name, made.outputs[0].type = name, ir.TensorType(ir.DataType.FLOAT)
        made.outputs[0].shape = ir.Shape([None, width])
        graph.append(made)
        return made.outputs[0]

    mask, stream = node("Abs", [x], "mask", 8), x
    for i in range(count):
        wide = node("Relu", [node("MatMul", [stream, weight(f"{i}.a", 8, 64)], f"{i}.wide", 64)], f"{i}.act", 64)
        back = node("MatMul", [wide, weight(f"{i}.b", 64, 8)], f"{i}.back", 8)
        stream = node("Add", [stream, node("Mul", [back, mask], f"{i}.masked", 8)], f"{i}.sum", 8)
    graph.outputs.append(stream)
    return ir.Model(graph, ir_version=10)


@pytest.fixture
def feeds() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(size=(rows, 8)).astype(np.float32)} for rows in (3, 1, 5)]


@pytest.mark.parametrize("names", [{"x", "0.wide", "2.masked", "5.sum"}, {"5.act"}, {"0.act"}, {"x"}])
def test_values_are_those_of_the_whole(monkeypatch, feeds, names):
    monkeypatch.setattr(pieces.cuts, "__defaults__", (4096,))  # a layer has as many bytes of weights
    model = residual_layers(6)
    with opened({"model": model}, outputs=names - {"x"}) as runners:
        expected = [{**feed, **values} for feed, values in zip(feeds, runners["model"].run(feeds), strict=True)]
    found: list[dict[str, np.ndarray]] = [{} for _ in feeds]
    count = 0
    for piece in pieces.walk(model, feeds, names):
        count += 1
        for _ in range(2):  # the same again
            for values, more in zip(found, piece.run(piece.names & names), strict=True):
                values |= more
    last = max((int(name[0]) for name in names - {"x"}), default=0)
    assert count == last + 1
    for values, right in zip(found, expected, strict=True):
        assert values.keys() == names
        for name in names:
            np.testing.assert_array_equal(values[name], right[name])


def test_outputs_may_be_read_further_on(monkeypatch, feeds):
    monkeypatch.setattr(pieces.cuts, "__defaults__", (4096,))
    model = residual_layers(3)
    model.graph.outputs.append(next(value for node in model.graph for value in node.outputs if value.name == "0.sum"))
    with opened({"model": model}) as runners:
        expected = list(runners["model"].run(feeds, ["2.sum"]))
    found = [values for piece in pieces.walk(model, feeds, {"2.sum"}) if "2.sum" in piece.names for values in piece.run({"2.sum"})]
    for values, right in zip(found, expected, strict=True):
        np.testing.assert_array_equal(values["2.sum"], right["2.sum"])


def test_cut_where_little_is_handed_on():
    model = residual_layers(6)
    nodes = list(model.graph)
    found = pieces.cuts(model, 3000)
    assert [begin for begin, _, _ in found[1:]] == [end for _, end, _ in found[:-1]] and found[-1][1] == len(nodes)
    assert [names for _, _, names in found[:-1]] == [{"mask", "0.back"}, *({"mask", f"{i}.sum"} for i in range(1, 5))]


def test_a_small_graph_is_one_piece(feeds):
    model = residual_layers(3)
    assert len(pieces.cuts(model)) == 1
    assert [len(list(piece.run({"2.sum"}))) for piece in pieces.walk(model, feeds, {"2.sum"})] == [3]


def test_nothing_is_run_without_inputs():
    assert list(pieces.walk(residual_layers(2), [], {"1.sum"})) == []
