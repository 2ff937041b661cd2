"""What is asked for is checked before anything is decoded: one line says what is wrong."""

import sys
from typing import Any

import pytest

from onnxport.errors import UsageError
from onnxport.runtime import Model
from support import structured_bundles as made


def _deep(depth: int) -> dict[str, Any]:
    """A schema of arrays in arrays."""
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


BAD: list[tuple[Any, str]] = [
    ("json", "response_format is 'json', expected an object"),
    ({"type": "xml"}, "response_format is 'xml', expected"),
    ({"type": "regex"}, "response_format of type regex has no 'regex'"),
    ({"type": "json_object", "json_schema": {}}, "of type json_object has 'json_schema'"),
    ({"type": "json_schema", "json_schema": "x"}, "json_schema is str, expected a JSON schema"),
    ({"type": "json_schema", "json_schema": {"name": "x", "schema": 3}}, "json_schema is int"),
    ({"type": "json_schema", "json_schema": {"type": "strin"}}, "Invalid type: strin"),
    ({"type": "json_schema", "json_schema": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
    ({"type": "json_schema", "json_schema": {"$ref": "#/nowhere"}}, "nowhere"),
    ({"type": "json_schema", "json_schema": {"enum": [object()]}}, "not JSON serializable"),
    ({"type": "regex", "regex": "(a"}, "unclosed group"),
    ({"type": "regex", "regex": r"(?=a)b"}, "look-around"),
    ({"type": "regex", "regex": "((a{1000}){1000}){1000}"}, "too "),
    ({"type": "json_schema", "json_schema": _deep(100000)}, "recursion"),
    ({"type": "json_schema", "json_schema": _deep(500)}, "recursion limit"),
    ({"type": "json_schema", "json_schema": {"$ref": "http://example.com/x.json"}}, "does not fetch"),
    ({"type": "regex", "regex": 3}, "regex is int, expected a text"),
    ({"type": "regex", "regex": "a\ud800"}, "regex holds a lone surrogate"),
    ({"type": ["regex"]}, "response_format is ['regex'], expected an object"),
    ({"type": "grammar", "grammar": 'start: "a" | b'}, "unknown name"),
    ([made.JSON, made.JSON], "has 2 entries, expected one for each of 1 inputs"),
]


@pytest.mark.parametrize(("form", "message"), BAD, ids=[message for _, message in BAD])
def test_a_bad_format_is_refused_in_one_line(writers: dict[str, Model], form: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        writers["causal model"].generate("one", response_format=form)
    assert message in str(caught.value) and len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "schema", [made.SCHEMA, {"schema": made.SCHEMA}, {"name": "x", "strict": False, "description": "y", "schema": made.SCHEMA}]
)
def test_a_schema_comes_bare_or_as_openai_has_it(writers: dict[str, Model], schema: dict[str, Any]) -> None:
    form = {"type": "json_schema", "json_schema": schema}
    (answer,) = writers["causal model"].generate("one", response_format=form, max_new_tokens=200)
    assert made.fits(answer.text or "")


def test_without_the_library_its_extra_is_named(writers: dict[str, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UsageError, match=r"response_format needs llguidance .*pip install 'onnxport\[structured\]'"):
        writers["causal model"].generate("one", response_format=made.JSON)
    assert writers["causal model"].generate("one", response_format={"type": "text"}, max_new_tokens=2)[0].tokens


def test_long_texts_take_none(writers: dict[str, Model]) -> None:
    with pytest.raises(UsageError, match="long takes no n_best, stop, stop_token_ids or response_format"):
        writers["seq2seq model"].generate("one", long="segments", response_format=made.JSON)
