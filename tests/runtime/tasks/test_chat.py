"""Chats: prompts as transformers renders them, answers as `generate` gives them, refusals."""

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from onnxport.errors import BundleError, GenerationTimeout, TextError, UsageError
from onnxport.runtime import Model, load
from onnxport.runtime.tasks.chat import ChatTemplate
from support import tiny_bundles

TEMPLATE = """{%- if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] %}{% set messages = messages[1:] %}{% endif %}
{{- bos_token }}{{ first | default('w30') }}
{%- for message in messages %}
    {%- if loop.index0 > 5 %}{% break %}{% endif %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
    {%- if message['role'] == 'user' %}{{ ' w20 ' + message['content'] | trim }}
    {%- else %}{% generation %}{{ ' w21 ' + message['content'] + ' </s>' }}{% endgeneration %}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ ' w22' }}{% endif %}"""
TOKENS = {"bos_token": "<s> "}
TALK = [
    {"role": "system", "content": "w31 w32"},
    {"role": "user", "content": " w5 w6 "},
    {"role": "assistant", "content": "w7"},
    {"role": "user", "content": "w8"},
]


def with_chat(source: Path, out: Path, template: str = TEMPLATE, tokens: object = TOKENS) -> Path:
    return tiny_bundles.with_chat(source, out, template, tokens)


@pytest.fixture(scope="module")
def model(causal_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(with_chat(causal_bundle, tmp_path_factory.mktemp("chat") / "b"), threads=1)


@pytest.mark.parametrize("talk", [TALK, TALK[:2], TALK[1:2], TALK[1:]])
def test_prompts_are_those_of_transformers(talk: list[dict[str, str]]) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    theirs, _ = render_jinja_template(conversations=[talk], chat_template=TEMPLATE, add_generation_prompt=True, **TOKENS)
    assert ChatTemplate(TEMPLATE, TOKENS).render(talk) == theirs[0]


@pytest.mark.parametrize(
    "part", ["{{ messages | tojson }}", "{{ {'ä': '<b>'} | tojson(indent=2) }}", "{{ strftime_now('%Y') }}", "{% if tools %}x{% endif %}"]
)
def test_what_templates_may_use(part: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    theirs, _ = render_jinja_template(conversations=[TALK], chat_template=part)
    assert ChatTemplate(part, {}).render(TALK) == theirs[0]


def test_a_chat_is_its_prompt_generated(model: Model) -> None:
    wanted = [1, 31, 32, 20, 5, 6, 21, 7, 2, 20, 8, 22]
    assert model.prompt(TALK) == wanted
    (found,) = model.chat(TALK, max_new_tokens=6)
    assert found == model.generate([wanted], max_new_tokens=6)[0]
    assert model.chat([TALK, TALK[:2]], max_new_tokens=6)[0].tokens == found.tokens
    pieces = model.stream(model.prompt(TALK), max_new_tokens=6)
    assert "".join(pieces) == found.text


@pytest.mark.parametrize(
    ("messages", "part"),
    [
        ([], "expected a list of messages"),
        ([[]], "no messages"),
        ([{"role": "user"}], "expected role and content"),
        ([{"role": "user", "content": 3}], "content is int"),
        ([{"role": "assistant", "content": "w5"}], "roles must alternate"),
        ([TALK, ["w5"]], "message 0 is str"),
        ([{"role": "user", "content": "\ud800"}], "surrogate"),
    ],
)
def test_bad_messages_are_told_in_a_line(model: Model, messages: Any, part: str) -> None:
    with pytest.raises(TextError) as caught:
        if messages:
            model.chat(messages)
        else:
            model.prompt(messages)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tools_reach_the_template_that_knows_them(model: Model) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    template = TEMPLATE + "{% if tools %}{{ tools | tojson }}{% endif %}"
    tools = [{"type": "function", "function": {"name": "w5", "parameters": {"type": "object", "properties": {}}}}]
    theirs, _ = render_jinja_template(conversations=[TALK], chat_template=template, tools=tools, add_generation_prompt=True, **TOKENS)
    assert ChatTemplate(template, TOKENS).render(TALK, tools=tools) == theirs[0]
    assert ChatTemplate(template, TOKENS).render(TALK, tools=[]) == ChatTemplate(TEMPLATE, TOKENS).render(TALK)
    with pytest.raises(TextError, match="knows no tools"):
        model.prompt(TALK, tools=tools)


@pytest.mark.parametrize(
    "template",
    ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ ().__class__.__base__.__subclasses__() }}", "{{ messages[0].x.y }}"],
)
def test_templates_reach_nothing(template: str) -> None:
    try:
        found = ChatTemplate(template, {}).render(TALK)
    except TextError as error:
        assert "refuses" in str(error)
    else:
        assert "class" not in found


def test_damaged_templates_are_refused(causal_bundle: Path, tmp_path: Path) -> None:
    with load(with_chat(causal_bundle, tmp_path / "a", "{% if %}"), threads=1) as model, pytest.raises(BundleError, match="chat template"):
        model.chat(TALK)
    file = with_chat(causal_bundle, tmp_path / "c") / "chat_template.jinja"
    with load(tmp_path / "c", threads=1) as model:
        file.write_bytes(b"\xff" * file.stat().st_size)
        model.chat(TALK)  # it was read with the model
    with load(tmp_path / "c", threads=1) as model, pytest.raises(BundleError, match="not UTF-8"):
        model.chat(TALK)
    with pytest.raises(BundleError, match="chat.tokens"):
        load(with_chat(causal_bundle, tmp_path / "b", tokens=3))


def test_what_is_missing_is_named(model: Model, causal_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no chat template"):
        causal_model.chat(TALK)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UsageError, match=r"onnxport\[chat\]"):
        ChatTemplate(TEMPLATE, TOKENS)


def test_a_timeout_names_the_callers_own_limit(model: Model) -> None:
    with pytest.raises(GenerationTimeout, match="more than 0.05 s"):
        model.chat(TALK, timeout=0.05, cancel=Slow())


class Slow:
    """A caller who never cancels, and is asked for longer than the limit once the prompts are there."""

    def is_set(self) -> bool:
        time.sleep(0.03)
        return False
