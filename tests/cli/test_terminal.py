"""Control characters of names and answers are shown, never obeyed, and progress of `run` goes to standard error only."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from onnxport.cli.console import StageLines, emit, emit_answer, emit_json
from onnxport.printable import printable

EVIL = "a\x1b[31mb\x9b2Jc\x07\u202ed\x7f"
SAFE = "a\\x1b[31mb\\x9b2Jc\\x07\\u202ed\\x7f"


def test_names_are_printable() -> None:
    assert printable(EVIL) == SAFE
    assert printable("tab\t, line\n, \\x1b, é, 漢, \u05d0, \U0001f600") == "tab\t, line\n, \\x1b, é, 漢, \u05d0, \U0001f600"
    assert printable("\udc80") == "\\udc80"


def test_results_are_shown_and_json_keeps_its_values(capsys: pytest.CaptureFixture[str]) -> None:
    emit(EVIL)
    emit_json({EVIL: EVIL})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == SAFE
    assert json.loads(lines[1]) == {EVIL: EVIL} and not {"\x1b", "\x9b", "\x07", "\x7f"} & set(lines[1])


def test_progress_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with StageLines() as progress:
        progress(EVIL)
        progress(f"{EVIL} (1 of 2)")
    assert SAFE in capsys.readouterr().err.replace("\n", "") and "\x1b" not in capsys.readouterr().err


def test_an_answer_goes_raw_into_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    emit_answer(EVIL)
    emit_answer("b", end="")
    assert capsys.readouterr().out == EVIL + "\nb"


def test_an_answer_is_shown_on_a_terminal() -> None:
    ours, theirs = pty.openpty()
    code = f"from onnxport.cli.console import emit_answer; emit_answer({EVIL!r} + chr(9) + chr(0x5d0))"
    subprocess.run([sys.executable, "-c", code], stdout=theirs, timeout=60, check=True, env=os.environ | {"PYTHONIOENCODING": "utf-8"})
    os.close(theirs)
    found = os.read(ours, 1000).decode()
    os.close(ours)
    assert found.split("\t")[0] == SAFE.replace("\\u202e", "\u202e") and "\u05d0" in found


def test_an_error_is_shown(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "onnxport", "inspect", str(tmp_path / "x\x1b[2J")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 4 and "\\x1b[2J" in done.stderr and "\x1b" not in done.stderr


def test_run_over_a_file_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    from onnxport.cli import run

    monkeypatch.setattr(StageLines, "EVERY_S", 0.0)
    file = tmp_path / "lines"
    file.write_text("".join(f"line {i}\n" for i in range(130)))
    for quiet in (False, True):
        with file.open() as opened:
            found = [line for _, chunk in run._counted(opened.fileno(), quiet) for line in chunk]
        assert found == [f"line {i}" for i in range(130)]
        out, err = capfd.readouterr()
        assert out == "" and (err == "" if quiet else f" of {file.stat().st_size} " in err)
