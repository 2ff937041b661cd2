"""/v1/completions: texts, or token ids, that the model goes on with, translates or sums up."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from onnxport.serve.errors import refused, unsupported
from onnxport.serve.fields import Fields, named
from onnxport.serve.models import Served
from onnxport.serve.openai.answers import REASONS, Prompts, generated, head, streamed, usage
from onnxport.serve.openai.logprobs import Spelling, Tokens
from onnxport.serve.openai.options import Search, search
from onnxport.serve.sending import Events, Reply, to_json
from onnxport.serve.service import Call

KIND = "text_completion"


async def completions(call: Call) -> Reply | Events:
    """Answer a request for completions."""
    fields = call.fields()
    served = call.model(fields.required("model", str))
    prompts = inputs(fields)
    asked = search(fields, call.limits)
    if most := fields.whole("logprobs", 0, 5):
        asked.options["top_logprobs"] = most
    logprobs = most is not None
    if (best := fields.whole("best_of", 1)) not in (None, asked.n):
        raise unsupported("best_of", f"it is {best}, expected n ({asked.n})")
    if fields.take("echo", bool):
        raise unsupported("echo", "answers come without their prompts")
    if fields.take("suffix", str):
        raise unsupported("suffix", "the model writes on, it does not fill in")
    fields.finish()
    found = await counted(call, served, prompts, asked)
    found.check(call, served, asked, "prompt")
    if asked.stream:
        return Events(_events(call, served, found, asked, logprobs))
    results = await generated(call, served, found, asked)
    choices = []
    for place, result in enumerate(results):
        told = Spelling(served.model).completion(Tokens.of(result), True) if logprobs else None
        choices.append({"index": place, "text": result.text, "logprobs": told, "finish_reason": REASONS[result.finish_reason]})
    return to_json({**head(KIND, "cmpl", served), "choices": choices, "usage": usage(found, results)})


def inputs(fields: Fields) -> list[str | list[int]]:
    """The prompts: a text, token ids, or a list of either. ApiError."""
    value: Any = fields.required("prompt", str, list)
    if isinstance(value, str) or (value and all(map(_is_id, value))):
        return [value]
    if value and (
        all(isinstance(one, str) for one in value) or all(isinstance(one, list) and one and all(map(_is_id, one)) for one in value)
    ):
        found: list[str | list[int]] = value
        return found
    raise refused(f"prompt is {named(value)} of something else, expected a text, token ids, or a list of either", "prompt")


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_ids(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_id, value))


async def counted(call: Call, served: Served, prompts: list[str | list[int]], asked: Search) -> Prompts:
    """Prompts as token ids, so that they are read once; those whose language is named stay texts. ApiError: more than a request may have.

    Errors: those of the tokenizer; UsageError: the model does not generate.
    """
    served.model.generating()
    call.limits.check_rows(len(prompts) * asked.n, "answers", "n" if asked.n > 1 else "prompt")
    texts = [one for one in prompts if isinstance(one, str) and one]
    call.limits.check_texts(texts, "prompt")
    read = iter(await served.model.atokenize_all(texts) if texts else [])
    ids = [next(read) if isinstance(one, str) and one else one for one in prompts]
    return Prompts(prompts if "src_lang" in asked.options else ids, [len(one) for one in ids])


async def _events(call: Call, served: Served, prompts: Prompts, asked: Search, logprobs: bool) -> AsyncGenerator[dict[str, Any], None]:
    common, results = head(KIND, "cmpl", served), []
    more = {"usage": None} if asked.usage else {}
    spelling = [Spelling(served.model) for _ in range(len(prompts.inputs) * asked.n)]
    async with aclosing(streamed(call, served, prompts, asked)) as pieces:
        async for piece in pieces:
            last = piece.result is not None
            told = spelling[piece.choice].completion(piece.new, last) if logprobs else None
            reason = None
            if piece.result is not None:
                results.append(piece.result)
                reason = REASONS[piece.result.finish_reason]
            choice = {"index": piece.choice, "text": piece.text, "logprobs": told, "finish_reason": reason}
            yield {**common, "choices": [choice], **more}
    if asked.usage:
        yield {**common, "choices": [], "usage": usage(prompts, results)}
