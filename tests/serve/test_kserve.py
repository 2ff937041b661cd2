"""Triton's own client gets what the runtime's methods give, as JSON and as bytes; what is no tensor is told."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException

from onnxport.errors import DataError
from onnxport.runtime import Model, load
from onnxport.serve.kserve.interface import asked
from onnxport.serve.kserve.tensors import TYPES, from_bytes, from_json, of_texts, to_bytes, to_json
from support import tiny_encoder
from support.serving import Running

Find = Callable[[str], Model]


@pytest.fixture(scope="module")
def triton(server: Running) -> Iterator[InferenceServerClient]:
    client = InferenceServerClient(server.url.removeprefix("http://"))
    yield client
    client.close()


def given(name: str, array: np.ndarray, binary: bool) -> InferInput:
    kind = "BYTES" if array.dtype == object else {"int64": "INT64", "float32": "FP32"}[str(array.dtype)]
    tensor = InferInput(name, list(array.shape), kind)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def texts(*found: str) -> np.ndarray:
    return np.array([text.encode() for text in found], dtype=object)


def test_health_and_metadata(triton: InferenceServerClient, model: Find) -> None:
    assert triton.is_server_live() and triton.is_server_ready() and triton.is_model_ready("plain") and triton.is_model_ready("plain", "1")
    assert not triton.is_model_ready("nobody") and not triton.is_model_ready("plain", "2")
    assert triton.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    found = triton.get_model_metadata("plain")
    assert [one["name"] for one in found["inputs"]] == ["text", "input_ids", "attention_mask"]
    assert found["outputs"][0] == {"name": "text", "datatype": "BYTES", "shape": [-1]} and found["versions"] == ["1"]
    vectors = triton.get_model_metadata("vectors", "1")
    assert {"name": "input_ids", "datatype": "INT64", "shape": [-1, -1]} in vectors["inputs"]
    assert {"name": "last_hidden_state", "datatype": "FP32", "shape": [-1, -1, 8]} in vectors["outputs"]


def read(found: InferResult, name: str) -> list[str]:
    """The client gives bytes of binary data, and text of JSON."""
    return [text.decode() if isinstance(text, bytes) else text for text in found.as_numpy(name)]


@pytest.mark.parametrize("binary", [True, False])
def test_texts_are_generated_from(binary: bool, triton: InferenceServerClient, model: Find) -> None:
    expected = model("translator").generate(["w5 w9", "w7"], max_new_tokens=6)
    names = ["text", "tokens", "lengths", "score", "finish_reason"]
    outputs = None if binary else [InferRequestedOutput(name, binary_data=False) for name in names]
    inputs = [given("text", texts("w5 w9", "w7"), binary)]
    found = triton.infer("translator", inputs, outputs=outputs, request_id="7", parameters={"max_new_tokens": 6})
    assert read(found, "text") == [one.text for one in expected]
    lengths = found.as_numpy("lengths")
    assert [row[:size].tolist() for row, size in zip(found.as_numpy("tokens"), lengths, strict=True)] == [one.tokens for one in expected]
    np.testing.assert_allclose(found.as_numpy("score"), [one.score for one in expected], atol=1e-4)
    assert found.get_response()["id"] == "7" and found.get_response()["model_version"] == "1"


@pytest.mark.parametrize("binary", [True, False])
def test_ids_are_generated_from(binary: bool, triton: InferenceServerClient, model: Find) -> None:
    expected = model("plain").generate([[1, 5, 9], [1, 7]], max_new_tokens=6)
    ids, mask = np.array([[1, 5, 9], [1, 7, 0]]), np.array([[1, 1, 1], [1, 1, 0]])
    inputs = [given("input_ids", ids, binary), given("attention_mask", mask, binary)]
    found = triton.infer("plain", inputs, outputs=[InferRequestedOutput("text", binary_data=binary)], parameters={"max_new_tokens": 6})
    assert read(found, "text") == [one.text for one in expected]
    assert found.as_numpy("tokens") is None


@pytest.mark.parametrize("binary", [True, False])
def test_models_of_one_pass_take_texts_and_arrays(binary: bool, triton: InferenceServerClient, model: Find) -> None:
    outputs = None if binary else [InferRequestedOutput("embedding", binary_data=False)]
    vectors = triton.infer("vectors", [given("text", texts("a b", "c")[:, None], binary)], outputs=outputs).as_numpy("embedding")
    np.testing.assert_allclose(vectors, model("vectors").encode(["a b", "c"]), atol=1e-6)
    ids = np.array([model("vectors").tokenize("a b")])
    expected = model("vectors").run({"input_ids": ids})["last_hidden_state"]
    np.testing.assert_array_equal(triton.infer("vectors", [given("input_ids", ids, binary)]).as_numpy("last_hidden_state"), expected)


def test_every_task_has_tensors(triton: InferenceServerClient, model: Find) -> None:
    found = triton.infer("labels", [given("text", texts("a", "b c"), True), given("pair", texts("d", "e"), True)])
    expected = model("labels").classify([("a", "d"), ("b c", "e")])
    assert [text.decode() for text in found.as_numpy("label")] == [one.label for one in expected]
    names = [name.decode() for name in found.as_numpy("labels")]
    np.testing.assert_allclose(found.as_numpy("scores"), [[one.scores[name] for name in names] for one in expected], rtol=1e-5)
    answer = triton.infer("reader", [given("question", texts("a b"), True), given("context", texts("c d e"), True)])
    (span,) = model("reader").answer(question="a b", context="c d e")
    assert answer.as_numpy("answer")[0].decode() == span.answer and answer.as_numpy("start")[0] == span.start


def body(**more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["w5"]}], **more}


def tensor(**change: Any) -> dict[str, Any]:
    return {"inputs": [{**body()["inputs"][0], **change}]}


IDS = {"name": "input_ids", "datatype": "INT64", "shape": [1, 1], "data": [1]}


@pytest.mark.parametrize(
    ("request_body", "part"),
    [
        ({}, "the body has no 'inputs'"),
        ({"inputs": []}, "found no inputs, expected attention_mask, input_ids, text"),
        (tensor(name="nothing"), "unknown inputs nothing"),
        (tensor(datatype="BF16"), "'BF16', expected BYTES, BOOL"),
        (tensor(data=[3]), "expected texts as its data"),
        (tensor(shape=[2]), "has 1 elements, expected 2 for shape [2]"),
        (tensor(shape=[-1]), "expected whole numbers"),
        (tensor(shape=[1, 1, 1]), "expected [texts] or [texts, 1]"),
        (tensor(name="input_ids"), "input_ids is BYTES"),
        (tensor(name="input_ids", datatype="INT64", data=[[1.5]]), "float64, expected INT64"),
        (tensor(name="input_ids", datatype="INT8", data=[300]), "numbers that INT8 has not"),
        (tensor(name="input_ids", datatype="INT64", shape=[2, 2], data=[[1], [1, 2]]), "nested unevenly"),
        (tensor(parameters={"binary_data_size": 4}), "'text' has 4 bytes, but 0 are left"),
        (body(parameters={"beams": 3}), "parameter 'beams' is unknown"),
        (body(parameters={"beam": "3"}), "parameter beam is '3', expected int"),
        (body(parameters={"binary_data_output": 1}), "expected true or false"),
        (body(outputs=[{"name": "nothing"}]), "outputs names 'nothing', the model has no such output"),
        (body(sequence_id=4), "'sequence_id', which is unknown here"),
        ({"inputs": body()["inputs"] * 2}, "inputs has 'text' twice"),
        (
            {"inputs": [*body()["inputs"], {"name": "input_ids", "datatype": "INT64", "shape": [1, 1], "data": [1]}]},
            "does not go with text",
        ),
    ],
)
def test_what_is_no_request_is_told(request_body: dict[str, Any], part: str, server: Running) -> None:
    answer = server.post("/v2/models/plain/infer", request_body)
    assert answer.status_code == 400 and list(answer.json()) == ["error"]
    assert part in answer.json()["error"] and "\n" not in answer.json()["error"]


@pytest.mark.parametrize(
    ("header", "behind", "part"),
    [
        (None, b"", "not valid JSON"),
        ("x", b"", "expected a number up to"),
        ("9999", b"", "expected a number up to"),
        ("right", b"\x01\x00\x00\x00", "has 5 bytes, but 4 are left"),
        ("right", b"\x01\x00\x00\x00aa", "1 bytes behind the JSON belong to no input"),
        ("right", b"\x09\x00\x00\x00a", "end within an element"),
    ],
)
def test_bytes_are_held_against_the_json(header: str | None, behind: bytes, part: str, server: Running) -> None:
    item = {"name": "text", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}}
    head = json.dumps({"inputs": [item]}).encode()
    headers = {} if header is None else {"inference-header-content-length": str(len(head)) if header == "right" else header}
    answer = server.post("/v2/models/plain/infer", head + (behind or b"\x01\x00\x00\x00a"), headers=headers)
    assert answer.status_code == 400 and part in answer.json()["error"]


def test_errors_reach_the_client(triton: InferenceServerClient, server: Running) -> None:
    with pytest.raises(InferenceServerException, match="'nobody' is not here"):
        triton.infer("nobody", [given("text", texts("w5"), True)])
    with pytest.raises(InferenceServerException, match="not UTF-8"):
        triton.infer("plain", [given("text", np.array([b"\xff"], dtype=object), True)])
    assert httpx.get(f"{server.url}/v2/models/plain/versions/3").status_code == 404


@pytest.mark.parametrize("datatype", TYPES)
def test_tensors_come_back_from_both_forms(datatype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(TYPES[datatype])
    for found in (from_json("x", datatype, [2, 3], to_json(array)), from_bytes("x", datatype, [2, 3], to_bytes(array))):
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
    with pytest.raises(DataError):
        from_bytes("x", datatype, [2, 3], to_bytes(array)[:-1])


def test_texts_come_back_from_bytes() -> None:
    array = of_texts(["", "ä", "b" * 300])
    assert from_bytes("x", "BYTES", [3], to_bytes(array)).tolist() == array.tolist()
    assert from_json("x", "BYTES", [1, 3], [["", "ä", "b" * 300]]).tolist() == [array.tolist()]


@pytest.mark.parametrize("shape", [[0, 2**70], [0, 2**30, 2**30, 2**30], [2**40, 0], [10**300, 10**300]])
@pytest.mark.parametrize("make", [lambda shape: from_json("x", "INT64", shape, []), lambda shape: from_bytes("x", "BYTES", shape, b"")])
def test_shapes_that_no_array_has_are_refused(make: Callable[[list[int]], np.ndarray], shape: list[int]) -> None:
    with pytest.raises(DataError, match="^the shape of x is"):
        make(shape)
    assert make([0, 3]).shape == (0, 3)


@pytest.mark.parametrize(("datatype", "value"), [("FP32", 1e300), ("FP16", 70000), ("FP16", -1e5), ("FP64", float("inf")), ("INT8", 128)])
def test_numbers_that_a_type_has_not_are_refused(datatype: str, value: float) -> None:
    with pytest.raises(DataError, match=f"the data of x hold numbers that {datatype} has not"):
        from_json("x", datatype, [2], [1, value])


@pytest.mark.parametrize("labels", [{}, {"labels": ["good", "bad", "plain"]}])
def test_no_rows_have_no_answers(labels: dict[str, Any], tmp_path: Path) -> None:
    with load(tiny_encoder.write(tmp_path / "labels", "classification", tiny_encoder.table(3), **labels), threads=1) as model:
        question = asked(model, {"text": of_texts([])})
        found = question.tensors(getattr(model, question.method)(**question.arguments))
    names = labels.get("labels", [])
    assert (len(found["label"]), found["scores"].shape) == (0, (0, len(names)))
    assert [one.decode() for one in found["labels"]] == names
