"""Members of a request's JSON object, each read once and checked; what nobody reads is refused by its name."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from onnxport.runtime.other_names import suggestion
from onnxport.serve.errors import ApiError, refused

NAMES: Mapping[type, str] = {
    str: "a text", bool: "true or false", int: "a whole number", float: "a number", list: "a list", dict: "an object", type(None): "null",
}  # fmt: skip


class Fields:
    """The members of an object. null counts as absent, as in OpenAI's API. where: what the object is, for messages."""

    def __init__(self, value: object, where: str = "the body") -> None:
        if not isinstance(value, dict):
            raise refused(f"{where} is {named(value)}, expected a JSON object")
        self._left, self._where = {name: item for name, item in value.items() if item is not None}, where
        self._known: list[str] = []

    @classmethod
    def parse(cls, content: bytes, where: str = "the body") -> Fields:
        """From JSON. ApiError for what is none."""
        return cls(parsed(content, where), where)

    def take(self, name: str, *kinds: type, default: Any = None) -> Any:
        """A member, None or `default` where it is absent. kinds: what it may be; a whole number is a float too, a truth value no number."""
        self._known.append(name)
        if name not in self._left:
            return default
        value = self._left.pop(name)
        accepted = (*kinds, int) if float in kinds else kinds
        if kinds and (not isinstance(value, accepted) or (isinstance(value, bool) and bool not in kinds)):
            raise refused(f"{name} is {named(value)}, expected {' or '.join(NAMES[kind] for kind in kinds)}", name)
        return value

    def required(self, name: str, *kinds: type) -> Any:
        """A member that must be there."""
        if (value := self.take(name, *kinds)) is None:
            raise refused(f"{self._where} has no {name!r}, expected {' or '.join(NAMES[kind] for kind in kinds) or 'a value'}", name)
        return value

    def whole(self, name: str, least: int, most: int | None = None, default: int | None = None) -> int | None:
        """A whole number within bounds."""
        value: int | None = self.take(name, int, default=default)
        if value is not None and (value < least or (most is not None and value > most)):
            expected = f"{least} or more" if most is None else f"{least} to {most}"
            raise refused(f"{name} is {value}, expected {expected}", name)
        return value

    def choice(self, name: str, values: Collection[str], default: str) -> str:
        """One of some texts."""
        value: str = self.take(name, str, default=default)
        if value not in values:
            raise refused(f"{name} is {value!r:.60}, expected {' or '.join(map(repr, values))}", name)
        return value

    def texts(self, name: str, value: object | None = None) -> list[str]:
        """A required member that is a list of texts, one at least."""
        items = self.required(name, list) if value is None else value
        if not isinstance(items, list) or not items or not all(isinstance(item, str) for item in items):
            raise refused(f"{name} is {items!r:.60}, expected a list of texts", name)
        return items

    def rest(self) -> dict[str, Any]:
        """What was not read yet."""
        left, self._left = self._left, {}
        return left

    def skip(self, names: Collection[str]) -> None:
        """Members that change no answer."""
        for name in names:
            self.take(name)

    def finish(self) -> None:
        """ApiError names a member that nobody has read."""
        if self._left:
            name = next(iter(self._left))
            hint = suggestion(name, self._known)
            raise refused(f"{self._where} has {name!r:.60}, which is unknown here{hint}; leave it out", name[:60], "unknown_parameter")


def parsed(content: bytes, where: str = "the body") -> Any:
    """A JSON value. ApiError: it is none, or nested too deeply."""
    try:
        return json.loads(content, parse_constant=_no_constant)
    except RecursionError:
        raise refused(f"{where} is nested too deeply, expected plain JSON") from None
    except ValueError as error:
        raise ApiError(400, f"{where} is not valid JSON ({str(error)[:100]}); expected a JSON object", code="invalid_json") from None


def named(value: object) -> str:
    """What a JSON value is, in words."""
    return NAMES.get(type(value), type(value).__name__)


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")
