"""Running commands in tests, and what a refusal looks like."""

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from click.testing import CliRunner, Result

from onnxport.cli.commands import cli

COMMAND = [sys.executable, "-m", "onnxport"]


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator["subprocess.Popen[Any]"]:
    """A process that never outlives the test, and that Ctrl-C ends even where the tests themselves run with interrupts ignored.

    A shell ignores interrupts in what it starts in the background, and children inherit that.
    """
    with subprocess.Popen(command, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **options) as process:
        try:
            yield process
        finally:
            process.kill()


def assert_refused(result: Result, code: int, *words: str) -> None:
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("onnxport: ")
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in lines[-1]
