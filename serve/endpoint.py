"""The life of a request: its key, its place, its body, its time, its client's patience, and its answer or error."""

from __future__ import annotations

import asyncio
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from onnxport.serve.errors import GONE, ApiError, ClientGone, openai_body, told
from onnxport.serve.limits import Limits
from onnxport.serve.sending import JSON, Events, Reply, Sending, encoded
from onnxport.serve.service import Call, Service

FORMS = ("application/x-www-form-urlencoded", "multipart/form-data", "text/plain")  # what a web page may send to any server unasked


class Endpoint:
    """An ASGI application that answers one route.

    answer: a call → its reply or events. route: its pattern, which it is counted by. errors: an error's body. open_to_all: no key is asked
    for. light: no place is taken and no body read, for what costs nothing.
    """

    def __init__(
        self,
        service: Service,
        route: str,
        answer: Callable[[Call], Awaitable[Reply | Events]],
        errors: Callable[[ApiError], dict[str, Any]] = openai_body,
        open_to_all: bool = False,
        light: bool = False,
    ) -> None:
        self._service, self._route, self._answer, self._errors = service, route, answer, errors
        self._open, self._light = open_to_all, light

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        call, sending, status = Call(self._service, Request(scope)), Sending(send), GONE
        try:
            await self._answered(call, receive, sending)
            status = sending.status
        except ClientGone:
            pass
        except Exception as error:
            status = await self._failed(error, sending)
        finally:
            if not self._light:
                self._service.metrics.ended(self._route, call.model_name, status, time.perf_counter() - call.began)

    async def _failed(self, error: Exception, sending: Sending) -> int:
        """Tell the client what went wrong; gives the status that is counted."""
        found = told(error, self._service.limits.seconds)
        if found.status == 500:
            report(error, self._route, self._service.verbose)
        if sending.started:
            await sending.failed(found)
        else:
            await sending.reply(Reply(encoded(self._errors(found)), status=found.status, headers=found.headers))
        return found.status

    async def _answered(self, call: Call, receive: Receive, sending: Sending) -> None:
        if not self._open:
            self._service.keys.check(call.headers.get("authorization"))
        if self._light:
            await self._work(call, sending)
            return
        with self._service.admission.place(), self._service.metrics.under_way.track_inprogress():
            async with asyncio.timeout(self._service.limits.seconds):
                call.body = await read(call, receive)
                await patiently(self._work(call, sending), gone(receive))

    async def _work(self, call: Call, sending: Sending) -> None:
        answer = await self._answer(call)
        if isinstance(answer, Reply):
            await sending.reply(answer)
        else:
            await sending.events(answer, lambda: self._service.metrics.began(call.model_name, time.perf_counter() - call.began))


async def read(call: Call, receive: Receive) -> bytes:
    """The body. ApiError: too long, too slow, or of a kind that is not read; ClientGone."""
    limits, content = call.limits, bytearray()
    kind = call.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in FORMS:
        raise ApiError(415, f"the content-type is {kind}, expected {JSON}", code="unsupported_media_type")
    if (coding := call.headers.get("content-encoding", "identity").lower()) != "identity":
        raise ApiError(415, f"the content-encoding is {coding[:30]}, expected a body that is not compressed", code="unsupported_media_type")
    length = call.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > limits.body:
        raise too_long(limits)
    try:
        async with asyncio.timeout(limits.body_seconds):
            while True:
                message: Message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                content += message.get("body", b"")
                if len(content) > limits.body:
                    raise too_long(limits)
                if not message.get("more_body", False):
                    return bytes(content)
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {limits.body_seconds:g} s", code="timeout") from None


def too_long(limits: Limits) -> ApiError:
    """The refusal of a body (413)."""
    return ApiError(413, f"the body has more than {limits.body} bytes, which is the limit of this server; split it", code="body_too_large")


async def gone(receive: Receive) -> None:
    """Ends when the client closes its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def patiently(work: Awaitable[None], leaving: Awaitable[None]) -> None:
    """Does the work, and gives it up when the client leaves. ClientGone, and what the work raises."""
    working, left = asyncio.ensure_future(work), asyncio.ensure_future(leaving)
    try:
        await asyncio.wait({working, left}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        working.result()
    finally:
        for task in (working, left):
            task.cancel()
        await asyncio.gather(working, left, return_exceptions=True)


def report(error: Exception, route: str, verbose: bool) -> None:
    """A line on standard error about what is the server's own fault; verbose: with its traceback."""
    if verbose:
        traceback.print_exception(error)
    print(f"onnxport: {route}: {type(error).__name__}: {' '.join(str(error).split())[:300]}", file=sys.stderr, flush=True)
