"""Chat: conversations become prompts by the chat template that came with the model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from onnxport.errors import BundleError, OnnxportError, TextError, one_line
from onnxport.extras import require
from onnxport.runtime.tokenizer import LONGEST

Message = Mapping[str, Any]


class ChatTemplate:
    """A Jinja template, run in Jinja's sandbox with the names that transformers gives its templates.

    Those are `messages`, `add_generation_prompt`, the special tokens, `raise_exception`, `strftime_now`, the filter `tojson`, loop controls
    and the block `generation` (transformers, utils/chat_template_utils.py). Templates come from strangers: they can change nothing.
    """

    def __init__(self, template: str, tokens: Mapping[str, str]) -> None:
        require("jinja2", "chat", "a chat")
        from jinja2 import TemplateError, nodes
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        class Generation(Extension):
            """The block that marks answers for training: here it is what it holds."""

            tags = {"generation"}

            def parse(self, parser: Any) -> Any:
                line = next(parser.stream).lineno
                return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

        def refuse(message: str) -> None:
            raise TemplateError(message)

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": refuse, "strftime_now": lambda pattern: datetime.now().strftime(pattern)}
        self._tokens, self._tools = dict(tokens), "tools" in template
        try:
            self._template = environment.from_string(template)
        except TemplateError as error:
            raise BundleError(f"the chat template cannot be used ({one_line(error, 200)}); export the model again with another") from None

    @classmethod
    def parse(cls, content: bytes, tokens: Mapping[str, str]) -> ChatTemplate:
        """The template in a file's content. BundleError where it cannot be used, UsageError without jinja2."""
        try:
            return cls(content.decode("utf-8"), tokens)
        except UnicodeDecodeError as error:
            raise BundleError(f"the chat template is not UTF-8 ({one_line(error, 200)}); export the model again") from None

    def render(
        self,
        messages: Sequence[Message],
        between: Callable[[], None] = lambda: None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final: bool = False,
    ) -> str:
        """The prompt for the next answer; `between` is called between its pieces, to end it early. tools: what the model may call.

        continue_final: the prompt ends with the last message, so that the answer goes on with it.
        TextError: no messages, tools where the template has none, what the template refuses, or what is longer than any text may be.
        """
        check(messages)
        if tools and not self._tools:
            raise TextError("the chat template of this model knows no tools; leave them out")
        values = {
            "messages": [dict(message) for message in messages],
            "tools": [dict(tool) for tool in tools] if tools else None,
            "documents": None,
            "add_generation_prompt": not continue_final,
        }
        pieces, size = [], 0
        try:
            for piece in self._template.generate(**values, **self._tokens):
                between()
                pieces.append(piece)
                size += len(piece)
                if size > LONGEST:
                    raise TextError(f"the chat template gives more than {LONGEST} characters; shorten the messages")
            return _until_last("".join(pieces), messages[-1]["content"]) if continue_final else "".join(pieces)
        except OnnxportError:
            raise
        except Exception as error:  # a template can fail in any way
            raise TextError(f"the chat template refuses these messages ({one_line(error, 200)}); change them, or use generate") from None


def _until_last(prompt: str, content: str) -> str:
    """A prompt without what the template puts behind the last message; spaces at its ends may be the template's to leave out."""
    core = content.strip()
    place = prompt.rfind(core)
    if not core or place < 0:
        raise TextError("the chat template does not write the last message as it is, so that no answer can go on with it; leave it out")
    whole = content.lstrip()
    return prompt[: place + (len(whole) if prompt.startswith(whole, place) else len(core))]


def check(messages: object) -> None:
    """TextError unless these are messages with a role and a content each."""
    if not isinstance(messages, (list, tuple)) or not messages:
        raise TextError(f"found {type(messages).__name__ if messages else 'no messages'}, expected a list of messages")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise TextError(f"message {i} is {type(message).__name__}, expected an object with role and content")
        if not isinstance(message.get("role"), str) or "content" not in message:
            raise TextError(f"message {i} has {', '.join(map(str, message)) or 'nothing'}, expected role and content")
        if not isinstance(message["content"], str):
            raise TextError(f"message {i}: content is {type(message['content']).__name__}, expected text")


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
