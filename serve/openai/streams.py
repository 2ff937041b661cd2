"""Several streams of a request as one, in the order in which their pieces come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from onnxport.runtime import Generation
from onnxport.runtime.asynchronous import AsyncStream
from onnxport.serve.errors import INTERNAL, ApiError
from onnxport.serve.openai.logprobs import Tokens

AHEAD = 16  # pieces that wait for a client who reads slowly


@dataclass(frozen=True)
class Piece:
    """Text of one choice. new: the tokens that came since the piece before, with their log-probabilities. result: the whole answer, with
    the last piece, which has no text."""

    choice: int
    text: str
    new: Tokens
    result: Generation | None = None


async def merged(streams: Sequence[AsyncStream], count: Callable[[Piece], None]) -> AsyncGenerator[Piece, None]:
    """Pieces of all streams, each ending with its result. What ends one of them ends all; they are closed in any case.

    count: called with each piece.
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
            count(found)
            yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pieces(choice: int, stream: AsyncStream) -> AsyncGenerator[Piece, None]:
    given = 0
    async with stream:
        async for text in stream:
            new = Tokens.of(stream.so_far, given)
            yield Piece(choice, text, new)
            given += len(new.tokens)
    result = stream.result
    if result is None:  # the model was closed
        raise ApiError(500, "the stream ended before its answer did", INTERNAL)
    yield Piece(choice, "", Tokens.of(result, given), result)
