"""Model repositories for Triton: the layout of its documentation, a configuration of its schema, and model.py as its backend runs it."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from onnxport.errors import OutputError, UsageError
from onnxport.runtime import Model
from onnxport.serve.triton.repository import write
from support.commands import invoke

Find = Callable[[str], Model]


def config_of(place: Path) -> Any:
    """config.pbtxt, read by Triton's own schema."""
    return text_format.Parse((place / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


class TritonError(Exception):
    INVALID_ARG, INTERNAL = "invalid", "internal"

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Tensor:
    name: str
    array: np.ndarray

    def as_numpy(self) -> np.ndarray:
        return self.array


@dataclass
class Request:
    inputs: dict[str, np.ndarray]
    options: dict[str, Any] = field(default_factory=dict)
    wanted: Sequence[str] = ()

    def parameters(self) -> str:
        return json.dumps(self.options)

    def requested_output_names(self) -> Sequence[str]:
        return self.wanted


@dataclass
class Response:
    output_tensors: Sequence[Tensor] = ()
    error: TritonError | None = None


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Any]:
    """Runs model.py of a repository as Triton's Python backend does, with a stand-in for the module that the backend brings."""
    module: Any = ModuleType("triton_python_backend_utils")
    module.Tensor, module.InferenceResponse, module.TritonError = Tensor, Response, TritonError
    module.get_input_tensor_by_name = lambda request, name: Tensor(name, request.inputs[name]) if name in request.inputs else None
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)

    def start(place: Path) -> Any:
        spec = importlib.util.spec_from_file_location("model", place / "1" / "model.py")
        assert spec is not None and spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        made = loaded.TritonPythonModel()
        config = json_format.MessageToDict(config_of(place), preserving_proto_field_name=True)
        made.initialize({"model_config": json.dumps({"max_batch_size": 0, **config}), "model_name": place.name, "model_version": "1"})
        return made

    return start


def texts(*found: str) -> np.ndarray:
    return np.array([[text.encode()] for text in found], dtype=object)


@pytest.fixture(scope="module")
def repository(bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("repository")
    for name in ("translator", "plain", "vectors", "labels"):
        write(bundles[name], out, name, threads=1)
    yield out


def test_the_layout_is_tritons(repository: Path, bundles: dict[str, Path]) -> None:
    assert sorted(file.name for file in repository.iterdir()) == ["labels", "plain", "translator", "vectors"]
    place = repository / "translator"
    assert sorted(file.name for file in place.iterdir()) == ["1", "config.pbtxt"]
    assert sorted(file.name for file in (place / "1").iterdir()) == ["bundle", "model.py"]
    files = sorted(str(file.relative_to(bundles["translator"])) for file in bundles["translator"].rglob("*") if file.is_file())
    assert sorted(str(file.relative_to(place / "1/bundle")) for file in (place / "1/bundle").rglob("*") if file.is_file()) == files
    config = config_of(place)
    assert (config.name, config.backend, config.max_batch_size) == ("translator", "python", 32)
    assert config.HasField("dynamic_batching") and config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_CPU
    inputs = {one.name: one for one in config.input}
    assert inputs["text"].data_type == model_config_pb2.TYPE_STRING and list(inputs["text"].dims) == [1] and inputs["text"].optional
    assert inputs["input_ids"].data_type == model_config_pb2.TYPE_INT64 and list(inputs["input_ids"].dims) == [-1]
    assert inputs["input_ids"].allow_ragged_batch
    assert [one.name for one in config.output] == ["text", "tokens", "lengths", "score", "finish_reason"]
    labels = config_of(repository / "labels")
    assert {one.name: one.label_filename for one in labels.output}["scores"] == "labels.txt"
    assert (repository / "labels" / "labels.txt").read_text().split() == ["good", "bad", "plain"]
    assert not [file for file in repository.iterdir() if file.name.startswith(".")]


def test_requests_are_answered_together(repository: Path, backend: Callable[[Path], Any], model: Find) -> None:
    running = backend(repository / "plain")
    ids = np.array([[1, 5, 9], [1, 7, 0]])
    requests = [
        Request({"text": texts("w5 w9", "w7")}, {"max_new_tokens": 6}),
        Request(
            {"input_ids": ids, "attention_mask": np.array([[1, 1, 1], [1, 1, 0]])},
            {"max_new_tokens": 6},
            ["text"],
        ),
        Request({"text": texts("w5")}, {"beams": 3}),
        Request({"text": np.array([[b"\xff"]], dtype=object)}),
    ]
    first, second, third, fourth = running.execute(requests)
    expected = model("plain").generate(["w5 w9", "w7"], max_new_tokens=6)
    found = {tensor.name: tensor.array for tensor in first.output_tensors}
    assert [text.decode() for text in found["text"][:, 0]] == [one.text for one in expected]
    shapes = {name: array.shape[1:] for name, array in found.items()}
    assert shapes == {"text": (1,), "tokens": (6,), "lengths": (1,), "score": (1,), "finish_reason": (1,)}
    assert [tensor.name for tensor in second.output_tensors] == ["text"]
    assert [text.decode() for text in second.output_tensors[0].array[:, 0]] == [one.text for one in expected]
    assert third.error.code == TritonError.INVALID_ARG and "'beams' is unknown" in str(third.error)
    assert fourth.error.code == TritonError.INVALID_ARG and "UTF-8" in str(fourth.error)
    running.finalize()


def test_models_of_one_pass_answer(repository: Path, backend: Callable[[Path], Any], model: Find) -> None:
    vectors, labels = backend(repository / "vectors"), backend(repository / "labels")
    ids = np.array([model("vectors").tokenize("a b")])
    texted, raw = vectors.execute([Request({"text": texts("a b", "c")}), Request({"input_ids": ids})])
    np.testing.assert_allclose(texted.output_tensors[0].array, model("vectors").encode(["a b", "c"]), atol=1e-6)
    np.testing.assert_array_equal(raw.output_tensors[0].array, model("vectors").run({"input_ids": ids})["last_hidden_state"])
    (answer,) = labels.execute([Request({"text": texts("a"), "pair": texts("b")})])
    names = [tensor.name for tensor in answer.output_tensors]
    assert names == ["label", "scores"]  # labels are in labels.txt, since they are no rows
    for made in (vectors, labels):
        made.finalize()


def test_an_encoders_graph_stands_alone(bundles: dict[str, Path], tmp_path: Path, model: Find) -> None:
    place = write(bundles["vectors"], tmp_path, "vectors", onnxruntime="1.30")
    config = config_of(place)
    assert (config.backend, config.max_batch_size) == ("onnxruntime", 32)
    assert [file.name for file in (place / "1").iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(str(place / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
    kinds = {"tensor(int64)": model_config_pb2.TYPE_INT64, "tensor(float)": model_config_pb2.TYPE_FP32}
    for found, given in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        assert [(one.name, one.data_type, len(one.dims) + 1) for one in found] == [
            (one.name, kinds[one.type], len(one.shape)) for one in given
        ]
    assert not any(one.optional or one.allow_ragged_batch for one in config.input)


def test_what_cannot_be_written_is_told(bundles: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="which one graph does not answer"):
        write(bundles["plain"], tmp_path, "plain", onnxruntime="1.30")
    with pytest.raises(UsageError, match="expected a version such as"):
        write(bundles["vectors"], tmp_path, "vectors", onnxruntime="new")
    with pytest.raises(UsageError, match="expected letters, digits"):
        write(bundles["plain"], tmp_path, "../plain")
    (tmp_path / "mine").mkdir()
    with pytest.raises(OutputError, match="holds no config.pbtxt"):
        write(bundles["plain"], tmp_path, "mine", force=True)
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


def test_a_variant_that_needs_a_newer_triton_is_refused(bundles: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(bundles["vectors"], tmp_path / "bundle")
    manifest = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    manifest["variants"]["fp32"]["min_onnxruntime"] = "1.30"
    (tmp_path / "bundle" / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match=r"needs onnxruntime 1.30 or newer, found 1.9"):
        write(tmp_path / "bundle", tmp_path / "out", onnxruntime="1.9")
    assert write(tmp_path / "bundle", tmp_path / "out", onnxruntime="1.30").is_dir()


def test_the_command_writes_and_replaces(bundles: dict[str, Path], tmp_path: Path) -> None:
    command = ("triton", bundles["plain"], "--out", tmp_path, "--threads", 1, "-q")
    assert invoke(*command).stdout == f"{tmp_path / 'tiny'}\n"
    refused = invoke(*command)
    assert refused.exit_code == 6 and "give --force" in refused.stderr
    assert invoke(*command, "--force").exit_code == 0
    assert [file.name for file in tmp_path.iterdir()] == ["tiny"]
