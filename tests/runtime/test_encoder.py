"""Bundles that answer in one pass: raw arrays with checks, vectors that do not depend on the batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper

from onnxport.errors import BundleError, DataError, TextError, UsageError
from onnxport.runtime import Model, load
from onnxport.runtime.bundle.writer import bundle_folder
from onnxport.runtime.encoder import PADDING, TOKENS, _groups
from onnxport.runtime.verify import replay
from support import tiny_bundles as tiny

WIDTH = 6
TABLE = np.random.default_rng(0).standard_normal((tiny.VOCABULARY, WIDTH)).astype(np.float32)


def write(out: Path, task: str, graph: Any, role: str, goldens: dict[str, np.ndarray], **more: Any) -> Path:
    with bundle_folder(out) as staging:
        model = h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=9)
        (staging.path / "model.onnx").write_bytes(model.SerializeToString())
        np.savez(staging.path / "golden.npz", **goldens)
        tiny.tokenizer("seq2seq").save(str(staging.path / "tokenizer.json"))
        variant = {"files": ["model.onnx"], "graphs": {role: "model.onnx"}, "parity": {"bounds": {"max_abs_diff": 1e-5}}}
        staging.manifest = {
            "name": "tiny", "task": task, "default": "fp32", "golden": "golden.npz", "tokenizers": {"source": "tokenizer.json"},
            "variants": {"fp32": variant}, **more,
        }  # fmt: skip
    return out


def embedding_bundle(out: Path, kind: int = T.INT64, **encoding: Any) -> Path:
    """last_hidden_state is the table's rows: padding is not zero, so that pooling over it would show. kind: of ids and mask."""
    ids = h.make_tensor_value_info("input_ids", kind, ["batch", "sequence"])
    mask = h.make_tensor_value_info("attention_mask", kind, ["batch", "sequence"])
    state = h.make_tensor_value_info("last_hidden_state", T.FLOAT, ["batch", "sequence", WIDTH])
    nodes = [h.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])]
    graph = h.make_graph(nodes, "g", [ids, mask], [state], [numpy_helper.from_array(TABLE, "table")])
    case = np.array([[3, 4, 5], [6, 0, 0]])
    wrong_at_padding = TABLE[case].copy()
    wrong_at_padding[1, 1:] = 99
    goldens = {
        "case0/in/input_ids": case,
        "case0/in/attention_mask": (case > 0).astype(np.int64),
        "case0/out/last_hidden_state": wrong_at_padding,
    }
    return write(out, "embedding", graph, "encoder", goldens, encoding={"vocab_size": tiny.VOCABULARY, **encoding})


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(embedding_bundle(tmp_path_factory.mktemp("encoder") / "b", max_length=12), threads=1)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Model:
    x = h.make_tensor_value_info("x", T.FLOAT, ["batch", 3])
    y = h.make_tensor_value_info("y", T.FLOAT, ["batch"])
    graph = h.make_graph(
        [h.make_node("Add", ["x", "y2"], ["sum"]), h.make_node("Unsqueeze", ["y", "one"], ["y2"])][::-1],
        "g", [x, y], [h.make_tensor_value_info("sum", T.FLOAT, ["batch", 3])], [numpy_helper.from_array(np.array([1]), "one")],
    )  # fmt: skip
    goldens = {
        "case0/in/x": np.ones((2, 3), np.float32),
        "case0/in/y": np.ones(2, np.float32),
        "case0/out/sum": np.full((2, 3), 2, np.float32),
    }
    return load(write(tmp_path_factory.mktemp("plain") / "b", "tensor", graph, "model", goldens), threads=1)


def test_run_gives_outputs_by_name(plain: Model) -> None:
    found = plain.run({"x": np.ones((4, 3), np.float32), "y": np.arange(4, dtype=np.float32)})
    np.testing.assert_array_equal(found["sum"], 1 + np.arange(4)[:, None] * np.ones(3))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"y": None}, "lacks y"),
        ({"z": np.ones(1)}, "unknown z"),
        ({"x": np.ones((2, 3))}, "x is float64, expected float32"),
        ({"x": np.ones(3, np.float32)}, "x has 1 axes, expected 2"),
        ({"x": np.ones((2, 4), np.float32)}, "size 4 on axis 1, expected 3"),
        ({"x": np.ones((0, 3), np.float32)}, "empty on axis 0"),
        ({"x": np.ones((5, 3), np.float32)}, "differ in batch: 5 on axis 0 of x and 2 on axis 0 of y"),
    ],
)
def test_run_refuses_what_does_not_fit(plain: Model, change: dict[str, Any], part: str) -> None:
    inputs = {"x": np.ones((2, 3), np.float32), "y": np.ones(2, np.float32)} | change
    with pytest.raises(DataError) as caught:
        plain.run({n: a for n, a in inputs.items() if a is not None})
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_run_names_a_shared_axis_whose_sizes_differ(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    nodes = [h.make_node("Add", ["src", "tgt"], ["sum"]), h.make_node("MatMul", ["sum", "w"], ["y"])]
    shapes = {"src": ["batch", "time", 4], "tgt": ["batch", "time", 4]}
    values = [h.make_tensor_value_info(name, T.FLOAT, shape) for name, shape in shapes.items()]
    weights = [numpy_helper.from_array(np.ones((4, 2), np.float32), "w")]
    graph = h.make_graph(nodes, "g", values, [h.make_tensor_value_info("y", T.FLOAT, ["batch", "time", 2])], weights)
    whole = {"src": np.ones((2, 5, 4), np.float32), "tgt": np.ones((2, 5, 4), np.float32)}
    goldens = {f"case0/in/{name}": array for name, array in whole.items()} | {"case0/out/y": np.full((2, 5, 2), 8, np.float32)}
    model = load(write(tmp_path / "b", "tensor", graph, "model", goldens))
    with pytest.raises(DataError) as caught:
        model.run(whole | {"tgt": np.ones((2, 7, 4), np.float32)})
    told = "the arrays differ in time: 5 on axis 1 of src and 7 on axis 1 of tgt; expected the same size on all of them"
    assert str(caught.value) == told
    assert capfd.readouterr().err == ""  # nothing of ONNX Runtime's own
    assert model.run(whole)["y"].shape == (2, 5, 2)


def test_run_checks_ids(encoder: Model) -> None:
    with pytest.raises(TextError, match="token id 40"):
        encoder.run({"input_ids": np.array([[40]]), "attention_mask": np.ones((1, 1), np.int64)})


def test_encode_is_the_normalized_mean_over_tokens(encoder: Model) -> None:
    texts = ["w5 w6", "w7", "w8 w9 w10 w11 w12 w13", "w5 w6"]
    found = encoder.encode(texts)
    assert found.shape == (4, WIDTH)
    assert found.dtype == np.float32
    for text, vector in zip(texts, found, strict=True):
        mean = TABLE[encoder.tokenize(text)].mean(0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-6)
    np.testing.assert_array_equal(encoder.encode("w7"), found[1:2])
    np.testing.assert_allclose(encoder.encode(texts, batch_size=1), found, atol=1e-6)


def test_encode_pools_as_the_bundle_says(tmp_path: Path) -> None:
    with load(embedding_bundle(tmp_path / "b", pooling="cls", normalize=False), threads=1) as model:
        np.testing.assert_array_equal(model.encode(["w5 w6"]), TABLE[[5]])


def test_encode_gives_a_graph_the_type_of_ids_that_it_wants(tmp_path: Path) -> None:
    with load(embedding_bundle(tmp_path / "b", T.INT32, pooling="cls", normalize=False), threads=1) as model:
        np.testing.assert_array_equal(model.encode(["w5 w6", "w7"]), TABLE[[5, 7]])


@pytest.mark.parametrize(("texts", "part"), [([3], "int"), ([" "], "empty"), (["a\udc00"], "surrogate")])
def test_encode_refuses(encoder: Model, texts: list[Any], part: str) -> None:
    with pytest.raises(TextError, match=part):
        encoder.encode(texts)


def test_tasks_are_not_confused(plain: Model, encoder: Model) -> None:
    with pytest.raises(UsageError, match="task is tensor"):
        plain.encode(["w5"])
    with pytest.raises(UsageError, match="does not generate"):
        encoder.generate("w5")


def test_replay_compares_outputs_but_no_padding(encoder: Model, plain: Model) -> None:
    for model in (encoder, plain):
        found = replay(model.bundle, "fp32")
        assert found["max_abs_diff"] == 0
        assert found["finite"]
        assert found["cases"] == 1


def test_goldens_with_pickles_are_refused(tmp_path: Path) -> None:
    path = embedding_bundle(tmp_path / "b")
    np.savez(path / "golden.npz", x=np.array([{}], dtype=object))
    with load(embedding_bundle(tmp_path / "c")) as model, pytest.raises(BundleError, match="readable"):
        replay(type(model.bundle)(**{**model.bundle.__dict__, "path": path}), "fp32")


def test_batches_are_cut_where_padding_or_memory_would_cost() -> None:
    for lengths in ([3, 3, 3, 50, 51, 400], [512] * 40, list(range(1, 300)), [5000, 1]):
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        groups = _groups(order, lengths, 32)
        assert [i for group in groups for i in group] == order
        for group in groups:
            computed = len(group) * lengths[group[-1]]
            assert len(group) <= 32
            assert len(group) == 1 or computed <= min(TOKENS, PADDING * sum(lengths[i] for i in group))
    assert [len(group) for group in _groups(range(40), [512] * 40, 32)] == [8] * 5


def test_raw_arrays_do_without_a_mask(tmp_path: Path) -> None:
    with load(embedding_bundle(tmp_path / "bundle"), threads=1) as model:
        ids = np.array([[3, 5, 7]])
        whole = model.run({"input_ids": ids, "attention_mask": np.ones_like(ids)})
        found = model.run({"input_ids": ids})
        assert found.keys() == whole.keys() and all(np.array_equal(found[name], whole[name]) for name in whole)
        with pytest.raises(DataError, match="lacks input_ids"):
            model.run({"attention_mask": np.ones_like(ids)})
