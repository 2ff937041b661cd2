"""Options of a generation, checked once; and the watch that ends a call early."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Protocol

from onnxport.errors import Cancelled, GenerationTimeout, UsageError

NORMAL, LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # the range of normal float32, the search graphs' type
STEEPEST = 10.0  # of a length penalty: tokens ** 10 is still far from overflow
FOREVER = 1e9  # seconds, the longest timeout


class Flag(Protocol):
    """What `cancel` must offer: threading.Event does."""

    def is_set(self) -> bool:
        """True when the call is to end."""
        ...


@dataclass(frozen=True)
class Options:
    """How to search. Sampling when `temperature`, `top_k` or `top_p` is given and temperature is not 0; else greedy, or beams.

    length_penalty and early_stopping (True, False, "never") mean what they mean in transformers: a finished hypothesis scores
    sum of log-probabilities / (new tokens with eos) ** length_penalty.
    """

    beam: int = 1
    n_best: int = 1
    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    batch_size: int = 32

    def __post_init__(self) -> None:
        whole = {"beam": 1, "n_best": 1, "batch_size": 1, "min_new_tokens": 0, "max_new_tokens": 1, "top_k": 0, "seed": 0}
        for name, least in whole.items():
            if getattr(self, name) is not None or name in ("beam", "n_best", "batch_size", "min_new_tokens"):
                object.__setattr__(self, name, _whole(name, getattr(self, name), least))
        _number("repetition_penalty", self.repetition_penalty, NORMAL, LARGEST)
        _number("length_penalty", self.length_penalty, -STEEPEST, STEEPEST)
        if self.temperature is not None and not _is_zero(self.temperature):
            _number("temperature", self.temperature, NORMAL, LARGEST)
        if self.top_p is not None:
            _number("top_p", self.top_p, NORMAL, 1)
        if not (isinstance(self.early_stopping, bool) or self.early_stopping == "never"):
            raise UsageError(f"early_stopping is {self.early_stopping!r}, expected True, False or 'never'")
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise UsageError(f"min_new_tokens is {self.min_new_tokens}, expected at most max_new_tokens ({self.max_new_tokens})")
        if not all(isinstance(s, str) and s for s in self.stop):
            raise UsageError(f"stop is {list(self.stop)!r}, expected non-empty texts")
        if self.n_best > self.beam:
            raise UsageError(f"n_best is {self.n_best}, expected at most beam ({self.beam})")
        if self.beam > 1 and self.sampling:
            raise UsageError(f"beam is {self.beam} together with temperature, top_k or top_p; choose beams or sampling")

    @property
    def sampling(self) -> bool:
        """True when tokens are drawn."""
        given = self.temperature is not None or bool(self.top_k) or self.top_p is not None
        return given and self.temperature != 0


def stops(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """`stop` as a tuple."""
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


class Watch:
    """Ends a call between two steps when its time is over or its caller asks for it."""

    def __init__(self, timeout: float | None = None, cancel: Flag | None = None) -> None:
        if timeout is not None:
            _number("timeout", timeout, NORMAL, FOREVER)
        if cancel is not None and not callable(getattr(cancel, "is_set", None)):
            raise UsageError(f"cancel is {type(cancel).__name__}, expected an object with is_set(), such as threading.Event")
        self._timeout, self._cancel = timeout, cancel
        self._end = None if timeout is None else time.monotonic() + timeout

    def check(self) -> None:
        """Raise Cancelled or GenerationTimeout when it is time to."""
        if self._cancel is not None and self._cancel.is_set():
            raise Cancelled("the generation was cancelled by its caller")
        if self._end is not None and time.monotonic() >= self._end:
            raise GenerationTimeout(f"the generation took more than {self._timeout} s; allow more time or fewer new tokens")


def _whole(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise UsageError(f"{name} is {value!r}, expected a whole number from {least}")
    return int(value)


def _number(name: str, value: object, least: float, most: float) -> None:
    # Compared as they are, since a huge int has no float; NaN is in no range.
    if isinstance(value, bool) or not isinstance(value, Real) or not least <= value <= most:  # type: ignore[operator]
        raise UsageError(f"{name} is {value!r}, expected a number from {least:.4g} to {most:.4g}")


def _is_zero(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and value == 0
