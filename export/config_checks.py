"""Reading of JSON files such as config.json, and checks of their keys."""

import json
import math
from collections import Counter
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxport.errors import CheckpointError, one_line
from onnxport.files import MOST, read_regular

LARGEST = 3.4e38  # of float32, about
WIDTH, DEPTH, LENGTH, ROWS = 65536, 1024, 1_000_000, 100_000_000  # no model is larger; beyond, building one would not end
FLOATS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}  # as transformers 5 names what JSON has not
Check = Callable[[Any], str | None]  # what was expected instead, None where the value will do


def read_json(path: Path, kind: type = dict) -> Any:
    """The JSON value of a file: an object, or a list where `kind` is list. CheckpointError when it holds anything else.

    {"__float__": NAME} is a number in FLOATS.
    """
    try:
        value = json.loads(read_regular(path, MOST), object_hook=_float_of)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, numbers of thousands of digits, or nested without end
        raise CheckpointError(f"{path} is not valid JSON: {one_line(error)}; correct it, or copy it again") from error
    if not isinstance(value, kind):
        expected = "a list" if kind is list else "an object"
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}, not {expected}; correct it, or copy it again")
    return value


def repeated_names(path: Path) -> list[str]:
    """Names that an object of a JSON file has more than once; whoever reads it sees one of their values."""
    found: Counter[str] = Counter()

    def count(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found.update(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        return dict(pairs)

    json.loads(path.read_bytes(), object_pairs_hook=count)
    return sorted(found)


def weight_map(index: Path) -> dict[str, str]:
    """Which file of its folder an index of shards places each tensor in. CheckpointError: it names no such files, or a tensor twice."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(place, str) and Path(place).name == place for place in places.values()):
        raise CheckpointError(f"{index} has a weight_map that does not lead from tensors to files of the folder; save the model again")
    if twice := repeated_names(index):
        raise CheckpointError(f"{index} names tensors twice: {', '.join(twice)}; save the model again")
    return places


def check_shard(file: Path, there: Container[str], index: Path, places: Mapping[str, str]) -> None:
    """CheckpointError where a file, whose tensors are `there`, lacks some that `weight_map` of its index places in it."""
    if lost := sorted(name for name, place in places.items() if place == file.name and name not in there):
        raise CheckpointError(f"{file} lacks tensors that {index.name} places there: {', '.join(lost)}; copy it again")


def _float_of(value: dict[str, Any]) -> Any:
    """The number that an object stands for; other objects as they are."""
    match value:
        case {"__float__": str(name), **rest} if not rest and name in FLOATS:
            return FLOATS[name]
    return value


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
    values: Mapping[str, Any], keys: Mapping[str, Key], ignored: frozenset[str] = frozenset()
) -> tuple[dict[str, Any], set[str], list[str]]:
    """Every key's value with defaults filled in, the keys whose value is right, and what is wrong. `ignored` keys may be there."""
    problems = [f"{name} is missing" for name, key in keys.items() if key.default is ... and name not in values]
    problems += [f"{name} is not a key of this architecture" for name in values if name not in keys and name not in ignored]
    wrong = set()
    for name, value in values.items():
        if name in keys and (expected := keys[name].check(value)):
            wrong.add(name)
            problems.append(f"{name} is {value!r:.60}, expected {expected}")
    config = {name: values.get(name, key.default) for name, key in keys.items()}
    return config, {name for name in config if config[name] is not ... and name not in wrong}, problems


def named_class(config: Mapping[str, Any]) -> str | None:
    """The first class of `architectures`; None where it names none."""
    named = config.get("architectures")
    return named[0] if isinstance(named, list) and named and isinstance(named[0], str) else None
