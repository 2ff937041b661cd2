"""What a server does not take, and clients that leave: every refusal in OpenAI's form, and nothing left behind."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from openai import APIError, AuthenticationError, RateLimitError

from onnxport.errors import DataError, OnnxportError
from onnxport.runtime import Model
from onnxport.runtime.decode.engine import BatchBounds
from onnxport.runtime.decode.state import DecoderState
from onnxport.serve.keys import Keys
from onnxport.serve.limits import Limits
from onnxport.serve.models import Models
from support.serving import Running, running

GOOD = {"authorization": "Bearer good"}
ASKED = {"model": "plain", "prompt": "w5 w9", "max_tokens": 5}
LONG = {"model": "plain", "prompt": "w5 w9", "max_tokens": 40, "min_new_tokens": 40}
Find = Callable[[str], Model]


def message(answer: httpx.Response) -> str:
    """The message of an error in OpenAI's form."""
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    text: str = error["message"]
    return text


@pytest.mark.parametrize(
    ("content", "headers", "status", "part"),
    [
        (b"{", {}, 400, "not valid JSON"),
        (b"[]", {}, 400, "a list, expected a JSON object"),
        (b"\xff", {}, 400, "not valid JSON"),
        (b'{"model": NaN}', {}, 400, "NaN is not JSON"),
        (b"[" * 100_000, {}, 400, "nested too deeply"),
        (b"model=plain", {"content-type": "application/x-www-form-urlencoded"}, 415, "expected application/json"),
        (b"{}", {"content-encoding": "gzip"}, 415, "not compressed"),
        (b'{"model": "nobody", "prompt": ""}', {}, 404, "is not here"),
        (b'{"model": 3}', {}, 400, "model is a whole number, expected a text"),
    ],
)
def test_bad_bodies_are_told(content: bytes, headers: dict[str, str], status: int, part: str, server: Running) -> None:
    answer = server.post("/v1/completions", content, headers=headers)
    assert answer.status_code == status and part in message(answer)


def test_paths_and_methods_that_are_none(server: Running) -> None:
    assert "there is no /v1/nothing" in message(httpx.get(f"{server.url}/v1/nothing"))
    answer = httpx.get(f"{server.url}/v1/completions")
    assert answer.status_code == 405 and "GET is not for" in message(answer) and answer.headers["allow"] == "POST"
    assert httpx.get(f"{server.url}/v2/nothing").json() == {"error": "there is no /v2/nothing; docs/serving.md lists the paths"}


@pytest.mark.parametrize("key", ["bad", "good and more"])
def test_who_has_no_key_is_not_answered(key: str, limited: Running) -> None:
    with pytest.raises(AuthenticationError) as caught:
        limited.client(key).models.list()
    assert caught.value.code == "invalid_api_key"
    answer = httpx.get(f"{limited.url}/metrics")
    assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer" and "no API key" in message(answer)
    assert httpx.get(f"{limited.url}/v2", headers={"authorization": f"Basic {key}"}).json()["error"].startswith("found another API key")
    for path in ("/health", "/v2/health/live", "/v2/health/ready"):
        assert httpx.get(f"{limited.url}{path}").status_code == 200


def test_each_key_of_a_file_is_good(tmp_path: Any) -> None:
    file = tmp_path / "keys"
    file.write_text("one\n\n  two  \n")
    keys = Keys.read(file)
    for key in ("one", "two"):
        keys.check(f"Bearer {key}")
    file.write_text(" \n")
    with pytest.raises(DataError, match="holds no API key"):
        Keys.read(file)
    with pytest.raises(DataError, match="cannot be read"):
        Keys.read(tmp_path / "none")
    assert not Keys.read(None)


@pytest.mark.parametrize(
    ("body", "status", "part"),
    [
        ({**ASKED, "prompt": "w5 " * 400}, 413, "more than 1100 bytes"),
        ({**ASKED, "prompt": ["w5 w6"] * 3, "max_tokens": 30}, 400, "expected at most 60; split"),
        ({**ASKED, "n": 3, "max_tokens": 30}, 400, "expected at most 60; split"),
        ({**ASKED, "prompt": ["w5"] * 2, "n": 2}, 400, "asks for 4 answers, expected at most 3"),
        ({**ASKED, "prompt": "w5" * 481}, 400, "962 characters of text, expected at most 960"),
        ({**ASKED, "n": 4}, 400, "expected 1 to 3"),
    ],
)
def test_more_than_a_request_may_have_is_refused(body: dict[str, Any], status: int, part: str, limited: Running) -> None:
    answer = limited.post("/v1/completions", body, headers=GOOD)
    assert answer.status_code == status and part in message(answer)


TENSOR = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "data": ["w5", "w9"]}]}


@pytest.mark.parametrize(
    ("path", "body", "few"),
    [
        ("/v1/completions", {"model": "plain", "prompt": ["w5", "w9"]}, {"max_tokens": 5}),
        ("/v1/run", {"model": "plain", "inputs": ["w5", "w9"]}, {"max_new_tokens": 5}),
        ("/v2/models/plain/infer", TENSOR, {"parameters": {"max_new_tokens": 5}}),
    ],
)
def test_answers_count_as_long_as_they_may_get(path: str, body: dict[str, Any], few: dict[str, Any], limited: Running) -> None:
    answer = limited.post(path, body, headers=GOOD)
    assert answer.status_code == 400 and "prompts and answers together, expected at most 60" in str(answer.json()["error"])
    assert limited.post(path, {**body, **few}, headers=GOOD).status_code == 200


def test_a_body_without_a_length_is_bounded_too(limited: Running) -> None:
    pieces = iter([b"x" * 600, b"x" * 600])
    answer = httpx.post(f"{limited.url}/v1/completions", content=pieces, headers={**GOOD, "content-type": "application/json"})
    assert answer.status_code == 413


def raw(server: Running, body: bytes, length: int | None = None, path: str = "/v1/completions") -> socket.socket:
    """A connection that has sent the head of a request and a part of its body."""
    connection = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=60)
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer good\r\ncontent-type: application/json\r\n"
    connection.sendall(f"{head}content-length: {length or len(body)}\r\n\r\n".encode() + body)
    return connection


def until(holds: Callable[[], bool]) -> None:
    """Wait for what another thread brings about."""
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_body_that_does_not_come_is_given_up(limited: Running) -> None:
    with raw(limited, b"{", 50) as connection:
        assert b"408 Request Timeout" in connection.recv(4096)
    with raw(limited, b"{", 50):
        until(lambda: limited.service.admission.under_way == 1)
    until(lambda: limited.service.admission.under_way == 0)  # the client left


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Steps wait until it is set, but for the first three."""
    release, step, steps = threading.Event(), DecoderState.step, [0]

    def waiting(state: DecoderState) -> None:
        steps[0] += 1
        if steps[0] > 3:
            assert release.wait(60)
        step(state)

    monkeypatch.setattr(DecoderState, "step", waiting)
    return release


def test_who_finds_no_place_is_sent_away(limited: Running, held: threading.Event) -> None:
    with raw(limited, json.dumps(LONG).encode()):
        until(lambda: limited.service.admission.under_way == 1)
        with pytest.raises(RateLimitError) as caught:
            limited.client("good").completions.create(**ASKED)
        assert caught.value.response.headers["retry-after"] == "1" and caught.value.code == "rate_limit_exceeded"
        held.set()
    until(lambda: limited.service.admission.under_way == 0)
    assert limited.client("good").completions.create(**ASKED).choices[0].text


def calls_inside(model: Model) -> int:
    return sum(len(shared._calls) for shared in model.generating()._shared_batches.values())


@pytest.mark.parametrize("stream", [False, True])
def test_what_takes_too_long_is_given_up(stream: bool, limited: Running, held: threading.Event, model: Find) -> None:
    answer = limited.post("/v1/completions", {**LONG, "stream": stream}, headers=GOOD)
    if stream:
        events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
        assert answer.status_code == 200 and "[DONE]" not in events
        assert "more than 0.5 s" in json.loads(events[-1])["error"]["message"]
    else:
        assert answer.status_code == 504 and "more than 0.5 s" in message(answer) and answer.headers["x-should-retry"] == "false"
    held.set()
    until(lambda: not calls_inside(model("plain")))
    with pytest.raises(APIError, match="more than"):
        held.clear()
        list(limited.client("good").completions.create(**LONG_OF_CLIENT, stream=True))
    held.set()


LONG_OF_CLIENT: dict[str, Any] = {"model": "plain", "prompt": "w5 w9", "max_tokens": 40, "extra_body": {"min_new_tokens": 40}}


@pytest.mark.parametrize("more", [{}, {"stream": True}, {"stream": True, "n": 2}])
def test_a_client_that_leaves_frees_its_rows(more: dict[str, Any], server: Running, held: threading.Event, model: Find) -> None:
    with raw(server, json.dumps(LONG | more).encode()):
        until(lambda: calls_inside(model("plain")) == more.get("n", 1))
    until(lambda: server.service.admission.under_way == 0)
    held.set()
    until(lambda: not calls_inside(model("plain")))
    assert 'model="plain",route="/v1/completions",status="499"' in httpx.get(f"{server.url}/metrics").text


def test_a_client_that_does_not_read_is_given_up(models: Models) -> None:
    limits = Limits(seconds=1.0)
    ids = json.dumps({"inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [8, 20_000], "data": [5] * 160_000}]}).encode()
    with running(models, limits=limits) as server, raw(server, ids, path="/v2/models/vectors/infer") as connection:
        until(lambda: server.service.admission.under_way == 1)
        until(lambda: server.service.admission.under_way == 0)
        received = 0
        while piece := connection.recv(1 << 20):
            received += len(piece)
        assert 0 < received < 20_000_000  # the rest was never kept for it
        assert 'status="504"' in httpx.get(f"{server.url}/metrics").text


def test_what_breaks_is_the_servers_fault(server: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    errors = {"internal error (RuntimeError)": RuntimeError("secret"), "ONNX Runtime failed": OnnxportError("ONNX Runtime failed")}
    for part, error in errors.items():

        def broken(state: DecoderState, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(DecoderState, "step", broken)
        answer = server.post("/v1/completions", ASKED)
        assert answer.status_code == 500 and part in message(answer) and "secret" not in answer.text
        assert answer.json()["error"]["type"] == "server_error"
        assert str(error) in capsys.readouterr().err


def test_requests_share_batches(server: Running, monkeypatch: pytest.MonkeyPatch, model: Find) -> None:
    expected = model("plain").generate("w5 w9", max_new_tokens=40, min_new_tokens=40)[0].text
    rows, step = [], DecoderState.step

    def counted(state: DecoderState) -> None:
        while not rows and calls_inside(model("plain")) < 3:
            time.sleep(0.001)
        rows.append(int(state.active.sum()))
        step(state)

    monkeypatch.setattr(DecoderState, "step", counted)
    found: list[str] = []

    def caller() -> None:
        found.append(server.post("/v1/completions", LONG).json()["choices"][0]["text"])

    threads = [threading.Thread(target=caller) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [expected] * 3 and max(rows) == 3


def test_metrics_count(models: Models) -> None:
    with running(models) as server:
        client = server.client()
        answer = client.completions.create(**ASKED)
        list(client.completions.create(**ASKED, stream=True))
        server.post("/v1/embeddings", {"model": "vectors", "input": "a b"})
        server.post("/v1/completions", b"{")
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    counted = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert answer.usage is not None
    assert counted['onnxport_requests_total{model="plain",route="/v1/completions",status="200"}'] == "2.0"
    assert counted['onnxport_requests_total{model="",route="/v1/completions",status="400"}'] == "1.0"
    assert counted['onnxport_generated_tokens_total{model="plain"}'] == str(2.0 * answer.usage.completion_tokens)
    assert counted['onnxport_prompt_tokens_total{model="plain"}'] == str(2.0 * answer.usage.prompt_tokens)
    assert counted['onnxport_first_event_seconds_count{model="plain"}'] == "1.0"
    assert counted['onnxport_request_seconds_count{model="vectors",route="/v1/embeddings"}'] == "1.0"
    assert counted["onnxport_requests_under_way"] == "0.0"


def test_two_bundles_of_one_name_are_refused(bundles: dict[str, Any]) -> None:
    with pytest.raises(OnnxportError, match=r"two bundles are named 'tiny'; name them apart"):
        Models.open([str(bundles["plain"]), str(bundles["chat"])], None, "cpu", 1)
    with pytest.raises(OnnxportError, match="expected BUNDLE or NAME=BUNDLE"):
        Models.open(["="], None, "cpu", 1)


def test_batches_are_bounded_where_the_server_is_told_to(bundles: dict[str, Any]) -> None:
    models = Models.open([f"plain={bundles['plain']}", f"labels={bundles['labels']}"], None, "cpu", 1, batch_rows=2, batch_cache_mb=3)
    try:
        engine = models.find("plain").model.engine
        assert engine is not None and engine.bounds == BatchBounds(2, 3 << 20)
        with running(models, limits=Limits()) as server:
            choices = server.post("/v1/completions", {**ASKED, "n": 5}).json()["choices"]
        assert [one["index"] for one in choices] == [*range(5)] and len({one["text"] for one in choices}) == 1
    finally:
        models.close()


def test_prompts_are_kept_where_the_server_is_told_to(bundles: dict[str, Any]) -> None:
    models = Models.open([f"plain={bundles['plain']}", f"labels={bundles['labels']}"], None, "cpu", 1, prefix_cache_mb=1)
    try:
        with running(models, limits=Limits()) as server:
            body = {**ASKED, "prompt": "w5 w9 " * 10}
            usage = [server.post("/v1/completions", body).json()["usage"] for _ in range(2)]
            told = server.post("/v1/completions", {**body, "n": 3, "stream": True, "stream_options": {"include_usage": True}}).text
            counted = httpx.get(f"{server.url}/metrics").text
        assert [one["prompt_tokens_details"]["cached_tokens"] > 0 for one in usage] == [False, True]
        last = json.loads(told.strip().split("\n\n")[-2].removeprefix("data: "))["usage"]
        assert 0 < last["prompt_tokens_details"]["cached_tokens"] <= last["prompt_tokens"] == usage[0]["prompt_tokens"]
        (cached,) = re.findall(r'onnxport_cached_prompt_tokens_total{model="plain"} (.*)', counted)
        assert float(cached) > 2 * usage[1]["prompt_tokens_details"]["cached_tokens"]
    finally:
        models.close()
