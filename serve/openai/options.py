"""How an answer is searched: OpenAI's parameters, and ours beside them, as options of the runtime."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from onnxport.serve.errors import refused, unsupported
from onnxport.serve.fields import Fields
from onnxport.serve.limits import Limits

HARMLESS = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
OURS = {  # options of the runtime, by their own names
    "top_k": int,
    "beam": int,
    "min_new_tokens": int,
    "repetition_penalty": float,
    "no_repeat_ngram": int,
    "length_penalty": float,
    "lookup": int,
    "src_lang": str,
    "tgt_lang": str,
}
NEUTRAL = {"presence_penalty": 0, "frequency_penalty": 0}
PENALTY = "this server has repetition_penalty"
STOPS = 16


@dataclass(frozen=True)
class Search:
    """How answers are searched. n: answers a prompt. usage: a stream ends with the tokens it took. options: the runtime's."""

    n: int = 1
    stream: bool = False
    usage: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def seed(self, choice: int) -> dict[str, Any]:
        """The options of one answer that is streamed: equal seeds would give equal answers."""
        seed = self.options.get("seed")
        return self.options if seed is None or not choice else {**self.options, "seed": seed + choice}


def search(fields: Fields, limits: Limits, length: tuple[str, ...] = ("max_tokens",)) -> Search:
    """The search that a request asks for. length: names of the most new tokens. ApiError."""
    options: dict[str, Any] = {}
    for name in length:
        if (most := fields.whole(name, 1)) is not None:
            options["max_new_tokens"] = most
    for name, kind in {"temperature": float, "top_p": float, "seed": int, **OURS}.items():
        if (value := fields.take(name, kind)) is not None:
            options[name] = value
    if (stop := _stop(fields)) is not None:
        options["stop"] = stop
    n = fields.whole("n", 1, limits.rows, 1) or 1
    stream = fields.take("stream", bool, default=False)
    usage = _usage(fields, stream)
    for name, neutral in NEUTRAL.items():
        if fields.take(name, float, default=neutral) != neutral:
            raise unsupported(name, PENALTY)
    options |= _of_tokens(fields)
    fields.skip(HARMLESS)
    return Search(n, stream, usage, options)


def _of_tokens(fields: Fields) -> dict[str, Any]:
    """Options that say which tokens may come, and which end an answer."""
    options: dict[str, Any] = {}
    if bias := fields.take("logit_bias", dict):
        options["logit_bias"] = {int(token) if token.isdecimal() else token: value for token, value in bias.items()}
    if (form := fields.take("response_format", dict)) is not None and form.get("type") != "text":
        options["response_format"] = form
    if (ids := fields.take("stop_token_ids", list)) is not None:
        options["stop_token_ids"] = ids
    return options


def _stop(fields: Fields) -> list[str] | None:
    value = fields.take("stop", str, list)
    if value is None or value == []:
        return None
    stops = [value] if isinstance(value, str) else fields.texts("stop", value)
    if len(stops) > STOPS or not all(stops):
        raise refused(f"stop is {value!r:.60}, expected at most {STOPS} texts that are not empty", "stop")
    return stops


def _usage(fields: Fields, stream: bool) -> bool:
    value = fields.take("stream_options", dict)
    if value is None:
        return False
    if not stream:
        raise refused("stream_options goes with stream: true", "stream_options")
    options = Fields(value, "stream_options")
    usage: bool = options.take("include_usage", bool, default=False)
    if options.take("include_obfuscation", bool, default=False):
        raise unsupported("include_obfuscation", "events are sent as they are")
    options.finish()
    return usage
