"""Tools that a model may call: how they are given to it, and how its calls are found in its answer.

Calls are read where the model's chat template asks for Hermes's form, which Qwen, SmolLM3 and others share: each call is a JSON object with
`name` and `arguments` between <tool_call> and </tool_call>. Models of other forms are refused by name.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from typing import Any

from onnxport.serve.errors import refused, unsupported
from onnxport.serve.fields import Fields
from onnxport.serve.models import Served

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def tools(fields: Fields, served: Served) -> list[dict[str, Any]]:
    """The tools that a request names; none where it wants no call. ApiError: of a kind that is not answered."""
    given = fields.take("tools", list, default=[])
    choice = fields.take("tool_choice", str, dict, default="auto")
    several = fields.take("parallel_tool_calls", bool, default=True)
    for name in ("functions", "function_call"):
        if fields.take(name) is not None:
            raise unsupported(name, "use tools")
    found = [_tool(one, f"tools[{place}]") for place, one in enumerate(given)]
    if choice not in ("auto", "none"):
        raise unsupported("tool_choice", "a call cannot be forced; expected 'auto' or 'none'")
    if not found or choice == "none":
        return []
    if not several:
        raise unsupported("parallel_tool_calls", "how many calls a model makes cannot be held to one")
    if "tools" not in served.template:
        raise unsupported("tools", f"the chat template of {served.name} knows no tools")
    if OPEN not in served.template:
        raise unsupported("tools", f"the chat template of {served.name} has calls in a form that this server does not read")
    return found


def _tool(value: object, where: str) -> dict[str, Any]:
    """A tool as templates read it."""
    fields = Fields(value, where)
    if fields.choice("type", ("function",), "function") and (function := fields.required("function", dict)):
        inner = Fields(function, f"{where}.function")
        inner.required("name", str)
        if inner.take("strict", bool):
            raise unsupported("strict", "arguments follow a schema only as far as the model does")
        fields.finish()
        return {"type": "function", "function": {name: item for name, item in function.items() if name != "strict"}}
    raise refused(f"{where} names no function", "tools")


@dataclass
class Calls:
    """An answer as it grows: its text without the calls, and the calls. on: whether calls are looked for at all."""

    on: bool
    calls: list[dict[str, Any]] = field(default_factory=list)
    _held: str = ""
    _inside: bool = False
    _space: str = ""  # before the call that is looked at

    def push(self, piece: str, last: bool = False) -> tuple[str, list[dict[str, Any]]]:
        """The text that is certain to be none of a call, and the calls that are whole now. What is no whole call at the end is text."""
        if not self.on:
            return piece, []
        self._held += piece
        text, found = "", []
        while True:
            before, there, behind = self._held.partition(CLOSE if self._inside else OPEN)
            if not there:
                break
            if not self._inside:
                text += before.rstrip()  # models put calls on lines of their own
                self._space = before[len(before.rstrip()) :]
            elif (call := _read(before, len(self.calls))) is not None:
                self.calls.append(call)
                found.append(call)
            else:
                text += self._space + OPEN + before + CLOSE
            self._held, self._inside = behind, not self._inside
        if last:
            rest = (self._space + OPEN if self._inside else "") + self._held
            text, self._held = text + ("" if self.calls and not rest.strip() else rest), ""
        elif not self._inside:
            certain = len(self._held) - _beginning(self._held)
            text, self._held = text + self._held[:certain], self._held[certain:]
        return text, found


def _beginning(text: str) -> int:
    """Length of the longest end of a text that may begin a call, with the space before it."""
    mark = next((size for size in range(min(len(text), len(OPEN) - 1), 0, -1) if OPEN.startswith(text[-size:])), 0)
    before = text[: len(text) - mark]
    return mark + len(before) - len(before.rstrip())


def _read(text: str, place: int) -> dict[str, Any] | None:
    """A call in OpenAI's form; None for what is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", {})
    told = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {
        "index": place,
        "id": f"call_{secrets.token_hex(12)}",
        "type": "function",
        "function": {"name": value["name"], "arguments": told},
    }
