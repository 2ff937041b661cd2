"""/v1/chat/completions: the next answer of a conversation, by the model's own chat template."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from onnxport.serve.errors import refused, unsupported
from onnxport.serve.models import Served
from onnxport.serve.openai.answers import REASONS, Prompts, generated, head, streamed, usage
from onnxport.serve.openai.logprobs import Spelling, Tokens
from onnxport.serve.openai.messages import messages
from onnxport.serve.openai.options import Search, search
from onnxport.serve.openai.tools import Calls, tools
from onnxport.serve.sending import Events, Reply, to_json
from onnxport.serve.service import Call


async def chat(call: Call) -> Reply | Events:
    """Answer a request for the next message of a chat."""
    fields = call.fields()
    served = call.model(fields.required("model", str))
    talk = messages(fields.required("messages", list), served)
    asked = search(fields, call.limits, ("max_tokens", "max_completion_tokens"))
    logprobs = fields.take("logprobs", bool, default=False)
    if most := fields.whole("top_logprobs", 0, 20):
        if not logprobs:
            raise refused("top_logprobs goes with logprobs: true", "top_logprobs")
        asked.options["top_logprobs"] = most
    callable_tools = tools(fields, served)
    if fields.take("modalities", list, default=["text"]) != ["text"]:
        raise unsupported("modalities", "models of this server write text")
    fields.finish()
    call.limits.check_rows(asked.n, "answers", "n")
    call.limits.check_texts((one["content"] for one in talk), "messages")
    prompt = await served.model.aprompt(talk, tools=callable_tools or None)
    found = Prompts([prompt], [len(prompt)])
    found.check(call, served, asked, "messages")
    if asked.stream:
        return Events(_events(call, served, found, asked, logprobs, callable_tools))
    results = await generated(call, served, found, asked)
    choices = []
    for place, result in enumerate(results):
        calls = Calls.of(served, callable_tools)
        text, _ = calls.push(result.text or "", last=True)
        message: dict[str, Any] = {"role": "assistant", "content": text or None if calls.calls else text, "refusal": None}
        if calls.calls:
            message["tool_calls"] = [{name: item for name, item in one.items() if name != "index"} for one in calls.calls]
        told = Spelling(served.model).chat(Tokens.of(result), True) if logprobs else None
        choices.append({"index": place, "message": message, "logprobs": told, "finish_reason": _reason(result.finish_reason, calls)})
    return to_json({**head("chat.completion", "chatcmpl", served), "choices": choices, "usage": usage(found, results)})


def _reason(reason: str, calls: Calls) -> str:
    return "tool_calls" if calls.calls and REASONS[reason] == "stop" else REASONS[reason]


async def _events(
    call: Call, served: Served, prompts: Prompts, asked: Search, logprobs: bool, given: list[dict[str, Any]]
) -> AsyncGenerator[dict[str, Any], None]:
    common, results = head("chat.completion.chunk", "chatcmpl", served), []
    more = {"usage": None} if asked.usage else {}
    spelling = [Spelling(served.model) for _ in range(asked.n)]
    calls = [Calls.of(served, given) for _ in range(asked.n)]

    def event(place: int, delta: dict[str, Any], told: object = None, reason: str | None = None) -> dict[str, Any]:
        return {**common, "choices": [{"index": place, "delta": delta, "logprobs": told, "finish_reason": reason}], **more}

    begun: set[int] = set()
    async with aclosing(streamed(call, served, prompts, asked)) as pieces:
        async for piece in pieces:
            place, last = piece.choice, piece.result is not None
            if place not in begun:
                begun.add(place)
                yield event(place, {"role": "assistant", "content": "", "refusal": None})
            told = spelling[place].chat(piece.new, last) if logprobs else None
            text, found = calls[place].push(piece.text, last)
            delta = ({"content": text} if text else {}) | ({"tool_calls": found} if found else {})
            if delta or (told and told["content"]):
                yield event(place, delta, told)
            if piece.result is not None:
                results.append(piece.result)
                yield event(place, {}, None, _reason(piece.result.finish_reason, calls[place]))
    if asked.usage:
        yield {**common, "choices": [], "usage": usage(prompts, results)}
