"""Folders whose models are files: transformers.js's layout, and a GGUF file alone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxport.export import export
from onnxport.export.resolve import resolve
from support.refusals import assert_refused


def classifier(path: Path, half: bool = False) -> None:
    """Scores of tokens, averaged where the mask is 1, as a file."""
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    table = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float16 if half else np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["real"], to=kind),
        helper.make_node("Unsqueeze", ["real", "last"], ["wide"]),
        helper.make_node("Mul", ["rows", "wide"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "axis"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["real", "axis"], ["count"], keepdims=1),
        helper.make_node("Div", ["sum", "count"], ["logits"]),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in ("input_ids", "attention_mask")]
    outputs = [helper.make_tensor_value_info("logits", kind, ["batch", 3])]
    arrays = {"table": table, "axis": np.array([1]), "last": np.array([2])}
    graph = helper.make_graph(nodes, "scores", inputs, outputs, [numpy_helper.from_array(a, name) for name, a in arrays.items()])
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), str(path))


def folder(path: Path, *names: str) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({"model_type": "bert", "id2label": {"0": "a", "1": "b", "2": "c"}}))
    for name in names:
        classifier(path / name, half="fp16" in name)
    return path


def test_the_file_in_float32_is_taken_and_the_others_are_named(tmp_path: Path) -> None:
    source = folder(tmp_path / "mine", "onnx/model_quantized.onnx", "onnx/model.onnx", "onnx/model_fp16.onnx")
    found, direct = export(source), export(source / "onnx" / "model.onnx")
    assert (found.name, found.task, found.encoding) == ("mine", direct.task, direct.encoding)
    assert found.notes[0] == (
        "the folder has no weights of PyTorch: onnx/model.onnx is taken; left out: model_fp16.onnx, model_quantized.onnx"
    )
    assert all(np.array_equal(found.goldens[name], direct.goldens[name]) for name in direct.goldens)


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (("onnx/model_quantized.onnx", "onnx/model_fp16.onnx"), "onnx/model_fp16.onnx"),
        (("onnx/model_q8.onnx",), "onnx/model_q8.onnx"),
        (("model.onnx",), "model.onnx"),
    ],
)
def test_without_one_in_float32_another_is_taken(tmp_path: Path, names: tuple[str, ...], taken: str) -> None:
    found = resolve(folder(tmp_path, *names))
    assert f"{taken} is taken" in found.notes[0] and list(found.hashes) == [Path(taken).name]


def test_weights_come_before_files(tmp_path: Path) -> None:
    source = folder(tmp_path, "onnx/model.onnx")
    (source / "model.safetensors").write_bytes(b"")
    assert_refused(source, "model.safetensors is not a whole safetensors file")


def test_files_of_other_parts_are_no_model(tmp_path: Path) -> None:
    assert_refused(folder(tmp_path, "onnx/decoder_model_merged.onnx"), "has no weights; expected model.safetensors")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    source = folder(tmp_path)
    (source / "onnx").mkdir()
    os.mkfifo(source / "onnx" / "model.onnx")
    assert_refused(source, "model.onnx is a", "expected a regular file")


def test_several_gguf_files(tmp_path: Path) -> None:
    for name in ("a-Q4_0.gguf", "b-Q8_0.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    assert_refused(tmp_path, "several GGUF files: a-Q4_0.gguf, b-Q8_0.gguf; give one of them")
