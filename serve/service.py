"""What the requests of a server share, and a request as those see it who answer it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from starlette.requests import Request

from onnxport.serve.fields import Fields
from onnxport.serve.keys import Keys
from onnxport.serve.limits import Admission, Limits
from onnxport.serve.metrics import NONE, Metrics
from onnxport.serve.models import Models, Served


@dataclass(frozen=True)
class Service:
    """What all requests of a server share. verbose: errors are reported with their tracebacks."""

    models: Models
    limits: Limits = field(default_factory=Limits)
    keys: Keys = field(default_factory=Keys)
    verbose: bool = False
    metrics: Metrics = field(default_factory=Metrics)
    admission: Admission = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "admission", Admission(self.limits.requests))


class Call:
    """A request under way, as those see it who answer it."""

    def __init__(self, service: Service, request: Request) -> None:
        self.service, self.path, self.headers = service, request.path_params, request.headers
        self.body, self.began = b"", time.perf_counter()
        self._model: Served | None = None

    @property
    def limits(self) -> Limits:
        """The server's."""
        return self.service.limits

    def fields(self) -> Fields:
        """The members of the body."""
        return Fields.parse(self.body)

    def model(self, name: str) -> Served:
        """The model that is asked for; the request counts as one of its own from now on. ApiError."""
        self._model = self.service.models.find(name)
        return self._model

    @property
    def model_name(self) -> str:
        """Of the model that was asked for, once it is known to be there."""
        return NONE if self._model is None else self._model.name

    def count(self, prompt: int, generated: int = 0, cached: int = 0) -> None:
        """Tokens that were read and made."""
        self.service.metrics.tokens(self.model_name, prompt, generated, cached)

    async def charge(self, served: Served, texts: Sequence[str], param: str, more: int = 0) -> int:
        """The tokens of texts, which the request is charged with; more: those that it asks for. ApiError: more than it may have."""
        self.limits.check_rows(len(texts), "texts", param)
        self.limits.check_texts(texts, param)
        tokens = sum(map(len, await served.model.atokenize_all(texts))) if texts else 0
        self.limits.check_tokens(tokens + more, param)
        self.count(tokens)
        return tokens
