"""Console output of all commands: results on standard output, progress and errors on standard error, errors as exit codes."""

import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.markup import escape

from onnxport.errors import OnnxportError, OutputError


def emit(text: str) -> None:
    """One result on standard output."""
    click.echo(text)


def emit_json(value: object) -> None:
    """One JSON object on standard output, on one line."""
    click.echo(json.dumps(value, ensure_ascii=False, allow_nan=False))


class StageLines:
    """Progress on standard error: a spinner on a terminal, a line a stage elsewhere, nothing when quiet."""

    def __init__(self, quiet: bool = False) -> None:
        from rich.console import Console

        self.quiet = quiet
        self.console = Console(stderr=True, highlight=False)
        self.began = time.monotonic()
        self._status: Any = None
        self._stage: tuple[str, float] | None = None

    def __call__(self, stage: str) -> None:
        """Ends the stage under way and begins the next."""
        self._finish()
        self._stage = (stage, time.monotonic())
        if not self.quiet and self.console.is_terminal:
            self._status = self.console.status(escape(stage))
            self._status.start()

    def _finish(self, mark: str = "✓") -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None
        if self._stage is not None and not self.quiet:
            stage, began = self._stage
            self.console.print(f"{mark} {escape(stage)} [dim]({time.monotonic() - began:.1f} s)[/dim]", soft_wrap=True)
        self._stage = None

    def __enter__(self) -> "StageLines":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._finish("✓" if kind is None else "✗")


@contextmanager
def reported(verbose: bool) -> Iterator[None]:
    """Turns whatever goes wrong into one line on standard error and the exit code of the contract."""
    try:
        yield
    except click.ClickException as error:
        hint = f" (see {error.ctx.command_path} --help)" if isinstance(error, click.UsageError) and error.ctx else ""
        _complain(error.format_message() + hint, verbose)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted", False)
        sys.exit(130)
    except BrokenPipeError:
        # The reader went away (`onnxport run ... | head`): not our fault, and nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OnnxportError as error:
        _complain(str(error), verbose)
        sys.exit(error.exit_code)
    except MemoryError:
        _complain("out of memory: use a machine with more, or a smaller batch", verbose)
        sys.exit(1)
    except OSError as error:
        if error.errno is None:
            raise
        _complain(f"{error.strerror}: {error.filename or 'output'}", verbose)
        sys.exit(OutputError.exit_code)
    except Exception as error:
        if _interrupted(error):
            _complain("interrupted", False)
            sys.exit(130)
        _complain(f"internal error: {type(error).__name__}: {error} (run again with -v for the traceback, and please report it)", verbose)
        sys.exit(1)


def _interrupted(error: BaseException | None) -> bool:
    """Whether an interrupt lies behind an error: an extension module that is interrupted while it is imported raises ImportError."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt) or "KeyboardInterrupt" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _complain(message: str, verbose: bool) -> None:
    if verbose:
        traceback.print_exc()
    line = " ".join(message.split())
    click.echo(f"onnxport: {line}", err=True)
