"""Several streams of a request as one, in the order in which their pieces come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from onnxport.runtime import Generation
from onnxport.runtime.asynchronous import AsyncStream
from onnxport.serve.errors import ApiError

AHEAD = 16  # pieces that wait for a client who reads slowly


@dataclass(frozen=True)
class Piece:
    """Text of one choice. tokens: those behind it that are new, the final eos left out, and the log-probability of each. result: the whole
    answer, with the last piece, which has no text."""

    choice: int
    text: str
    tokens: list[int]
    logprobs: list[float]
    result: Generation | None = None


async def merged(streams: Sequence[AsyncStream], count: Callable[[int], None]) -> AsyncGenerator[Piece, None]:
    """Pieces of all streams, each ending with its result. What ends one of them ends all; they are closed in any case.

    count: called with numbers of new tokens.
    """
    queue: asyncio.Queue[Piece | BaseException] = asyncio.Queue(AHEAD)

    async def pump(choice: int, stream: AsyncStream) -> None:
        try:
            async with aclosing(_pieces(choice, stream)) as pieces:
                async for piece in pieces:
                    await queue.put(piece)
        except Exception as error:
            await queue.put(error)

    tasks = [asyncio.create_task(pump(choice, stream)) for choice, stream in enumerate(streams)]
    try:
        left = len(tasks)
        while left:
            found = await queue.get()
            if isinstance(found, BaseException):
                raise found
            left -= found.result is not None
            count(len(found.tokens))
            yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pieces(choice: int, stream: AsyncStream) -> AsyncGenerator[Piece, None]:
    given = 0
    async with stream:
        async for text in stream:
            tokens, logprobs = stream.tokens
            yield Piece(choice, text, tokens[given:], logprobs[given:])
            given = len(tokens)
    result = stream.result
    if result is None:  # the model was closed
        raise ApiError(500, "the stream ended before its answer did", "server_error")
    yield Piece(choice, "", result.tokens[given:], result.token_logprobs[given:], result)
