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


def obedient() -> None:
    """For `preexec_fn`: signals that a shell ignores in the background, or nohup, and that children inherit, count again."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator["subprocess.Popen[Any]"]:
    """A process that never outlives the test, and that signals end even where the tests themselves run with these ignored."""
    with subprocess.Popen(command, preexec_fn=obedient, **options) as process:
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
