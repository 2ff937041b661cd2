"""Console output of all commands: results on standard output, progress and errors on standard error, errors as exit codes."""

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click
from rich.markup import escape

from onnxport.errors import OnnxportError, OutputError
from onnxport.printable import CONTROL, escaped, printable
from onnxport.progress import COUNTED


def emit(text: str) -> None:
    """One result on standard output, with control characters shown rather than sent."""
    click.echo(printable(text))


def emit_answer(text: str, end: str = "\n") -> None:
    """An answer of a model, or a piece of one, on standard output: as it is, but on a terminal control characters are shown."""
    sys.stdout.write((CONTROL.sub(escaped, text) if sys.stdout.isatty() else text) + end)  # click.echo would drop escapes from a pipe
    sys.stdout.flush()


def emit_json(value: object) -> None:
    """One JSON object on standard output, on one line. What JSON lets be and a terminal obeys is escaped; the values are the same."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    click.echo(CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


_CAUGHT = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_signals: list[int] = []  # that have come, the first of them first


def catch_signals() -> None:
    """From now on SIGTERM and SIGHUP unwind the command as Ctrl-C does, so that it leaves nothing behind; what is ignored stays ignored."""
    for number in _CAUGHT:
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            signal.signal(number, _unwind)


def _unwind(number: int, _: FrameType | None) -> None:
    _signals.append(number)
    raise KeyboardInterrupt


def raise_again() -> None:
    """KeyboardInterrupt where one has come before: libraries swallow some, for what is raised in a callback reaches nobody."""
    if _signals:
        raise KeyboardInterrupt


class StageLines:
    """Progress on standard error: a spinner on a terminal, a line a stage elsewhere, nothing when quiet.

    Of a stage with parts (see `progress.counted`) it tells how many of how many are done, the time spent and about how much remains: on a
    terminal as it goes on, elsewhere every EVERY_S seconds. finished: a stage that has ended has a line. Off a terminal a stage that is not
    over after SOON_S seconds has a line too, and one of which nothing was said for STILL_S seconds is said to go on.
    """

    EVERY_S, SOON_S, STILL_S = 10.0, 1.0, 60.0

    def __init__(self, quiet: bool = False, finished: bool = True) -> None:
        from rich.console import Console

        self.quiet, self.finished = quiet, finished
        self.console = Console(stderr=True, highlight=False)
        self.began = time.monotonic()
        self._status: Any = None
        self._stage: tuple[str, float] | None = None
        self._told = 0.0  # when the last line of the stage was printed
        self._named = False  # whether it has a line
        self._lock = threading.RLock()  # the main thread, which may be interrupted while it holds it, must not wait for itself
        self._over = threading.Event()
        self._watch: threading.Thread | None = None

    def __call__(self, stage: str) -> None:
        """Ends the stage under way and begins the next; goes on with it where only the number of its parts is new."""
        raise_again()
        stage = printable(stage)
        counted = COUNTED.fullmatch(stage)
        name = counted["stage"] if counted else stage
        with self._lock:
            if not counted or self._stage is None or self._stage[0] != name:
                self._begin(name)
            if counted and not self.quiet:
                self._count(int(counted["done"]), int(counted["total"]))

    def tick(self) -> None:
        """Tell of the stage under way, where it has been silent for long."""
        with self._lock:
            if self._stage is None:
                return
            (stage, began), now = self._stage, time.monotonic()
            if self.finished and not self._named and now - began >= self.SOON_S:
                self._tell(f"… {escape(stage)}", now)
            elif now - self._told >= self.STILL_S:
                self._tell(f"… {escape(stage)}: goes on [dim]({_seconds(now - began)})[/dim]", now)

    def _tell(self, line: str, now: float) -> None:
        self._named, self._told = True, now
        self.console.print(line, soft_wrap=True)

    def _begin(self, stage: str) -> None:
        self._finish()
        self._stage = (stage, time.monotonic())
        self._told, self._named = self._stage[1], False
        if self.quiet:
            return
        if self.console.is_terminal:
            self._status = self.console.status(escape(stage))
            self._status.start()
        elif self._watch is None:
            self._watch = threading.Thread(target=self._ticks, daemon=True)
            self._watch.start()

    def _ticks(self) -> None:
        while not self._over.wait(self.SOON_S):
            self.tick()

    def _count(self, done: int, total: int) -> None:
        assert self._stage is not None
        (stage, began), now = self._stage, time.monotonic()
        remaining = f", about {_seconds((now - began) * (total - done) / done)} left" if 0 < done < total else ""
        text = f"{escape(stage)}: {done} of {total} [dim]({_seconds(now - began)}{remaining})[/dim]"
        if self._status is not None:
            self._status.update(text)
        elif now - self._told >= self.EVERY_S:
            self._tell(f"… {text}", now)

    def _finish(self, mark: str = "✓") -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None
        if self._stage is not None and self.finished and not self.quiet:
            stage, began = self._stage
            self.console.print(f"{mark} {escape(stage)} [dim]({time.monotonic() - began:.1f} s)[/dim]", soft_wrap=True)
        self._stage = None

    def __enter__(self) -> "StageLines":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        with self._lock:
            self._finish("✓" if kind is None else "✗")


def _seconds(value: float) -> str:
    """A duration as people say it: 40 s, 3:20 min."""
    whole = round(value)
    return f"{whole} s" if whole < 60 else f"{whole // 60}:{whole % 60:02} min"


@contextmanager
def reported(verbose: bool) -> Iterator[None]:
    """Turns whatever goes wrong into one line on standard error and the exit code of the contract."""
    try:
        with _ended_by_signals():
            yield
    except click.ClickException as error:
        hint = f" (see {error.ctx.command_path} --help)" if isinstance(error, click.UsageError) and error.ctx else ""
        _complain(error.format_message() + hint, verbose)
        sys.exit(error.exit_code)
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
        _complain(f"internal error: {type(error).__name__}: {error} (run again with -v for the traceback, and please report it)", verbose)
        sys.exit(1)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Exit code 130 or 143 (128 and the signal's number), whatever error a signal became on its way here."""
    try:
        yield
    except SystemExit:
        raise
    except BaseException as error:
        if not (_signals or _interrupted(error)):
            raise
        number = _signals[0] if _signals else signal.SIGINT
        for caught in _CAUGHT if _signals else []:  # what was begun is undone: a second signal may end the rest at once
            signal.signal(caught, signal.SIG_DFL)
        _complain("interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}", False)
        sys.exit(128 + number)


def _interrupted(error: BaseException | None) -> bool:
    """Whether an interrupt lies behind an error: an extension module that is interrupted while it is imported raises ImportError."""
    while error is not None:
        if isinstance(error, (KeyboardInterrupt, click.Abort)):
            return True
        if isinstance(error, ImportError) and "KeyboardInterrupt" in str(error):  # other texts may quote what a user wrote
            return True
        error = error.__cause__ or error.__context__
    return False


def _complain(message: str, verbose: bool) -> None:
    if verbose:
        traceback.print_exc()
    complain(message)


def complain(message: str) -> None:
    """One line on standard error, however long."""
    line = printable(" ".join(message.split()))
    click.echo(f"onnxport: {line}", err=True)
