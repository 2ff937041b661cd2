"""A command that is told to end undoes what it began and ends with the signal's code, whatever becomes of the interrupt on its way."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from onnxport.cli.console import _interrupted
from onnxport.errors import CheckpointError
from support.commands import assert_refused, invoke, obedient

EXPORT = """
import os, signal, sys
import onnxport.build
from onnxport.cli import commands
from onnxport.runtime.bundle.writer import bundle_folder

number, became, out = signal.Signals[sys.argv[1]], sys.argv[2], sys.argv[3]
if became == "ignored":
    signal.signal(number, signal.SIG_IGN)

def build(source, out, *, progress, **options):
    with bundle_folder(out) as staging:
        (staging.path / "half").write_text("x")
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt:
            if became == "an import error":
                raise ImportError("numpy failed: KeyboardInterrupt")
            if became == "another error":
                raise ValueError("no such thing")
            if became == "nothing":
                progress("go on")
                raise AssertionError("the next stage began")
            raise
        raise ValueError("on it goes")

onnxport.build.build = build
sys.argv = ["onnxport", "export", "source", "--out", out, "-q"]
commands.main()
"""


def export(number: str, became: str, out: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(EXPORT), number, became, str(out)],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=obedient,
    )


@pytest.mark.parametrize(
    ("number", "code", "said"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "ended by SIGTERM"), ("SIGHUP", 129, "SIGHUP")]
)
@pytest.mark.parametrize("became", ["itself", "an import error", "another error", "nothing"])
def test_signals_end_a_command_that_leaves_nothing(tmp_path: Path, number: str, code: int, said: str, became: str) -> None:
    done = export(number, became, tmp_path / "out")
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    done = export("SIGHUP", "ignored", tmp_path / "out")
    assert done.returncode == 1
    assert "on it goes" in done.stderr


def test_a_refusal_that_quotes_an_interrupt_is_a_refusal(tmp_path: Path) -> None:
    folder = tmp_path / "KeyboardInterrupt"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "KeyboardInterrupt"}')
    assert_refused(invoke("export", folder, "--out", tmp_path / "out", "-q"), 4, "KeyboardInterrupt")


@pytest.mark.parametrize(("error", "found"), [(ImportError("numpy: KeyboardInterrupt"), True), (ValueError("KeyboardInterrupt"), False)])
def test_what_lies_behind_a_refusal(error: Exception, found: bool) -> None:
    refusal = CheckpointError("it cannot be read")
    refusal.__cause__ = error
    assert _interrupted(refusal) == found
