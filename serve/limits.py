"""Bounds of what a server takes: bytes of a body, tokens, texts and seconds of a request, and requests at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from onnxport.serve.errors import TOO_MANY, ApiError, refused

RETRY_AFTER = {"retry-after": "1"}
CHARACTERS = 16  # of a token: text has 3 to 5


@dataclass(frozen=True)
class Limits:
    """body: bytes. tokens: of a request's prompts and answers together. rows: texts and answers of a request. requests: under way at once.
    seconds: from a request's arrival to the end of its answer. body_seconds: within which the body must have come."""

    body: int = 16 << 20
    tokens: int = 1 << 18
    rows: int = 2048
    requests: int = 256
    seconds: float = 600.0
    body_seconds: float = 60.0

    def check_rows(self, count: int, what: str, param: str) -> None:
        """ApiError for more texts or answers than a request may have."""
        if count > self.rows:
            raise refused(f"{param} asks for {count} {what}, expected at most {self.rows}; send several requests", param, "too_many_inputs")

    def check_texts(self, texts: Iterable[str], param: str) -> None:
        """ApiError for texts that are longer together than so many tokens ever are, before they are tokenized, which takes time."""
        most = CHARACTERS * self.tokens
        if (size := sum(map(len, texts))) > most:
            raise refused(f"the request has {size} characters of text, expected at most {most}; split it", param, "context_length_exceeded")

    def check_tokens(self, count: int, param: str) -> None:
        """ApiError for more tokens than a request may have."""
        if count > self.tokens:
            message = f"the request has {count} tokens, prompts and answers together, expected at most {self.tokens}; split or shorten it"
            raise refused(message, param, "context_length_exceeded")


class Admission:
    """Places for requests that are under way; who finds none is sent away at once, so that no queue grows."""

    def __init__(self, most: int) -> None:
        self._most, self.under_way = most, 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for one request, until the block ends. ApiError (429) where all are taken."""
        if self.under_way >= self._most:
            message = f"{self._most} requests are under way, which is the limit of this server; try again later"
            raise ApiError(429, message, TOO_MANY, code="rate_limit_exceeded", headers=RETRY_AFTER)
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1
