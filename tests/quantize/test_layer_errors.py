"""Error growth through the layers, against errors reckoned by hand."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxport.graph.edit import remove_dead
from onnxport.quantize.fusion import fuse
from onnxport.quantize.layer_errors import growth, layer_ends, layer_errors
from onnxport.quantize.plan import scheme
from onnxport.quantize.precisions import PRECISIONS
from onnxport.quantize.schemes import int8
from onnxport.quantize.schemes.half import to_half
from onnxport.quantize.schemes.linear import linears

WIDTH = 8
RNG = np.random.default_rng(0)
WEIGHTS = RNG.standard_normal((3, WIDTH, WIDTH)).astype(np.float32) / 3


def stack(tools, weights, last="last_hidden_state"):
    """x + x W, layer by layer; the last layer's sum is an output of the graph and has lost its module's name."""
    nodes, x = [], "x"
    for i in range(len(weights)):
        end = last if i == len(weights) - 1 else f"stack.layers.{i}/Add_output_0"
        product = f"stack.layers.{i}.linear/MatMul_output_0"
        nodes += [("MatMul", [x, f"stack.layers.{i}.linear.weight"], [product]), ("Add", [x, product], [end])]
        x = end
    shape = ["batch", "length", WIDTH]
    named = {f"stack.layers.{i}.linear.weight": w for i, w in enumerate(weights)}
    return tools.build(nodes, {"x": shape, "attention_mask": ("int64", ["batch", "length"])}, {last: shape}, named)


def by_hand(x, weights):
    found = []
    for w in weights:
        x = x + x @ w
        found.append(x)
    return found


def relative(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.sqrt(np.square(a - b).sum() / np.square(a - a.mean(-1, keepdims=True)).sum())


def test_the_error_begins_where_a_weight_differs_and_padding_does_not_count(tools):
    changed = WEIGHTS.copy()
    changed[1, 2, 3] += 0.5
    x = RNG.standard_normal((2, 4, WIDTH)).astype(np.float32)
    x[1, 2:] = 1e4  # padding
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
    found = layer_errors(stack(tools, WEIGHTS), stack(tools, changed), [{"x": x, "attention_mask": mask}])
    assert [entry["name"] for entry in found] == ["stack.layers.0", "stack.layers.1", "stack.layers.2"]
    expected = [relative(a, b) for a, b in zip(by_hand(x[mask > 0], WEIGHTS), by_hand(x[mask > 0], changed), strict=True)]
    assert expected[1] > 1e-2
    np.testing.assert_allclose([entry["relative_error"] for entry in found], expected, rtol=1e-4, atol=1e-12)


def test_what_is_not_finite_is_told(tools):
    changed = WEIGHTS.copy()
    changed[2, 0, 0] = np.inf
    x = RNG.standard_normal((1, 2, WIDTH)).astype(np.float32)
    errors = [entry["relative_error"] for entry in layer_errors(stack(tools, WEIGHTS), stack(tools, changed), [{"x": x}])]
    assert errors == [0.0, 0.0, np.inf]


def test_a_graph_without_layers_has_no_growth(tools):
    plain = tools.build([("Relu", ["x"], ["y"])], {"x": ["batch", 4]}, {"y": ["batch", 4]})
    assert layer_errors(plain, plain, [{"x": np.ones((1, 4), np.float32)}]) == []


@pytest.mark.parametrize("name, layer", [
    ("/encoder/layer.0/output/Add_output_0", "encoder.layer.0"),
    ("model/bert/encoder/layer_._0/output/Add:0", "model.bert.encoder.layer_._0"),
    ("decoder.block.3.layer.1/Add_output_0", "decoder.block.3"),
    ("Shape_output_0/length", None),
    ("add_3", None),
])  # fmt: skip
def test_layers_are_told_by_the_names_of_many_exporters(tools, name, layer):
    graph = tools.build(
        [("Add", ["x", "x"], [name]), ("Relu", [name], ["y"])], {"x": ["batch", "length", 4]}, {"y": ["batch", "length", 4]}
    ).graph
    assert layer_ends(graph) == ({} if layer is None else {layer: name})


@pytest.fixture(scope="module")
def fused(standard):
    return fuse(standard, "decoder", "cpu")[0]


@pytest.fixture(scope="module")
def goldens(tmp_path_factory):
    """Golden answers of a translator: rows of unequal length."""
    path = tmp_path_factory.mktemp("goldens") / "golden.npz"
    ids, sources = np.random.default_rng(1).integers(0, 61, (2, 2, 5))
    cases = {"seq0/source_ids": sources, "seq0/source_mask": np.array([[1, 1, 1, 0, 0], [1] * 5], np.int32), "seq0/target_ids": ids}
    np.savez(path, **cases | {"seq0/target_lengths": np.array([5, 3]), "greedy/tokens": ids})
    return path


def encoder(tools, factor=1.0):
    """Keys and values of two decoder layers from a table of embeddings."""
    table = np.random.default_rng(2).standard_normal((61, 32)).astype(np.float32) * np.float32(factor)
    names = [f"cross_{c}_{i}" for i in range(2) for c in ("key", "value")]
    nodes = [("Gather", ["table", "input_ids"], ["x"]), ("Reshape", ["x", "shape"], ["split"])]
    nodes += [("Transpose", ["split"], [name], {"perm": [0, 2, 1, 3]}) for name in names]
    outputs = {name: ["batch", 4, "source", 8] for name in names}
    return tools.build(nodes, {"input_ids": ("int64", ["batch", "source"])}, outputs, {"table": table, "shape": np.array([0, 0, 4, 8])})


def to_int8(model):
    copy = model.clone()
    for linear in list(linears(copy.graph)):
        int8.replace_rows(copy.graph, linear, int8.quantize_rows(copy.graph, linear.node, linear.x), scheme("int8-rows"))
    remove_dead(copy.graph)
    return copy


def errors(reference, variant, goldens):
    found = growth(reference, variant, goldens)
    assert [entry["name"] for entry in found] == ["layers.0", "layers.1"]
    return [entry["relative_error"] for entry in found]


def test_a_cached_decoder_in_every_precision(tools, fused, goldens):
    before = ir.to_proto(fused).SerializeToString(deterministic=True)
    reference = {"encoder": encoder(tools), "decoder": fused}
    assert errors(reference, reference, goldens) == [0.0, 0.0]
    half = errors(reference, {"encoder": encoder(tools), "decoder": to_half(fused, PRECISIONS["fp16"].plan)}, goldens)
    eight = errors(reference, {"encoder": encoder(tools), "decoder": to_int8(fused)}, goldens)
    assert all(1e-5 < small < 2e-3 < large < 0.1 for small, large in zip(half, eight, strict=True))
    assert ir.to_proto(fused).SerializeToString(deterministic=True) == before


def test_a_decoder_reads_what_its_own_encoder_made(tools, fused, goldens):
    pair = [{"encoder": encoder(tools, factor), "decoder": fused} for factor in (1.0, 1.5)]
    assert min(errors(*pair, goldens)) > 0.01
