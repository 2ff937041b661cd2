"""Calls of tools: given to the template, found in answers whole or in pieces, refused where a template has another form."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from openai import BadRequestError, OpenAI

from onnxport.runtime import Generation, Model
from onnxport.runtime.tasks.chat import ChatTemplate
from onnxport.serve.openai.tools import HERMES, LLAMA, MISTRAL, Calls, form

TOOL: Any = {"type": "function", "function": {"name": "w9", "description": "d", "parameters": {"type": "object", "properties": {}}}}
CALL = '<tool_call>\n{"name": "w9", "arguments": {"to": "w5"}}\n</tool_call>'
TALK: list[Any] = [{"role": "user", "content": "w5"}]
Find = Callable[[str], Model]


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("text", "kept", "names"),
    [
        ("no call < at all", "no call < at all", []),
        (f"first\n{CALL}", "first", ["w9"]),
        (f"{CALL}\n{CALL}\n", "", ["w9", "w9"]),
        (f"a {CALL} b", "a b", ["w9"]),
        ("<tool_call>not json</tool_call>", "<tool_call>not json</tool_call>", []),
        ("<tool_call>[1]</tool_call>", "<tool_call>[1]</tool_call>", []),
        ('x <tool_call>{"name": "w9"', 'x <tool_call>{"name": "w9"', []),
        ("ends with <tool", "ends with <tool", []),
    ],
)
def test_calls_are_found_in_pieces_of_any_size(text: str, kept: str, names: list[str], size: int) -> None:
    found, told = pushed(Calls(HERMES), text, size)
    assert found == kept and [one["function"]["name"] for one in told] == names
    assert [one["index"] for one in told] == list(range(len(names)))


def pushed(calls: Calls, text: str, size: int) -> tuple[str, list[dict[str, Any]]]:
    """The text and the calls of an answer that comes in pieces."""
    found, told = "", []
    for start in range(0, len(text), size):
        piece, some = calls.push(text[start : start + size])
        found += piece
        told += some
    piece, some = calls.push("", last=True)
    return found + piece, told + some


# Templates in the form of the families' own: what they show of earlier calls is what their models write.
FAMILIES = {
    LLAMA: (
        "{% for m in messages %}{% if 'tool_calls' in m %}"
        "{% if m.tool_calls | length > 1 %}{{ raise_exception('one call at once') }}{% endif %}"
        "{% set call = m.tool_calls[0].function %}<|start|>assistant<|end|>{{ '{\"name\": \"' + call.name + '\", ' }}"
        "{{ '\"parameters\": ' }}{{ call.arguments | tojson }}{{ '}' }}<|eot_id|>"
        "{% elif m.role == 'tool' %}<|start|>ipython<|end|>{{ m.content | tojson }}<|eot_id|>"
        "{% else %}<|start|>{{ m.role }}<|end|>{{ tools | tojson }}{{ m.content }}<|eot_id|>{% endif %}{% endfor %}"
    ),
    MISTRAL: (
        "{% for m in messages %}{% if m.tool_calls is defined %}[TOOL_CALLS] ["
        "{% for call in m.tool_calls %}{% set out = call.function | tojson %}"
        "{{ out[:-1] }}{% if call.id | length != 9 %}{{ raise_exception('ids have nine letters') }}{% endif %}"
        "{{ ', \"id\": \"' + call.id + '\"}' }}{{ ']</s>' if loop.last else ', ' }}{% endfor %}"
        "{% elif m.role == 'tool' %}[TOOL_RESULTS] {{ m.content }}[/TOOL_RESULTS]"
        "{% else %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS][INST] {{ m.content }}[/INST]{% endif %}{% endfor %}"
    ),
}


@pytest.mark.parametrize("size", [1, 4, 1000])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_family_writes_is_read_and_given_back_to_its_template(family: str, size: int) -> None:
    template = FAMILIES[family]
    assert form(template) == family
    talk: list[dict[str, Any]] = [{"role": "user", "content": "w5"}]
    asked = {"name": "w9", "arguments": {"to": "w5", "deep": {"a": [1, "}"]}}}
    count = 1 if family == LLAMA else 2
    history = [{"id": "abcdef012", "type": "function", "function": asked}] * count
    rendered = ChatTemplate(template, {}).render([*talk, {"role": "assistant", "content": "", "tool_calls": history}], tools=[TOOL])
    answer = rendered.partition("assistant<|end|>" if family == LLAMA else "[/INST]")[2]
    answer = answer.removesuffix("<|eot_id|>").removesuffix("</s>")
    for written in (answer, answer.removeprefix("[TOOL_CALLS]"), f" {answer}\n"):  # the mark may be a special token, which is no text
        text, calls = pushed(Calls(family, ["w9", "w"]), written, size)
        assert text == "" and [json.loads(one["function"]["arguments"]) for one in calls] == [asked["arguments"]] * count
        again = [{"id": one["id"], "type": "function", "function": asked} for one in calls]
        ChatTemplate(template, {}).render([*talk, {"role": "assistant", "content": "", "tool_calls": again}], tools=[TOOL])


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize(
    ("family", "text", "names"),
    [
        (LLAMA, '<|python_tag|>{"name": "w9", "parameters": {}}; {"name": "w5", "parameters": {}}', ["w9", "w5"]),
        (MISTRAL, '[TOOL_CALLS]w9[ARGS]{"to": 1}[TOOL_CALLS]w5[CALL_ID]abc123def[ARGS]{}', ["w9", "w5"]),
        (MISTRAL, 'w9{"to": 1}w5{}', ["w9", "w5"]),
        *(
            (family, text, [])
            for family in FAMILIES
            for text in ("no call", "w9 is a word", '{"name": "other", "parameters": {}}', "[1, 2]", "", "{", "[")
        ),
        *(
            (family, text, [])
            for family in FAMILIES
            for text in ('{"name": "w9"}', '[{"name": "w9", "arguments": "x"}]', '{"name": "w9", "parameters": {}')
        ),
    ],
)
def test_answers_that_are_calls_or_none(family: str, text: str, names: list[str], size: int) -> None:
    found, calls = pushed(Calls(family, ["w9", "w5"]), text, size)
    assert found == ("" if names else text) and [one["function"]["name"] for one in calls] == names


def test_text_is_not_looked_at_without_tools() -> None:
    assert Calls(None).push(CALL) == (CALL, [])


def test_tools_reach_the_template(client: OpenAI, model: Find) -> None:
    function = {"name": "f", "arguments": '{"to": "w7"}'}
    talk = [*TALK, {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": function}]}]
    talk.append({"role": "tool", "tool_call_id": "1", "content": "w8"})
    found = client.chat.completions.create(model="chat", messages=talk, tools=[TOOL], max_tokens=3)
    told = [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"to": "w7"}}}]}]
    prompt = model("chat").prompt([*TALK, *told, {"role": "tool", "content": "w8"}], tools=[TOOL])
    assert found.choices[0].message.content == model("chat").generate([prompt], max_new_tokens=3)[0].text
    assert found.usage is not None and found.usage.prompt_tokens == len(prompt)
    without = client.chat.completions.create(model="chat", messages=talk, tools=[TOOL], tool_choice="none", max_tokens=3)
    assert without.usage is not None and without.usage.prompt_tokens == len(prompt) - 1


def test_calls_are_answered_in_openais_form(client: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    async def answered(self: Model, inputs: list[Any], **options: Any) -> list[Generation]:
        return [Generation(f"well {CALL}", [5], -1.0, [-1.0], "eos")]

    monkeypatch.setattr(Model, "agenerate", answered)
    (choice,) = client.chat.completions.create(model="chat", messages=TALK, tools=[TOOL]).choices
    assert choice.finish_reason == "tool_calls" and choice.message.content == "well" and choice.message.tool_calls
    call: Any = choice.message.tool_calls[0]
    assert (call.function.name, call.function.arguments, call.type) == ("w9", '{"to": "w5"}', "function") and call.id.startswith("call_")
    (plain,) = client.chat.completions.create(model="chat", messages=TALK).choices
    assert plain.message.content == f"well {CALL}" and plain.finish_reason == "stop"


class Pieces:
    """A stream of pieces, in place of a model's."""

    def __init__(self, text: str) -> None:
        self._pieces = iter([text[start : start + 5] for start in range(0, len(text), 5)])
        self.so_far = None
        self.result = Generation(text, [5, 6], -2.0, [-1.0, -1.0], "eos")

    async def __aenter__(self) -> Pieces:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def __aiter__(self) -> Pieces:
        return self

    async def __anext__(self) -> str:
        if (piece := next(self._pieces, None)) is None:
            raise StopAsyncIteration
        return piece


def test_calls_are_streamed_whole(client: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "astream", lambda self, prompt, **options: Pieces(f"well {CALL}"))
    events = list(client.chat.completions.create(model="chat", messages=TALK, tools=[TOOL], stream=True))
    deltas = [event.choices[0].delta for event in events]
    assert "".join(delta.content or "" for delta in deltas) == "well"
    (call,) = [call for delta in deltas for call in delta.tool_calls or []]
    assert call.index == 0 and call.function is not None and call.function.arguments == '{"to": "w5"}'
    assert events[-1].choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("options", "param", "part"),
    [
        ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice", "cannot be forced"),
        ({"tools": [TOOL], "parallel_tool_calls": False}, "parallel_tool_calls", "held to one"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "type", "expected 'function'"),
        ({"tools": [{"type": "function", "function": {"name": "x", "strict": True}}]}, "strict", "as far as the model does"),
        ({"extra_body": {"functions": []}}, "functions", "use tools"),
    ],
)
def test_other_ways_to_call_are_refused_by_name(options: dict[str, Any], param: str, part: str, client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match=part) as caught:
        client.chat.completions.create(model="chat", messages=TALK, **options)
    assert caught.value.param == param


def test_templates_without_tools_are_named(models: Any) -> None:
    from onnxport.serve.errors import ApiError
    from onnxport.serve.fields import Fields
    from onnxport.serve.openai.tools import tools

    class Served:
        name, template = "other", "{{ messages }}"

    other = "in a form that this server does not read"
    for template, part in (("{{ messages }}", "knows no tools"), ("{{ tools }}", other), ("{{ tools }}<tool_call><function=", other)):
        Served.template = template
        with pytest.raises(ApiError, match=part):
            tools(Fields({"tools": [TOOL]}), Served)  # type: ignore[arg-type]
