"""The command as a process: where it listens, how it ends, what it refuses before it does."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from onnxport.runtime import Model
from support.commands import COMMAND, invoke, started

BODY = {"model": "plain", "prompt": "w5 w9", "max_tokens": 40, "min_new_tokens": 40, "stream": True}
# steps of the process take so long that a signal comes while it answers
SLOW = """
import sys, time
from onnxport.runtime.decode.state import DecoderState
step = DecoderState.step
def slowly(state):
    time.sleep(0.02)
    step(state)
DecoderState.step = slowly
from onnxport.__main__ import main
main()
"""


@contextmanager
def serving(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its address."""
    command = [sys.executable, "-c", SLOW, "serve", *map(str, arguments), "--port", "0", "--threads", "1"]
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(r"listening on (http://127\.0\.0\.1:\d+) \((.*)\)\n", line)
        assert found, (line, process.stderr.read() if process.stderr and not line else "")
        yield process, found[1]


def test_sigterm_finishes_what_is_under_way(bundles: dict[str, Path], model: Callable[[str], Model]) -> None:
    expected = model("plain").generate("w5 w9", max_new_tokens=40, min_new_tokens=40)[0].text
    with serving(f"plain={bundles['plain']}") as (process, url):
        texts, begun, whole = [""], threading.Event(), threading.Event()

        def read() -> None:
            with httpx.stream("POST", f"{url}/v1/completions", json=BODY, timeout=60) as answer:
                for line in answer.iter_lines():
                    if line == "data: [DONE]":
                        whole.set()
                    elif line:
                        texts[0] += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
                        begun.set()

        reader = threading.Thread(target=read)
        reader.start()
        assert begun.wait(60)
        idle = httpx.Client(timeout=60)  # a connection that is kept holds nothing up
        assert idle.get(f"{url}/health").json() == {"status": "ok"}
        process.send_signal(signal.SIGTERM)
        reader.join(60)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
        assert whole.is_set() and texts[0] == expected
        with pytest.raises(httpx.TransportError):
            idle.get(f"{url}/health")


def test_ctrl_c_does_not_wait(bundles: dict[str, Path]) -> None:
    with (
        serving(f"plain={bundles['plain']}") as (process, url),
        httpx.stream("POST", f"{url}/v1/completions", json=BODY, timeout=60) as answer,
    ):
        next(answer.iter_lines())
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors.strip().splitlines()[-1]) == (130, "onnxport: interrupted")
        assert "Traceback" not in errors


def test_options_reach_the_server(bundles: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("secret\n")
    options = ("--api-key-file", tmp_path / "keys", "--max-tokens", 20, "--max-body-mb", 1, "--max-requests", 3, "--timeout", 60)
    with serving(f"a={bundles['plain']}", f"b={bundles['vectors']}", *options, "--prefix-cache-mb", 1, "--batch-rows", 2) as (process, url):
        client = OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0)
        assert [one.id for one in client.models.list()] == ["a", "b"]
        answer = httpx.post(
            f"{url}/v1/completions", json={"model": "a", "prompt": "w5", "max_tokens": 30}, headers={"authorization": "Bearer secret"}
        )
        assert "at most 20" in answer.json()["error"]["message"]
        assert httpx.get(f"{url}/v1/models").status_code == 401
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_what_cannot_be_served_is_told_before_it_listens(bundles: dict[str, Path], tmp_path: Path) -> None:
    changed = shutil.copytree(bundles["plain"], tmp_path / "changed")
    tokenizer = changed / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("w30", "w03"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = ("--port", taken.getsockname()[1])
        for arguments, code, part in (
            ((tmp_path / "none",), 4, "expected a bundle's folder"),
            ((changed,), 4, "has changed"),
            ((bundles["plain"], "--port", 0, "--precision", "int9"), 2, "precision is 'int9'"),
            ((bundles["plain"], "--port", 0, "--api-key-file", tmp_path / "none"), 4, "cannot be read"),
            ((bundles["plain"], bundles["chat"], "--port", 0), 2, "two bundles are named 'tiny'"),
            ((bundles["plain"], *busy), 2, "cannot listen on 127.0.0.1"),
        ):
            result = invoke("serve", *arguments, *(() if "--port" in arguments else ("--port", 0)), "-q")
            assert result.exit_code == code and part in result.stderr.strip().splitlines()[-1], result.output
            assert result.stdout == ""


def test_who_is_reached_from_elsewhere_without_keys_is_told(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxport.serve.server.serve", lambda *_, **__: None)
    for host, told in (("0.0.0.0", True), ("::", True), ("127.0.0.2", False), ("::1", False), ("localhost", False)):
        result = invoke("serve", bundles["plain"], "--host", host)
        assert ("--api-key-file asks for keys" in result.stderr) is told, host


def test_a_server_that_goes_on_is_no_news(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxport.cli.console import StageLines

    def serving_for_a_while(*_: object, progress: Callable[[str], None], listening: Callable[[str, list[str]], None], **__: object) -> None:
        progress("loading")
        listening("http://x:1", ["a", "b"])
        time.sleep(0.2)

    monkeypatch.setattr("onnxport.serve.server.serve", serving_for_a_while)
    monkeypatch.setattr(StageLines, "SOON_S", 0.01)
    monkeypatch.setattr(StageLines, "STILL_S", 0.05)
    result = invoke("serve", bundles["plain"])
    assert (result.exit_code, result.stdout) == (0, "listening on http://x:1 (a, b)\n")
    assert "goes on" not in result.stderr


def test_a_missing_extra_is_named() -> None:
    script = "import sys; sys.modules['uvicorn'] = None; sys.argv = ['onnxport', 'serve', 'x']; from onnxport.__main__ import main; main()"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert result.returncode == 2 and "serving needs uvicorn" in result.stderr and "'onnxport[serve]'" in result.stderr


def test_help_names_the_command() -> None:
    result = subprocess.run([*COMMAND, "serve", "--help"], capture_output=True, text=True, timeout=60)
    assert "SIGTERM finishes what is under way" in result.stdout
