"""What docs/quick-start.md shows is what its commands print, on the shipped model."""

import re
import shlex
from pathlib import Path

import pytest

from support.commands import invoke
from support.paths import ROOT

BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "docs" / "quick-start.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
SESSIONS = [  # a command with the lines that follow it
    (command, shown.splitlines())
    for kind, block in BLOCKS
    if kind == "console"
    for command, _, shown in (part.partition("\n") for part in block.removeprefix("$ ").split("\n$ "))
]
MEASURED = re.compile(r"[-+]?\d+\.\d+e[-+]\d+|[-+]?\d+(\.\d+)?%")  # differences and shares, whose last digits are the processor's


def stable(line: str) -> str:
    return " ".join(MEASURED.sub("#", line).split())


def check(shown: list[str], printed: str) -> None:
    """Each line is printed, in this order; … stands for other lines, or for the rest of one."""
    left = iter([stable(line) for line in printed.splitlines()])
    skipping = False
    for line in map(stable, shown):
        if line == "…":
            skipping = True
            continue
        found = next((other for other in left if not skipping or matches(line, other)), "")
        assert matches(line, found), f"{line!r} is not printed; found {found!r} of {printed}"
        skipping = False
    assert skipping or next(left, None) is None, f"more is printed: {printed}"


def matches(shown: str, printed: str) -> bool:
    return printed.startswith(shown[:-1]) if shown.endswith("…") else printed == shown


@pytest.mark.parametrize(("command", "shown"), SESSIONS, ids=[command.split()[1] for command, _ in SESSIONS])
def test_commands_print_what_is_shown(example: Path, command: str, shown: list[str]) -> None:
    program, verb, *rest = shlex.split(command)
    assert program == "onnxport"
    if verb == "export":
        assert rest == ["examples/en-de", "--out", "artifacts/en-de"]  # as the fixture does
        check(shown, (example / "printed.txt").read_text(encoding="utf-8"))
        return
    result = invoke(verb, *(str(example / "en-de") if word == "artifacts/en-de" else word for word in rest))
    assert result.exit_code == 0, result.output
    check(shown, result.stdout.replace(str(example / "en-de"), "artifacts/en-de"))


def test_the_program_prints_what_is_shown(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = (block for kind, block in BLOCKS if kind == "python")
    (shown,) = (block for kind, block in BLOCKS if kind == "text")
    exec(compile(program.replace("artifacts/en-de", str(example / "en-de")), "quick-start.md", "exec"), {})
    check(shown.splitlines(), capsys.readouterr().out)


def test_a_line_that_is_not_printed_is_found() -> None:
    check(["…", "a 1.0e-05 b…"], "x\na 2.0e-07 bc")
    for shown in (["…", "b"], ["a"], ["x", "a 3 bc"], ["x", "a 2.0e-07"]):
        with pytest.raises(AssertionError):
            check(shown, "x\na 2.0e-07 bc")
