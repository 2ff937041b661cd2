"""ONNX files as sources: what is read, what is answered, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxport.build.stages import build
from onnxport.errors import CheckpointError, OnnxportError, UsageError
from onnxport.export import export
from onnxport.runtime import load
from support import tiny_bundles as tiny

WIDTH, VOCAB, LABELS = 32, 40, 3


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng([len(shape), seed, *shape]).standard_normal(shape) * 0.3).astype(np.float32)


def classifier(
    path: Path, opset: int = 17, outputs: tuple[str, ...] = ("logits",), half: bool = False, external: str | None = None
) -> Path:
    """ids → rows of a table → a masked mean → a linear layer, as a file."""
    kind, number = (TensorProto.FLOAT16, np.float16) if half else (TensorProto.FLOAT, np.float32)
    arrays = {
        "table": weights(VOCAB, WIDTH).astype(number),
        "weight": weights(WIDTH, LABELS).astype(number),
        "bias": weights(LABELS).astype(number),
    }
    constants = {} if opset < 13 else {"axis": np.array([1]), "last": np.array([2])}
    axes = (lambda name: {"axes": [{"axis": 1, "last": 2}[name]]}) if opset < 13 else (lambda name: {})
    extra = (lambda name: []) if opset < 13 else (lambda name: [name])
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["real"], to=kind),
        helper.make_node("Unsqueeze", ["real", *extra("last")], ["wide"], **axes("last")),
        helper.make_node("Mul", ["rows", "wide"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", *extra("axis")], ["sum"], keepdims=0, **axes("axis")),
        helper.make_node("ReduceSum", ["real", *extra("axis")], ["count"], keepdims=1, **axes("axis")),
        helper.make_node("Div", ["sum", "count"], ["mean"]),
        helper.make_node("MatMul", ["mean", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], [outputs[0]]),
    ]
    text = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in ("input_ids", "attention_mask")]
    graph = helper.make_graph(
        nodes,
        "classifier",
        text,
        [helper.make_tensor_value_info(outputs[0], kind, ["batch", LABELS])],
        [numpy_helper.from_array(array, name) for name, array in (arrays | constants).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    if external:
        onnx.save(model, path, save_as_external_data=True, location=external, size_threshold=64)
    else:
        onnx.save(model, path)
    return path


def simple(path: Path, nodes: list, inputs: dict[str, list], outputs: dict[str, list], constants: dict | None = None, **more) -> Path:
    """A file of float inputs and outputs."""
    domains = more.pop("domains", [helper.make_opsetid("", more.pop("opset", 18))])
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=8, **more), path)
    return path


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
def test_a_file_of_any_opset_is_bundled_run_and_quantized(tmp_path: Path, opset: int) -> None:
    bundle = build(classifier(tmp_path / "model.onnx", opset), tmp_path / "out")
    manifest = bundle.manifest.value
    assert manifest["task"] == "tensor" and manifest["provenance"]["route"] == "onnx"
    assert set(bundle.variants) == {"fp32", "fp16", "int8"}
    assert "int8" in "".join(bundle.variants["int8"].plan.values())
    inputs = {"input_ids": np.arange(8).reshape(2, 4), "attention_mask": np.ones((2, 4), np.int64)}
    expected = weights(VOCAB, WIDTH)[inputs["input_ids"]].mean(1) @ weights(WIDTH, LABELS) + weights(LABELS)
    np.testing.assert_allclose(load(tmp_path / "out").run(inputs)["logits"], expected, atol=1e-5)


def test_goldens_are_the_files_own_answers_at_several_sizes(tmp_path: Path) -> None:
    found = export(classifier(tmp_path / "model.onnx")).goldens
    cases = sorted({name.split("/")[0] for name in found})
    shapes = {found[f"{case}/in/input_ids"].shape for case in cases}
    assert len(cases) == 4 == len(shapes) and (1, 1) in shapes
    for case in cases:
        ids, mask = found[f"{case}/in/input_ids"], found[f"{case}/in/attention_mask"]
        assert ids.min() >= 0 and ids.max() < VOCAB
        mean = (weights(VOCAB, WIDTH)[ids] * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
        np.testing.assert_allclose(found[f"{case}/out/logits"], mean @ weights(WIDTH, LABELS) + weights(LABELS), atol=1e-5)
    assert any((found[f"{case}/in/attention_mask"] == 0).any() for case in cases)
    assert len({int(i) for case in cases for i in found[f"{case}/in/input_ids"].ravel()}) > VOCAB // 3


def test_a_named_task_uses_the_config_beside_the_file(tmp_path: Path) -> None:
    file = classifier(tmp_path / "m" / "onnx" / "model.onnx")
    config = {"id2label": {"0": "bad", "1": "fine", "2": "good"}, "max_position_embeddings": 64, "pad_token_id": 1}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    build(file, tmp_path / "out", task="classification", precision=("fp32", "int8"))
    encoding = json.loads((tmp_path / "out" / "bundle.json").read_text())["encoding"]
    assert encoding["labels"] == ["bad", "fine", "good"] and encoding["problem"] == "single"
    assert (encoding["max_length"], encoding["pad_id"], encoding["vocab_size"]) == (64, 1, VOCAB)


@pytest.mark.parametrize(("name", "content"), [("tokenizer.json", "{}"), ("tokenizer_config.json", "{")])
def test_messages_name_the_users_own_files(tmp_path: Path, name: str, content: str) -> None:
    file = classifier(tmp_path / "m" / "onnx" / "model.onnx")
    (tmp_path / "m" / "config.json").write_text("{}")
    tiny.tokenizer("encoder").save(str(tmp_path / "m" / "tokenizer.json"))
    (tmp_path / "m" / name).write_text(content)
    with pytest.raises(CheckpointError) as caught:
        export(file, task="classification")
    assert str(caught.value).startswith(str(tmp_path / "m" / name))


def test_a_task_that_the_outputs_cannot_do_is_wrong_usage(tmp_path: Path) -> None:
    file = classifier(tmp_path / "model.onnx")
    with pytest.raises(UsageError, match="output last_hidden_state, found logits"):
        export(file, task="embedding")
    with pytest.raises(UsageError, match="translation is not possible"):
        export(file, task="translation")


def test_a_task_that_is_assumed_is_noted(tmp_path: Path) -> None:
    file = classifier(tmp_path / "model.onnx")
    assert export(file).notes == ("task tensor is assumed, arrays in and arrays out: for texts say --task classification",)
    assert export(file, task="tensor").notes == ()
    plain = simple(tmp_path / "plain.onnx", [helper.make_node("Relu", ["x"], ["y"])], {"x": [2, 3]}, {"y": [2, 3]})
    assert export(plain).notes == ()  # it can be nothing else


def test_the_task_of_the_files_beside_is_taken(tmp_path: Path) -> None:
    file = classifier(tmp_path / "m" / "onnx" / "model.onnx")
    (tmp_path / "m" / "config.json").write_text(json.dumps({"architectures": ["BertForSequenceClassification"]}))
    assert export(file).task == "tensor"  # without a tokenizer
    tiny.tokenizer("encoder").save(str(tmp_path / "m" / "tokenizer.json"))
    found = export(file)
    assert found.task == "classification" and "task classification is taken from the files beside the ONNX file" in found.notes[0]
    assert export(file, task="tensor").task == "tensor"
    for named in ("BertForTokenClassification", "BertModel", "Mine"):  # the graph cannot do it, or nobody knows it
        (tmp_path / "m" / "config.json").write_text(json.dumps({"architectures": [named]}))
        assert export(file).task == "tensor"


def test_external_data_stays_beside_the_file_and_in_the_hashes(tmp_path: Path) -> None:
    found = export(classifier(tmp_path / "model.onnx", external="model.bin"))
    assert set(found.source_hashes) == {"model.onnx", "model.bin"}


def test_half_precision_files_become_float32(tmp_path: Path) -> None:
    bundle = build(classifier(tmp_path / "model.onnx", half=True), tmp_path / "out")
    assert bundle.variants["fp32"].parity["relative_error"] < 1e-5
    answer = load(tmp_path / "out").run({"input_ids": np.ones((1, 2), np.int64), "attention_mask": np.ones((1, 2), np.int64)})
    assert answer["logits"].dtype == np.float32


def test_fixed_axes_are_kept(tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    found = export(simple(tmp_path / "a.onnx", [node], {"x": [2, WIDTH]}, {"y": [2, 4]}, {"w": weights(WIDTH, 4)}))
    assert {array.shape for name, array in found.goldens.items() if "/in/" in name} == {(2, WIDTH)}
    assert found.name == "a"


def test_axes_without_a_common_name_are_tied(tmp_path: Path) -> None:
    node = helper.make_node("Add", ["x", "z"], ["y"])
    found = export(simple(tmp_path / "a.onnx", [node], {"x": ["unk__1", "unk__2"], "z": ["unk__3", "unk__4"]}, {"y": [None, None]}))
    assert found.goldens["case0/in/x"].shape == found.goldens["case0/in/z"].shape
    assert len({array.shape for name, array in found.goldens.items() if name.endswith("in/x")}) > 2


def test_functions_are_inlined(tmp_path: Path) -> None:
    function = helper.make_function(
        "mine", "Double", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 18)]
    )
    domains = [helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)]
    nodes = [helper.make_node("Double", ["x"], ["d"], domain="mine"), helper.make_node("MatMul", ["d", "w"], ["y"])]
    file = simple(
        tmp_path / "a.onnx", nodes, {"x": ["n", WIDTH]}, {"y": ["n", 4]}, {"w": weights(WIDTH, 4)}, domains=domains, functions=[function]
    )
    build(file, tmp_path / "out")
    x = weights(3, WIDTH)
    np.testing.assert_allclose(load(tmp_path / "out").run({"x": x})["y"], 2 * x @ weights(WIDTH, 4), rtol=1e-5, atol=1e-5)


def branching(path: Path) -> Path:
    """y = x @ w where the sum of x is positive, else x @ v; the weights belong to the branches."""
    branches = {}
    for side, seed in (("then_branch", 1), ("else_branch", 2)):
        branches[side] = helper.make_graph(
            [helper.make_node("MatMul", ["x", f"w_{side}"], [f"y_{side}"])],
            side,
            [],
            [helper.make_tensor_value_info(f"y_{side}", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(weights(WIDTH, 4, seed=seed), f"w_{side}")],
        )
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["y"], **branches),
    ]
    return simple(path, nodes, {"x": ["n", WIDTH]}, {"y": ["n", 4]}, {"zero": np.float32(0)})


def test_branches_run_in_fp32_and_fp16_is_left_out(tmp_path: Path) -> None:
    file = branching(tmp_path / "a.onnx")
    build(file, tmp_path / "out", precision=("fp32",))
    x = np.abs(weights(3, WIDTH))
    np.testing.assert_allclose(load(tmp_path / "out").run({"x": -x})["y"], -x @ weights(WIDTH, 4, seed=2), rtol=1e-5, atol=1e-5)
    bundle = build(file, tmp_path / "both", precision=("fp16", "fp32"))
    assert (list(bundle.variants), bundle.default) == (["fp32"], "fp32")
    assert any(note.startswith("fp16 is left out: If") for note in bundle.provenance["notes"])
    with pytest.raises(CheckpointError, match="leave fp16 out"):
        build(file, tmp_path / "half", precision=("fp16",))
    assert not (tmp_path / "half").exists()


def relu(path: Path, **more) -> Path:
    return simple(path, [helper.make_node("Relu", ["x"], ["y"])], {"x": ["n", 4]}, {"y": ["n", 4]}, **more)


def damaged(path: Path) -> Path:
    data = classifier(path).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def without_data(path: Path, rest: int | None) -> Path:
    classifier(path, external="model.bin")
    data = path.with_name("model.bin")
    data.unlink() if rest is None else data.write_bytes(data.read_bytes()[:rest])
    return path


def random_numbers(path: Path) -> Path:
    nodes = [helper.make_node("RandomNormalLike", ["x"], ["r"]), helper.make_node("Add", ["x", "r"], ["y"])]
    return simple(path, nodes, {"x": ["n", 4]}, {"y": ["n", 4]})


def custom(path: Path) -> Path:
    domains = [helper.make_opsetid("", 18), helper.make_opsetid("theirs", 1)]
    return simple(path, [helper.make_node("Mystery", ["x"], ["y"], domain="theirs")], {"x": ["n", 4]}, {"y": ["n", 4]}, domains=domains)


def nan(path: Path) -> Path:
    node = helper.make_node("Add", ["x", "w"], ["y"])
    return simple(path, [node], {"x": ["n", 4]}, {"y": ["n", 4]}, {"w": np.full(4, np.nan, np.float32)})


REFUSED = {
    "not an ONNX file": lambda path: written(path, b"\x89PNG\r\n\x1a\n" + bytes(range(256))),
    "holds no ONNX graph": lambda path: written(path, b""),
    "damaged": damaged,
    "needs model.bin, which is not beside it": lambda path: without_data(path, None),
    "has 100 bytes, expected": lambda path: without_data(path, 100),
    "opset 99, expected at most": lambda path: relu(path, opset=99),
    "cannot be run by ONNX Runtime": custom,
    "is another each time": random_numbers,
    "answers NaN or infinity in y": nan,
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_exported_is_refused_in_one_line(tmp_path: Path, reason: str) -> None:
    with pytest.raises(OnnxportError, match=reason) as caught:
        export(REFUSED[reason](tmp_path / "model.onnx"))
    assert caught.value.exit_code == 4 and "\n" not in str(caught.value)


def test_external_data_outside_the_folder_is_refused(tmp_path: Path) -> None:
    file = classifier(tmp_path / "m" / "model.onnx", external="model.bin")
    (tmp_path / "m" / "model.bin").rename(tmp_path / "model.bin")
    file.write_bytes(file.read_bytes().replace(b"model.bin", b"../.l.bin"))
    (tmp_path / ".l.bin").write_bytes((tmp_path / "model.bin").read_bytes())
    with pytest.raises(CheckpointError, match="expected a file in its own folder"):
        export(file)
