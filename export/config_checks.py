"""How the keys of a config.json are checked."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

LARGEST = 3.4e38  # of float32, about
WIDTH, DEPTH, LENGTH, ROWS = 65536, 1024, 1_000_000, 100_000_000  # no model is larger; beyond, building one would not end
Check = Callable[[Any], str | None]  # what was expected instead, None where the value will do


def integer(low: int, high: int) -> Check:
    """A whole number between the two."""

    def check(value: Any) -> str | None:
        return None if type(value) is int and low <= value <= high else f"an integer from {low} to {high}"

    return check


def number(low: float) -> Check:
    """A number above `low` that float32 can hold."""

    def check(value: Any) -> str | None:
        fits = type(value) in (int, float) and abs(value) <= LARGEST and value > low  # NaN is none of it
        return None if fits else f"a number above {low:g}" if math.isfinite(low) else "a number of float32"

    return check


def one_of(*values: Any) -> Check:
    """Exactly one of the values, in its type."""

    def check(value: Any) -> str | None:
        known = any(type(value) is type(one) and value == one for one in values)
        return None if known else "one of " + ", ".join(map(repr, values))

    return check


def optional(inner: Check) -> Check:
    """`inner`, or null."""
    return lambda value: None if value is None else inner(value)


def text(value: Any) -> str | None:
    """A string that is not empty."""
    return None if isinstance(value, str) and value else "a text"


def dropout(value: Any) -> str | None:
    """A share."""
    return None if type(value) in (int, float) and 0 <= value <= 1 else "a number from 0 to 1"


@dataclass(frozen=True)
class Key:
    """How a key is checked; `...` as the default means it is needed."""

    check: Check
    default: Any = ...


def read_keys(
    given: Mapping[str, Any], keys: Mapping[str, Key], ignored: frozenset[str] = frozenset()
) -> tuple[dict[str, Any], set[str], list[str]]:
    """Every key's value with defaults filled in, the keys whose value will do, and what is wrong. `ignored` keys may be there."""
    problems = [f"{name} is missing" for name, key in keys.items() if key.default is ... and name not in given]
    problems += [f"{name} is not a key of this architecture" for name in given if name not in keys and name not in ignored]
    wrong = set()
    for name, value in given.items():
        if name in keys and (expected := keys[name].check(value)):
            wrong.add(name)
            problems.append(f"{name} is {value!r:.60}, expected {expected}")
    config = {name: given.get(name, key.default) for name, key in keys.items()}
    return config, {name for name in config if config[name] is not ... and name not in wrong}, problems
