"""Running commands in tests, and what a refusal looks like."""

import sys
from typing import Any

from click.testing import CliRunner, Result

from onnxport.cli.commands import cli

COMMAND = [sys.executable, "-m", "onnxport"]


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def assert_refused(result: Result, code: int, *words: str) -> None:
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("onnxport: ")
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in lines[-1]
