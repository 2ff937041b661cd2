"""Variants of models whose weights are made for each reader, in pieces, are those of the same models in memory, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxport.graph import lazy, pieces, store
from onnxport.quantize.plan import Plan
from onnxport.quantize.recipe import Recipe, make_graphs
from onnxport.quantize.safeguards import sensitive_weights

LAYERS, WIDTH, INNER, VOCABULARY = 8, 32, 64, 48


def decoder(read: Callable[[np.ndarray], ir.TensorProtocol] = ir.tensor) -> ir.Model:
    """Layers x + down(relu(up(norm(x)))) over a table that is tied to the logits."""
    random = np.random.default_rng(0)
    constants = {"embed.weight": random.normal(size=(VOCABULARY, WIDTH)), "one": np.array([1], np.int64)}
    nodes = [helper.make_node("Gather", ["embed.weight", "input_ids"], ["x0"], axis=0)]
    for i in range(LAYERS):
        constants[f"layers.{i}.norm.weight"] = random.uniform(0.5, 20, WIDTH)
        constants[f"layers.{i}.up.weight"] = random.normal(size=(WIDTH, INNER)) / 8
        constants[f"layers.{i}.down.weight"] = random.normal(size=(INNER, WIDTH)) / 8
        nodes += [
            helper.make_node("RMSNormalization", [f"x{i}", f"layers.{i}.norm.weight"], [f"n{i}"], axis=-1),
            helper.make_node("MatMul", [f"n{i}", f"layers.{i}.up.weight"], [f"u{i}"]),
            helper.make_node("Relu", [f"u{i}"], [f"r{i}"]),
            helper.make_node("MatMul", [f"r{i}", f"layers.{i}.down.weight"], [f"d{i}"]),
            helper.make_node("Add", [f"x{i}", f"d{i}"], [f"x{i + 1}"]),
        ]
    nodes += [
        helper.make_node("Unsqueeze", ["logits_index", "one"], ["places"]),
        helper.make_node("GatherND", [f"x{LAYERS}", "places"], ["last"], batch_dims=1),
        helper.make_node("Gemm", ["last", "embed.weight"], ["logits"], transB=1),
    ]
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])
    index = helper.make_tensor_value_info("logits_index", TensorProto.INT64, ["batch"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", VOCABULARY])
    weights = [numpy_helper.from_array(a if a.dtype == np.int64 else a.astype(np.float32), n) for n, a in constants.items()]
    graph = helper.make_graph(nodes, "g", [ids, index], [logits], weights)
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10))
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        value.const_value = read(value.const_value.numpy())
    return model


def made_anew(array: np.ndarray) -> ir.TensorProtocol:
    return ir.LazyTensor(lambda: ir.tensor(array), ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape))


@pytest.fixture
def feeds() -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(1)
    return [{"input_ids": random.integers(0, VOCABULARY, (1, n)), "logits_index": np.array([n - 1])} for n in (30, 21, 40)]


@pytest.mark.parametrize("precision", ["int8", "int4", "int4-rtn"])
def test_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, feeds, precision):
    monkeypatch.setattr(sensitive_weights, "LARGE", 0)
    monkeypatch.setattr(pieces.cuts, "__defaults__", (2 * WIDTH * INNER * 4,))  # bytes of a layer
    assert len(pieces.cuts(decoder())) == LAYERS + 1
    recipe = Recipe(precision, texts=lambda: {"decoder": feeds})
    plain = make_graphs(recipe, {"decoder": decoder()}, tmp_path / "none.npz")
    monkeypatch.setattr(lazy, "LEAST", 0)
    streamed = make_graphs(recipe, {"decoder": decoder(made_anew)}, tmp_path / "none.npz")
    assert streamed.plan.schemes == plain.plan.schemes
    for name, made in (("plain", plain), ("streamed", streamed)):
        store.write(made.models, tmp_path / name)
    for file in ("decoder.onnx", store.WEIGHTS):
        assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "streamed" / file).read_bytes()


def test_a_rule_protects_inner_units_of_outer_layers_and_some_between():
    found = sensitive_weights.by_rule(decoder(), Plan({"*": "int4-blocks32-asym"}))
    assert found == {f"layers.{i}.down.weight": "int8-blocks" for i in (0, 3, 6, 7)}
    found = sensitive_weights.by_rule(decoder(), Plan({"*": "int8-rows-rotated"}))
    assert found == {f"layers.{i}.down.weight": "int8-blocks32" for i in (0, 1)}


def test_weights_that_are_made_anew_have_no_copy_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store, "LEAST", 64)
    with store.on_disk({"decoder": decoder(made_anew)}, tmp_path / "bundle"):
        assert not list(tmp_path.iterdir())
    with store.on_disk({"decoder": decoder()}, tmp_path / "bundle"):
        assert list(tmp_path.iterdir())
