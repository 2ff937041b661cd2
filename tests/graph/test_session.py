"""Graphs that are run: values that are asked for beside the outputs, sessions without optimization, padding that is left out."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from onnxport.errors import BundleError
from onnxport.graph import store
from onnxport.graph.session import answers, open_file, opened, real
from onnxport.runtime import sessions
from onnxport.runtime.memory.mappings import mapped
from onnxport.runtime.sessions import Sessions

WEIGHT = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
X = np.random.default_rng(1).standard_normal((2, 3, 8)).astype(np.float32)


@pytest.fixture
def model(tools):
    nodes = [("MatMul", ["x", "weight"], ["product"]), ("Relu", ["product"], ["y"])]
    return tools.build(nodes, {"x": ["batch", "length", 8]}, {"y": ["batch", "length", 4]}, {"weight": WEIGHT})


def test_values_inside_are_given_beside_the_outputs(model):
    with opened({"model": model}, ["product", "no such value"]) as runners:
        (found,) = runners["model"].run([{"x": X, "more": X}])
        (named,) = runners["model"].run([{"x": X}], ["product"])
    np.testing.assert_allclose(found["product"], X @ WEIGHT, atol=1e-6)
    np.testing.assert_array_equal(found["y"], np.maximum(found["product"], 0))
    assert list(found) == ["y", "product"] and list(named) == ["product"]
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_feeds_are_answered_in_turn_with_and_without_optimization(model):
    feeds = [{"x": X}, {"x": -X}]
    with opened({"a": model, "b": model}, optimize=False, steady=False) as runners:
        plain = [next(iter(found.values())) for runner in runners.values() for found in runner.run(feeds)]
    assert [answer["y"].tobytes() for answer in answers(model, feeds)] == [answer.tobytes() for answer in plain[:2]]
    np.testing.assert_array_equal(plain[:2], plain[2:])


def test_a_session_can_be_adjusted_and_a_bad_file_is_refused(model, tmp_path):
    store.write({"model": model}, tmp_path)
    written = tmp_path / "written.onnx"

    def write(options):
        options.optimized_model_filepath = str(written)

    assert list(open_file(tmp_path / "model.onnx", adjust=write).outputs) == ["y"] and written.exists()
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError, match=r"bad\.onnx"):
        open_file(tmp_path / "bad.onnx")


def test_padding_is_left_out():
    values = np.arange(24.0).reshape(2, 3, 4)
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    rows = values.reshape(6, 4)[[0, 1, 3]]
    for feed in (
        {"attention_mask": mask},
        {"source_mask": mask.astype(np.int32)},
        {"input_ids": np.zeros((2, 3), np.int64), "seqlens_k": np.array([1, 0], np.int32), "source_mask": np.ones((2, 3))},
    ):
        np.testing.assert_array_equal(real(values, feed), rows)
        assert real(values[:, :2], feed).shape == (2, 2, 4) and real(values[0], feed).shape == (3, 4)
    assert real(values, {"x": values}) is values


def test_a_sparing_session_leaves_the_weights_of_a_large_graph_in_their_file(tools, tmp_path, monkeypatch):
    weights = {"weight": np.random.default_rng(2).standard_normal((64, 256)).astype(np.float32)}
    nodes = [("MatMul", ["x", "weight"], ["y"])]
    model = tools.build(nodes, {"x": ["batch", 64]}, {"y": ["batch", 256]}, weights)
    path = tmp_path / store.write({"model": model}, tmp_path)["model"]
    x = np.random.default_rng(3).standard_normal((5, 64)).astype(np.float32)
    sparing = replace(Sessions.on("cpu"), sparing=True)
    found = {}
    for largest in (2**40, 0):
        monkeypatch.setattr(sessions, "LARGE", largest)
        before = sum(size for _, size in mapped({str(tmp_path / store.WEIGHTS)}) or [])
        runner = open_file(path, sparing)
        held = sum(size for _, size in mapped({str(tmp_path / store.WEIGHTS)}) or []) - before
        found[largest] = (held, next(runner.run([{"x": x}]))["y"])
    assert found[2**40][0] == 0 and (found[0][0] >= weights["weight"].nbytes or sys.platform != "linux")
    np.testing.assert_allclose(found[0][1], found[2**40][1], atol=1e-5)
