"""What goes wrong with a request, with its HTTP status, in the forms of OpenAI's API and of KServe's protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxport.errors import GenerationTimeout, OnnxportError, Refused, UsageError, one_line

INVALID, TOO_MANY, INTERNAL = "invalid_request_error", "rate_limit_error", "server_error"
GONE = 499  # counted for a client that went away before its answer; nobody reads it
NO_RETRY = {"x-should-retry": "false"}  # OpenAI's clients would send what took too long again


class ApiError(Exception):
    """A request that is refused or failed. kind, param and code are those of OpenAI's errors; headers go with the response."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.param, self.code, self.headers = status, kind, param, code, dict(headers or {})


class ClientGone(Exception):
    """The client closed its connection before it had its answer."""


def refused(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that cannot be answered as it is (400)."""
    return ApiError(400, message, param=param, code=code)


def unsupported(param: str, why: str) -> ApiError:
    """A parameter of OpenAI's API that this server does not answer, by its name (400)."""
    return refused(f"{param} is not supported: {why}", param, "unsupported_parameter")


def told(error: Exception, seconds: float) -> ApiError:
    """Any error as one for the client; what is the server's own fault is told without its details. seconds: the limit of a request."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UsageError | Refused):
        return refused(str(error))
    if isinstance(error, GenerationTimeout | TimeoutError):
        return ApiError(504, f"the request took more than {seconds:g} s; ask for fewer tokens", "timeout", code="timeout", headers=NO_RETRY)
    if isinstance(error, OnnxportError):
        return ApiError(500, one_line(error), INTERNAL)
    return ApiError(500, f"internal error ({type(error).__name__}); the server's log tells more", INTERNAL)


def openai_body(error: ApiError) -> dict[str, Any]:
    """The body of an error in OpenAI's API."""
    return {"error": {"message": str(error), "type": error.kind, "param": error.param, "code": error.code}}


def kserve_body(error: ApiError) -> dict[str, Any]:
    """The body of an error in KServe's open inference protocol."""
    return {"error": str(error)}
