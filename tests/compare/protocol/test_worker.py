import io
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from onnxport.compare.protocol import messages
from onnxport.compare.protocol.client import Client
from onnxport.errors import GenerationTimeout, OnnxportError, TextError, UsageError
from support.commands import started
from support.paths import TESTS


def spec(name="Echo", **options):
    return {"kind": "class", "class": f"support.fake_sides:{name}", "options": options}


@pytest.fixture
def start():
    started = []

    def start(described, **options):
        client = Client("side", described, paths=[str(TESTS)], **options)
        started.append(client)
        return client

    yield start
    for client in started:
        client.kill()


def assert_gone(pid, seconds=10):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} is still there")


def test_a_side_may_have_an_interpreter_of_its_own(start, tmp_path):
    own = tmp_path / "python"
    own.write_text(f'#!/bin/sh\ntouch "{tmp_path}/used"\nexec "{sys.executable}" "$@"\n')
    own.chmod(0o755)
    assert start(spec(), python=str(own)).load()["about"]["versions"] == {"fake": "1.0"}
    assert (tmp_path / "used").exists()


def test_loads_answers_and_measures(start):
    client = start(spec())
    loaded = client.load()
    assert loaded["load_ms"] >= 0
    assert loaded["import_ms"] > 0
    assert loaded["about"]["versions"] == {"fake": "1.0"}
    outputs, seconds = client.call("generate", ["to be or"])
    assert outputs[0]["text"] == "or be to"
    assert seconds > 0
    runs = client.time("generate", ["a b", "c"], calls=2, min_new_tokens=4, max_new_tokens=4)
    assert [units for _, units in runs] == [8, 8]
    stats = client.request("stats")
    assert stats["peak_rss_bytes"] >= stats["rss_bytes"] > 1e6


def test_arrays_come_and_go(start):
    client = start(spec())
    client.load()
    outputs, _ = client.call("run", {"x": np.arange(6, dtype=np.float16).reshape(2, 3)})
    assert outputs["x"].dtype == np.float16
    assert outputs["x"].tolist() == [[0, 2, 4], [6, 8, 10]]
    assert client.time("run", {"x": np.zeros((5, 2))})[0][1] == 1


@pytest.mark.parametrize("array", [np.zeros((0, 3), np.int64), np.array(2.5), np.array([True, False]), np.arange(6.0).reshape(2, 3).T])
def test_packing_is_undone_by_unpacking(array):
    found = messages.unpack(messages.pack({"deep": [array]}))["deep"][0]
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)


def test_prints_do_not_reach_the_protocol(start):
    client = start(spec(loud=True))
    client.load()
    assert client.call("generate", ["still here"])[0][0]["text"] == "here still"


def test_an_onnxport_error_comes_back_as_itself(start):
    client = start(spec("Faulty"))
    client.load()
    with pytest.raises(TextError, match="side: the text is too long: 9 tokens, at most 8; shorten it") as caught:
        client.call("generate", ["refuse"])
    assert caught.value.exit_code == 4
    assert "fake_sides.py" in caught.value.__notes__[0]
    assert client.call("generate", ["fine again"])[0][0]["text"] == "again fine"


def test_another_error_comes_back_in_one_line(start):
    client = start(spec("Faulty"))
    client.load()
    with pytest.raises(OnnxportError) as caught:
        client.call("generate", ["raise"])
    assert str(caught.value) == "side: RuntimeError: first line second line"
    assert caught.value.exit_code == 1


def test_a_death_is_told_with_its_last_words(start):
    client = start(spec("Faulty"))
    client.load()
    with pytest.raises(OnnxportError, match=r"ended by signal 9 during 'generate'.*last words"):
        client.call("generate", ["die"])
    assert_gone(client.pid)
    with pytest.raises(OnnxportError):
        client.call("generate", ["anything"])


def test_silence_is_ended_after_the_timeout(start):
    client = start(spec("Faulty"), timeout=5)
    client.load()
    client.timeout = 0.3
    with pytest.raises(GenerationTimeout, match="no answer to 'generate'"):
        client.call("generate", ["hang"])
    assert_gone(client.pid)


def test_an_interrupt_leaves_no_orphan(start, monkeypatch):
    client = start(spec("Faulty"))
    client.load()

    def interrupted(timeout):
        raise KeyboardInterrupt

    monkeypatch.setattr(client, "_answers", type("Queue", (), {"get": staticmethod(interrupted), "put": staticmethod(lambda line: None)}))
    with pytest.raises(KeyboardInterrupt):
        client.call("generate", ["hang"])
    assert_gone(client.pid)


def test_a_killed_parent_leaves_no_orphan():
    code = (
        "import sys; from onnxport.compare.protocol.client import Client\n"
        f"client = Client('side', {spec('Faulty')!r}, paths=[{str(TESTS)!r}]); client.load()\n"
        "print(client.pid, flush=True); client.call('generate', ['hang'])"
    )
    with started([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
    assert_gone(pid)


@pytest.mark.parametrize(
    "described, told",
    [
        ({"kind": "class", "class": "no_such_module:Side"}, "cannot import the side"),
        ({"kind": "class", "class": "support.fake_sides:Missing"}, "cannot import the side"),
        ({"kind": "class", "class": "support.fake_sides"}, "expected module:Class"),
        ({"kind": "martian"}, "unknown kind of side 'martian'; expected bundle, pytorch, class"),
    ],
)
def test_a_side_that_cannot_be_made_is_wrong_usage(start, described, told):
    with pytest.raises(UsageError, match=told):
        start(described).load()


def test_operations_are_checked(start):
    client = start(spec())
    with pytest.raises(UsageError, match="before load"):
        client.call("generate", ["a"])
    client.load()
    with pytest.raises(UsageError, match="unknown operation 'dance'"):
        client.request("dance")
    with pytest.raises(UsageError, match=r"Echo has no encode\(\)"):
        client.call("encode", ["a"])


def test_the_worker_holds_neither_numpy_nor_onnxruntime_by_itself():
    heavy = ("numpy", "onnxruntime", "torch", "jinja2", "sacrebleu")
    code = f"import sys, onnxport.compare.protocol.worker; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_close_ends_the_process(start):
    client = start(spec())
    client.load()
    client.close()
    assert_gone(client.pid)
    assert isinstance(client._process.stdin, io.TextIOBase) and client._process.stdin.closed
