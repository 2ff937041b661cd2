import numpy as np
import onnx
import pytest
from bandwidth import read_speed, weight_bytes
from handbuilt import SCHEMES, HandBuilt, build
from onnx import TensorProto, helper, numpy_helper

SMALL = {"layers": 2, "hidden": 64, "inner": 128, "heads": 2, "vocabulary": 300, "positions": 32}


@pytest.fixture
def step(tmp_path):
    """A table of 100 rows, a projection, a scale of one number, and a weight that nothing reads."""
    arrays = {"table": np.zeros((100, 8), np.float32), "weight": np.zeros((8, 50), np.int8), "one": np.float32(1), "idle": np.zeros(9)}
    nodes = [helper.make_node("Gather", ["table", "ids"], ["x"]), helper.make_node("MatMulInteger", ["x", "weight"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "step",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["rows"])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    onnx.save(helper.make_model(graph), tmp_path / "step.onnx")
    return tmp_path / "step.onnx"


def test_a_step_reads_projections_whole_and_only_rows_of_tables(step):
    assert weight_bytes(step, rows=1) == 8 * 50 + 8 * 4
    assert weight_bytes(step, rows=3) == 8 * 50 + 3 * 8 * 4
    assert weight_bytes(step, rows=1000) == 8 * 50 + 100 * 8 * 4


def test_a_tied_table_that_is_multiplied_too_counts_whole(step):
    model = onnx.load(step)
    model.graph.node.append(helper.make_node("MatMul", ["x", "table"], ["z"]))
    onnx.save(model, step)
    assert weight_bytes(step) == 8 * 50 + 100 * 8 * 4


def test_weights_of_branches_are_found(step):
    model = onnx.load(step)
    inner = helper.make_graph([helper.make_node("Identity", ["idle"], ["w"])], "branch", [], [])
    model.graph.node.append(helper.make_node("If", ["condition"], ["w"], then_branch=inner, else_branch=inner))
    onnx.save(model, step)
    assert weight_bytes(step) == 8 * 50 + 8 * 4 + 9 * 8


@pytest.mark.parametrize("threads", [1, 2])
def test_reading_has_a_speed(threads):
    assert 1e6 < read_speed(1 << 20, threads, seconds=0.01) < 1e13


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_handbuilt_step_runs_in_every_scheme(scheme):
    side = HandBuilt(scheme, threads=1, shape=SMALL)
    side.load()
    first = side.generate([[5] * 7] * 3, max_new_tokens=4)
    assert [len(answer["tokens"]) for answer in first] == [4, 4, 4]
    assert all(0 <= token < 300 for answer in first for token in answer["tokens"])
    assert side.generate([[5] * 7] * 3, max_new_tokens=4) == first  # no state is left behind


def test_top_k_in_the_graph_begins_with_the_arg_max():
    best, many = HandBuilt("fp32", 1, shape=SMALL), HandBuilt("fp32", 1, top=4, shape=SMALL)
    for side in (best, many):
        side.load()
    assert best.generate([[5] * 7], max_new_tokens=6) == many.generate([[5] * 7], max_new_tokens=6)
    assert many.arrays["value"].shape == (1, 1, 4)
    assert (np.diff(many.arrays["value"]) <= 0).all()


def test_a_step_of_int8_blocks_reads_about_a_quarter_of_fp32(tmp_path):
    sizes = {}
    for scheme in ("fp32", "block8_128"):
        g = build(scheme, 0, {**SMALL, "hidden": 128})
        graph = helper.make_graph(g.nodes, "step", g.inputs, g.outputs, g.weights)
        onnx.save(helper.make_model(graph), tmp_path / "step.onnx")
        sizes[scheme] = weight_bytes(tmp_path / "step.onnx")
    assert 0.25 < sizes["block8_128"] / sizes["fp32"] < 0.35
