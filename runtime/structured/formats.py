"""Forms that answers may be asked to have, as `response_format` names them, and the grammars that llguidance makes of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from onnxport.errors import UsageError
from onnxport.extras import require

# What stands beside "type", and the key of the form itself; OpenAI's {"type": "text"} asks for nothing.
FORMS = {"text": None, "json_object": None, "json_schema": "json_schema", "regex": "regex", "grammar": "grammar"}
OPENAI = {"name", "description", "schema", "strict"}  # keys beside a schema in OpenAI's form
# Of JSON, between its parts: a model that is not sure may go on with space for ever where any number of them may come.
SPACE = {"whitespace_pattern": r"\n?[ ]{0,20}"}
MANUAL = "https://github.com/guidance-ai/llguidance"
LONGEST = 200  # characters of a reason
PICTURE = re.compile(r"\d+ \|")  # a line of the grammar with its number


def llguidance(purpose: str = "response_format") -> Any:
    """The library. UsageError names the extra where it is not installed."""
    return require("llguidance", "structured", purpose)


def grammar(form: object) -> str | None:
    """The grammar of a response_format as an entry of llguidance's lists, in JSON; None where any text may come. UsageError."""
    if form is None:
        return None
    if not isinstance(form, Mapping) or not isinstance(form.get("type"), str) or form["type"] not in FORMS:
        found = form.get("type") if isinstance(form, Mapping) else form
        raise UsageError(f'response_format is {found!r:.60}, expected an object with "type": one of {", ".join(FORMS)}')
    kind, key = form["type"], FORMS[form["type"]]
    if unknown := sorted(map(str, set(form) - {"type", key})):
        raise UsageError(f"response_format of type {kind} has {unknown[0]!r:.60}, expected {key or 'nothing'} beside its type")
    if key is not None and key not in form:
        raise UsageError(f"response_format of type {kind} has no {key!r}, expected it beside its type")
    if kind == "text":
        return None
    try:
        return json.dumps(_entry(kind, form.get(key)))
    except (TypeError, ValueError, RecursionError) as error:  # no JSON
        raise error if isinstance(error, UsageError) else refusal(str(error)) from None


def whole(entry: str, after_space: bool, forcing: bool) -> str:
    """All of a grammar for llguidance.

    after_space: a space may stand before it, which the text of an answer does not have. forcing: where only one text can follow, its usual
    tokens alone may come; it takes a tokenizer that can write any text.
    """
    grammars = [json.loads(entry) | {"name": "answer"}]
    if after_space or not forcing:
        free, space = "" if forcing else '%llguidance {"no_forcing": true}\n', '" "?' if after_space else ""
        grammars.insert(0, {"lark_grammar": f"{free}start: {space} @answer"})
    return json.dumps({"grammars": grammars})


def _entry(kind: str, value: Any) -> dict[str, Any]:
    matcher = llguidance().LLMatcher
    if kind == "json_object" or kind == "json_schema":
        schema = {"type": "object"} if kind == "json_object" else _schema(value)
        (entry,) = json.loads(matcher.grammar_from_json_schema(json.dumps(schema), defaults=SPACE))["grammars"]
        return dict(entry)
    if not isinstance(value, str):
        raise UsageError(f"response_format.{kind} is {type(value).__name__}, expected a text")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise UsageError(f"response_format.{kind} holds a lone surrogate, expected valid Unicode")
    if kind == "regex":
        (entry,) = json.loads(matcher.grammar_from_regex(value))["grammars"]
        return dict(entry)
    return {"lark_grammar": value}


def _schema(value: Any) -> Any:
    """The schema itself: what is given, or what stands in it in OpenAI's form."""
    if isinstance(value, Mapping) and "schema" in value and set(value) <= OPENAI:
        value = value["schema"]
    if not isinstance(value, Mapping):
        raise UsageError(f"response_format.json_schema is {type(value).__name__}, expected a JSON schema (an object)")
    return value


def refusal(reason: str) -> UsageError:
    """One line of what the library says of a grammar; pictures of the place are left out."""
    lines = [line.strip() for line in reason.splitlines()]
    told = " ".join(line for line in lines if line.strip("^| ") and not PICTURE.match(line))
    told = told if len(told) <= LONGEST else told[:LONGEST] + "..."
    return UsageError(f"response_format cannot be used ({told}); change it, see {MANUAL} for what is known")
