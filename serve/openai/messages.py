"""Messages of OpenAI's chats, as chat templates read them."""

from __future__ import annotations

import json
from typing import Any

from onnxport.serve.errors import refused, unsupported
from onnxport.serve.fields import Fields, named
from onnxport.serve.models import Served

ROLES = ("system", "developer", "user", "assistant", "tool")


def messages(value: list[object], served: Served) -> list[dict[str, Any]]:
    """Each message with its role and its text; what calls tools keeps its calls. ApiError."""
    if not value:
        raise refused("messages is empty, expected one message or more", "messages")
    return [_message(Fields(one, f"messages[{place}]"), f"messages[{place}]", served) for place, one in enumerate(value)]


def _message(fields: Fields, where: str, served: Served) -> dict[str, Any]:
    role = fields.required("role", str)
    if role not in ROLES:
        raise refused(f"{where}.role is {role!r:.60}, expected {', '.join(ROLES)}", "messages")
    if role == "developer" and role not in served.template:  # OpenAI's newer name; templates pass over roles that they do not know
        role = "system"
    message: dict[str, Any] = {"role": role}
    calls = fields.take("tool_calls", list)
    content = fields.take("content", str, list)
    if content is None and not calls:
        raise refused(f"{where} has no content, expected a text", "messages")
    message["content"] = _text(content, where)
    if calls:
        message["tool_calls"] = [_call(Fields(one, f"{where}.tool_calls[{place}]")) for place, one in enumerate(calls)]
    for name in ("name", "tool_call_id", "reasoning_content"):
        if (text := fields.take(name, str)) is not None:
            message[name] = text
    fields.skip(("refusal", "annotations"))
    if fields.take("audio", dict):
        raise unsupported("audio", "models of this server read text")
    fields.finish()
    return message


def _text(content: str | list[object] | None, where: str) -> str:
    """The text of a message; of parts, all of them joined."""
    if not isinstance(content, list):
        return content or ""
    texts = []
    for place, part in enumerate(content):
        fields = Fields(part, f"{where}.content[{place}]")
        kind = fields.required("type", str)
        if kind != "text":
            raise refused(f"{where}.content[{place}] is of type {kind!r:.30}, and models of this server read text", "messages")
        texts.append(fields.required("text", str))
        fields.finish()
    return "".join(texts)


def _call(fields: Fields) -> dict[str, Any]:
    """A call as templates read it: its arguments are an object, where OpenAI has the text of one."""
    fields.take("index", int)
    kind, identifier = fields.take("type", str, default="function"), fields.take("id", str)
    function = Fields(fields.required("function", dict), "function")
    fields.finish()
    name, arguments = function.required("name", str), function.take("arguments", str, dict, default="{}")
    function.finish()
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            raise refused(f"the arguments of the call of {name!r:.60} are not JSON, expected the text of an object", "messages") from None
    if not isinstance(arguments, dict):
        raise refused(f"the arguments of the call of {name!r:.60} are {named(arguments)}, expected an object", "messages")
    return {"id": identifier, "type": kind, "function": {"name": name, "arguments": arguments}}
