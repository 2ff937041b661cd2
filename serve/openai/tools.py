"""Tools that a model may call: how they are given to it, and how its calls are found in its answer.

A model calls in the form that its chat template shows it (FORMS). Hermes's, which Qwen, SmolLM3 and others share: each call is a JSON
object with `name` and `arguments` between <tool_call> and </tool_call>, anywhere in the answer. Llama's (3.1 and later): the answer is such
an object, with `parameters`, or several with ; between them. Mistral's: the answer is [TOOL_CALLS] and a list of such objects; or, of newer
models, [TOOL_CALLS], a name, [ARGS] and the arguments, again for each call. Marks that are special tokens are not in an answer's text, so
that calls of the last two are known by their beginning and by the names of tools. Models of other forms are refused by name.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from onnxport.serve.errors import refused, unsupported
from onnxport.serve.fields import Fields
from onnxport.serve.models import Served

OPEN, CLOSE = "<tool_call>", "</tool_call>"
HERMES, LLAMA, MISTRAL = "hermes", "llama", "mistral"
# form → what its templates have, each of them, and what they have not: marks of forms that only begin alike (Qwen3-Coder's, GLM's)
FORMS = {
    HERMES: ((OPEN,), ("<function=", "<arg_key>")),
    MISTRAL: (("[TOOL_CALLS]",), ()),
    LLAMA: (('"parameters": ', "ipython"), (OPEN,)),
}
MARKS = {LLAMA: "<|python_tag|>", MISTRAL: "[TOOL_CALLS]"}


def form(template: str) -> str | None:
    """The form in which a model with this chat template calls tools; None for one that is not known."""
    fits = (
        name for name, (has, lacks) in FORMS.items() if all(map(template.__contains__, has)) and not any(map(template.__contains__, lacks))
    )
    return next(fits, None)


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
    if form(served.template) is None:
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
    """An answer as it grows: its text without the calls, and the calls.

    form: the one that calls are looked for in; None for none. names: of the tools that the model was given.
    """

    form: str | None
    names: Sequence[str] = ()
    calls: list[dict[str, Any]] = field(default_factory=list)
    _held: str = ""
    _inside: bool = False
    _space: str = ""  # before the call that is looked at

    @classmethod
    def of(cls, served: Served, tools: Sequence[dict[str, Any]]) -> Calls:
        """For an answer of a model that was given these tools."""
        return cls(form(served.template) if tools else None, [one["function"]["name"] for one in tools])

    def push(self, piece: str, last: bool = False) -> tuple[str, list[dict[str, Any]]]:
        """The text that is certain to be none of a call, and the calls that are whole now. What is no whole call at the end is text."""
        if self.form is None:
            return piece, []
        self._held += piece
        return self._between_marks(last) if self.form == HERMES else self._whole(last)

    def _between_marks(self, last: bool) -> tuple[str, list[dict[str, Any]]]:
        text, found = "", []
        while True:
            before, there, behind = self._held.partition(CLOSE if self._inside else OPEN)
            if not there:
                break
            if not self._inside:
                text += before.rstrip()  # models put calls on lines of their own
                self._space = before[len(before.rstrip()) :]
            elif (call := self._read(before)) is not None:
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

    def _whole(self, last: bool) -> tuple[str, list[dict[str, Any]]]:
        """Of an answer that is calls from its beginning on, or none."""
        assert self.form is not None
        if not last and _may_call(self._held, self.form, self.names):
            return "", []
        text, self._held = self._held, ""
        values = _listed(text, self.form, self.names) if last else None
        if values is None:
            self.form = None  # the rest is text
            return text, []
        return "", [self._made(name, arguments) for name, arguments in values]

    def _read(self, text: str) -> dict[str, Any] | None:
        """A call between marks; None for what is none."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            return None
        return self._made(value["name"], value.get("arguments", {}))

    def _made(self, name: str, arguments: Any) -> dict[str, Any]:
        """A call in OpenAI's form. Mistral's templates want names of calls of nine letters and digits."""
        told = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        identifier = secrets.token_hex(5)[:9] if self.form == MISTRAL else f"call_{secrets.token_hex(12)}"
        call = {
            "index": len(self.calls),
            "id": identifier,
            "type": "function",
            "function": {"name": name, "arguments": told},
        }
        self.calls.append(call)
        return call


def _may_call(text: str, form: str, names: Sequence[str]) -> bool:
    """Whether an answer that begins so may yet be calls."""
    mark, begun = MARKS[form], text.lstrip()
    if begun.startswith(mark):
        return True
    if form == MISTRAL and any(begun.startswith(name) or name.startswith(begun) for name in names):
        return True
    return not begun or mark.startswith(begun) or begun[0] == ("{" if form == LLAMA else "[")


def _listed(text: str, form: str, names: Sequence[str]) -> list[tuple[str, Any]] | None:
    """Names and arguments of the calls that an answer is; None where it is none."""
    found: list[tuple[str, Any]] = []
    rest = text.strip().removeprefix(MARKS[form]).lstrip()
    try:
        if form == LLAMA:
            while rest:
                value, end = json.JSONDecoder().raw_decode(rest)
                found.append((value["name"], value["parameters"] if "parameters" in value else value["arguments"]))
                rest = rest[end:].lstrip().removeprefix(";").lstrip()
        elif rest.startswith("["):
            found = [(value["name"], value["arguments"]) for value in json.loads(rest)]
        else:
            called = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
            head = re.compile(rf"(?:\[TOOL_CALLS\])?\s*({called})(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*(?={{)")
            while rest:
                if (match := head.match(rest)) is None:
                    return None
                arguments, end = json.JSONDecoder().raw_decode(rest, match.end())
                found.append((match[1], arguments))
                rest = rest[end:].lstrip()
    except (ValueError, RecursionError, TypeError, KeyError):
        return None
    return found if found and all(name in names and isinstance(arguments, dict) for name, arguments in found) else None


def _beginning(text: str) -> int:
    """Length of the longest end of a text that may begin a call, with the space before it."""
    mark = next((size for size in range(min(len(text), len(OPEN) - 1), 0, -1) if OPEN.startswith(text[-size:])), 0)
    before = text[: len(text) - mark]
    return mark + len(before) - len(before.rstrip())
