"""The response of a request: a whole reply, or events as they are made."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Send

from onnxport.serve.errors import INTERNAL, ApiError, openai_body

PIECE = 1 << 16  # bytes of a body that are sent at once
LAST_WORD = 1.0  # seconds for a stream's error to go out
JSON = "application/json"


@dataclass(frozen=True)
class Reply:
    """A whole answer."""

    content: bytes
    media_type: str = JSON
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Events:
    """An answer that is sent as it is made: each value an event. The last event of OpenAI's streams is [DONE]."""

    values: AsyncGenerator[dict[str, Any], None]


def to_json(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    """A reply of JSON."""
    return Reply(encoded(value), status=status, headers=headers or {})


def encoded(value: object) -> bytes:
    """JSON in UTF-8. ApiError for numbers that JSON has not."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:
        raise ApiError(500, "the model answers infinities or NaN, which JSON has not; ask for binary data", INTERNAL) from None
    return text.encode("utf-8", "replace")


class Sending:
    """The one response of a request."""

    def __init__(self, send: Send) -> None:
        self._send, self.status, self._streams = send, 0, False

    @property
    def started(self) -> bool:
        """Whether the client has a status."""
        return self.status != 0

    async def reply(self, reply: Reply) -> None:
        """The whole of it."""
        await self._start(reply.status, {"content-type": reply.media_type, "content-length": str(len(reply.content)), **reply.headers})
        for start in range(
            0, len(reply.content), PIECE
        ):  # each waits for the client to read, so that what it does not read takes no memory
            await self._body(reply.content[start : start + PIECE], True)
        await self._body(b"", False)

    async def events(self, events: Events, first: Callable[[], None]) -> None:
        """Events as they come; `first` is called with the first of them, before which the response does not start."""
        async with aclosing(events.values) as values:
            async for value in values:
                if not self.started:
                    first()
                    self._streams = True
                    await self._start(200, {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"})
                await self._event(encoded(value))
        await self._event(b"[DONE]")
        await self._body(b"", False)

    async def failed(self, error: ApiError) -> None:
        """A last event of a stream that goes on no more; any other response just ends, and its connection with it."""
        if not self._streams:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORD):
                await self._event(encoded(openai_body(error)))
                await self._body(b"", False)

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self.status = status
        pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})

    async def _event(self, content: bytes) -> None:
        await self._body(b"data: " + content + b"\n\n", True)

    async def _body(self, content: bytes, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": content, "more_body": more})
