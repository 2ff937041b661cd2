"""ONNX Runtime's telemetry is off in every process of ours, unless the user has said otherwise."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from onnxport.telemetry import SWITCH

SESSION = """
import sys, time
from onnxport.runtime.processor import saturates
from onnxport.runtime.sessions import Sessions
import onnxruntime
from onnxport.runtime.processor import PROBE
session = onnxruntime.InferenceSession(PROBE, Sessions.on(threads=1).options())
time.sleep(2)
"""
LOOK_UP = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    int file = open(getenv("LOOKED_UP"), O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (node && write(file, node, strlen(node)) < 0) abort();
    close(file);
    return EAI_FAIL;
}
"""


def run(code: str, home: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python code in a process whose user has an empty home and no switch of their own."""
    home.mkdir(exist_ok=True)
    plain = {name: value for name, value in os.environ.items() if name not in (SWITCH, "XDG_CACHE_HOME")}
    command = [sys.executable, *(["-c", code] if code else ["-m", "onnxport"]), *map(str, arguments)]
    return subprocess.run(command, env=plain | {"HOME": str(home)} | environment, capture_output=True, text=True, timeout=100, check=True)


def files(home: Path) -> list[Path]:
    return [path for path in home.rglob("*") if path.is_file()]


def test_a_session_leaves_no_file(tmp_path: Path) -> None:
    run(SESSION, tmp_path / "home")
    assert files(tmp_path / "home") == []


@pytest.mark.skipif(not (sys.platform == "linux" and shutil.which("cc")), reason="needs Linux and a C compiler")
def test_a_session_looks_up_no_host(tmp_path: Path) -> None:
    source, library, found = tmp_path / "hook.c", tmp_path / "hook.so", tmp_path / "looked-up"
    source.write_text(LOOK_UP)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
    hook = {"LD_PRELOAD": str(library), "LOOKED_UP": str(found)}
    run("import socket, contextlib\nwith contextlib.suppress(OSError): socket.getaddrinfo('example.invalid', 1)", tmp_path / "home", **hook)
    assert found.read_text() == "example.invalid"  # the hook works
    found.unlink()
    run(SESSION, tmp_path / "home", **hook)
    assert not found.exists()


@pytest.mark.parametrize("module", ["onnxport", "onnxport.runtime.sessions", "onnxport.graph.session", "onnxport.compare.protocol.worker"])
def test_it_is_off_before_onnxruntime_can_be_imported(module: str, tmp_path: Path) -> None:
    code = f"import os, sys, {module}\nprint(os.environ[{SWITCH!r}], 'onnxruntime' in sys.modules)"
    assert run(code, tmp_path).stdout.split() == ["1", "False"]
    assert run(code, tmp_path, **{SWITCH: ""}).stdout.split() == ["1", "False"]


@pytest.mark.parametrize("value", ["0", "1", "false"])
def test_what_the_user_says_stands(value: str, tmp_path: Path) -> None:
    code = f"import os, warnings; warnings.simplefilter('error'); import onnxport; print(os.environ[{SWITCH!r}])"
    assert run(code, tmp_path, **{SWITCH: value}).stdout.split() == [value]


@pytest.mark.parametrize(("version", "warned"), [("1.32.0", 1), ("1.33.0.dev5", 1), ("2.0", 1), ("1.31.9", 0), ("1.4.0", 0)])
def test_a_process_that_imported_onnxruntime_before_is_warned_once(version: str, warned: int, tmp_path: Path) -> None:
    code = "import os, sys, types; found = sys.modules['onnxruntime'] = types.ModuleType('x'); "
    code += f"found.__version__ = {version!r}; import onnxport, onnxport.runtime; print(os.environ[{SWITCH!r}])"
    done = run(code, tmp_path)
    assert done.stdout.split() == ["1"]  # for the processes that it starts
    assert done.stderr.count("RuntimeWarning") == warned
    assert not warned or (SWITCH in done.stderr and "<string>:1" in done.stderr)
    assert "Warning" not in run(code, tmp_path, **{SWITCH: "1"}).stderr


@pytest.mark.parametrize(("value", "told"), [(None, "off"), ("1", "off"), ("false", f"not switched off ({SWITCH} is false)")])
def test_doctor_tells(value: str | None, told: str, tmp_path: Path) -> None:
    code = "import json; from onnxport import telemetry; print(json.dumps(telemetry.state()))"
    assert json.loads(run(code, tmp_path, **({} if value is None else {SWITCH: value})).stdout) == told
    if value is None:
        findings = json.loads(run("", tmp_path, "doctor", "--json").stdout)
        assert findings["telemetry"] == told and not [note for note in findings["notes"] if "telemetry" in note]
        assert files(tmp_path) == []
