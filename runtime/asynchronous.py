"""Answers for event loops: calls that no thread waits for.

What takes long before a batch can be joined (a tokenizer, a template) runs in a model's one background thread, and so do models that answer
in one pass. Inputs that decode are in the same batches as those of other threads; one thread for each batch steps it while such calls are
there. Every call belongs to the event loop that it was awaited in; a model serves any number of them. A call whose task is cancelled leaves
its batch before the next step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Any, TypeVar

from onnxport.runtime.decode.generator import Generation, Generator, Job, Streamed
from onnxport.runtime.decode.scheduler import WAIT_SECONDS, SharedCall
from onnxport.runtime.options import Watch

R = TypeVar("R")


class Background:
    """A model's one background thread, begun with its first work; calls have their turns in it."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, "onnxport background")

    async def run(self, work: Callable[[], R]) -> R:
        """What `work` gives, or raises, in that thread. Cancelled before its turn it never runs."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def close(self) -> None:
        """The thread ends once what waits has had its turn."""
        self._executor.shutdown(wait=False)


class Moves:
    """Tells a task that its call has moved, from whichever thread stepped it."""

    def __init__(self) -> None:
        self._loop, self._event = asyncio.get_running_loop(), asyncio.Event()

    def tell(self) -> None:
        """From any thread. A loop that was closed has nobody who waits."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self, call: SharedCall[Any], watch: Watch, until: Callable[[], bool] = lambda: False) -> None:
        """Until the call's decodings are done or `until` holds. Raises what ended the call, and what the watch raises."""
        while True:
            self._event.clear()
            watch.check()
            if until() or not call.left:
                return
            if call.error is not None:
                raise call.error
            with suppress(TimeoutError):
                async with asyncio.timeout(WAIT_SECONDS if watch.limited else None):
                    await self._event.wait()


async def generate(generator: Generator, job: Job, watch: Watch) -> list[Generation]:
    """The results of a job that was prepared."""
    moves = Moves()
    shared, call = generator.enter(job, moved=moves.tell)
    try:
        shared.follow(call, watch)
        await moves.wait(call, watch)
        return job.results(call.decodings)
    finally:
        shared.leave(call)


class AsyncStream:
    """Pieces of text as `Stream` gives them, for `async for`; afterwards `result` is the whole Generation.

    `aclose` gives up what is left, and so does leaving it as an asynchronous context manager, or a cancelled task.
    """

    def __init__(
        self, generator: Generator, prepare: Callable[[], Job], background: Background, watch: Watch, ready: Callable[[], object]
    ) -> None:
        self._generator, self._prepare, self._background, self._watch, self._ready = generator, prepare, background, watch, ready
        self._streamed: Streamed | None = None
        self._moves: Moves | None = None
        self._over = False
        self.result: Generation | None = None

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> str:
        if not self._over:
            try:
                if piece := await self._next():
                    return piece
            except BaseException:
                self._close()
                raise
            self._close()
        raise StopAsyncIteration

    async def _next(self) -> str:
        self._ready()
        if self._streamed is None or self._moves is None:
            self._moves = Moves()
            self._streamed = Streamed(self._generator, await self._background.run(self._prepare))
            if self._over:  # closed meanwhile
                return ""
            shared, call = self._streamed.enter(moved=self._moves.tell)
            shared.follow(call, self._watch)
        _, call = self._streamed.enter()
        await self._moves.wait(call, self._watch, lambda: call.gone or self._more())
        piece = self._streamed.piece()
        if not piece:
            self.result = self._streamed.result()
        return piece

    def _more(self) -> bool:
        return self._streamed is not None and self._streamed.more()

    @property
    def so_far(self) -> Generation | None:
        """The answer up to the newest token; None before the first piece. Its tokens may be ahead of the pieces that were given."""
        return None if self._streamed is None else self._streamed.so_far()

    async def aclose(self) -> None:
        """Take no more of it: its row makes room at once. `result` stays None where it was not at its end."""
        self._close()
        if self._moves is not None:
            self._moves.tell()

    def _close(self) -> None:
        self._over = True
        if self._streamed is not None:
            self._streamed.leave()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    def __del__(self) -> None:
        self._close()
