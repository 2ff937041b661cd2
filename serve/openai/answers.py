"""What the answers to completions and chats have in common: prompts that are counted, generations, usage, the reasons why they end."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from onnxport import __version__
from onnxport.runtime import Generation
from onnxport.serve.models import Served
from onnxport.serve.openai.options import Search
from onnxport.serve.openai.streams import Piece, merged
from onnxport.serve.service import Call

REASONS = {"eos": "stop", "stop": "stop", "empty": "stop", "length": "length"}


@dataclass(frozen=True)
class Prompts:
    """What is answered: token ids, or texts where the runtime has to add languages to them; tokens: of each."""

    inputs: Sequence[str | Sequence[int]]
    tokens: Sequence[int]

    def check(self, call: Call, served: Served, search: Search, param: str) -> None:
        """ApiError for more tokens than a request may have."""
        new = served.new_tokens(search.options.get("max_new_tokens"))
        call.limits.check_tokens((sum(self.tokens) + len(self.tokens) * new) * search.n, param)


async def generated(call: Call, served: Served, prompts: Prompts, search: Search) -> list[Generation]:
    """`n` answers of each prompt, prompt by prompt."""
    inputs = [prompt for prompt in prompts.inputs for _ in range(search.n)]
    results = await served.model.agenerate(inputs, **search.options)
    call.count(sum(prompts.tokens), sum(len(one.tokens) for one in results), sum(one.cached_tokens for one in results))
    return results


def streamed(call: Call, served: Served, prompts: Prompts, search: Search) -> AsyncGenerator[Piece, None]:
    """Pieces of `n` answers of each prompt; choice: its place among all of them."""
    inputs = [prompt for prompt in prompts.inputs for _ in range(search.n)]
    streams = [served.model.astream(prompt, **search.seed(place % search.n)) for place, prompt in enumerate(inputs)]
    call.count(sum(prompts.tokens))

    def count(piece: Piece) -> None:
        call.count(0, len(piece.new.tokens), 0 if piece.result is None else piece.result.cached_tokens)

    return merged(streams, count)


def usage(prompts: Prompts, results: Sequence[Generation]) -> dict[str, Any]:
    """Tokens that a request took."""
    read, made = sum(prompts.tokens), sum(len(one.tokens) for one in results)
    cached = min(read, sum(one.cached_tokens for one in results))  # a prompt with several answers is counted once
    return {
        "prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made, "prompt_tokens_details": {"cached_tokens": cached}
    }  # fmt: skip


def head(kind: str, identifier: str, served: Served) -> dict[str, Any]:
    """The members that an answer and its events begin with."""
    return {
        "id": f"{identifier}-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": served.name,
        "system_fingerprint": f"onnxport-{__version__}-{served.model.precision}",
    }  # fmt: skip
