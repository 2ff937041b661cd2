"""The choice inside a decoder: the same as the search graph's, and out again without a trace."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from onnxport.graph.search_graphs import add_choice, best_graph, remove_choice

VOCAB = 70


def decoder() -> ir.Model:
    """logits = table[ids]."""
    ids = ir.Value(name="input_ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["batch"]))
    rows = np.random.default_rng(0).standard_normal((9, VOCAB)).astype(np.float32)
    table = ir.Value(
        name="table", const_value=ir.tensor(rows, name="table"), shape=ir.Shape(rows.shape), type=ir.TensorType(ir.DataType.FLOAT)
    )
    node = ir.node("Gather", [table, ids], {"axis": 0})
    logits = node.outputs[0]
    logits.name, logits.type, logits.shape = "logits", ir.TensorType(ir.DataType.FLOAT), ir.Shape(["batch", VOCAB])
    graph = ir.Graph([ids], [logits], nodes=[node], initializers=[table], opset_imports={"": 23}, name="decoder")
    return ir.Model(graph, ir_version=10)


def test_choice_is_that_of_the_search_graph(tmp_path: Path) -> None:
    model = add_choice(decoder())
    ir.save(model, tmp_path / "decoder.onnx")
    session = ort.InferenceSession(str(tmp_path / "decoder.onnx"))
    asked = {"candidates": np.array([5]), "suppressed": np.array([3, 4])}
    logits, *found = session.run(["logits", "token", "logprob", "kept"], {"input_ids": np.array([4, 0, 8]), **asked})
    expected = ort.InferenceSession(best_graph(VOCAB)).run(["token", "logprob", "kept"], {"logits": logits, **asked})
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_removed_choice_leaves_the_decoder_as_it_was() -> None:
    before = decoder()
    after = remove_choice(add_choice(before))
    assert ir.to_proto(after) == ir.to_proto(before)
    assert [v.name for v in before.graph.outputs] == ["logits"]
