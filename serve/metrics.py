"""What a server counts, in Prometheus's text form."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
NONE = ""  # of a request that named no model that is there


class Metrics:
    """Counters of one server. Labels have bounded values: a route's pattern, a served model's name, a status."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        of_request = ("route", "model", "status")
        self._requests = Counter("onnxport_requests", "Requests that have ended.", of_request, registry=self._registry)
        self._seconds = Histogram(
            "onnxport_request_seconds", "Seconds of a request.", ("route", "model"), registry=self._registry, buckets=SECONDS
        )
        self._first = Histogram(
            "onnxport_first_event_seconds", "Seconds to a stream's first event.", ("model",), registry=self._registry, buckets=SECONDS
        )
        self._prompt = Counter("onnxport_prompt_tokens", "Tokens read.", ("model",), registry=self._registry)
        self._cached = Counter("onnxport_cached_prompt_tokens", "Of these, known from before.", ("model",), registry=self._registry)
        self._generated = Counter("onnxport_generated_tokens", "Tokens made.", ("model",), registry=self._registry)
        self.under_way = Gauge("onnxport_requests_under_way", "Requests that are being answered.", registry=self._registry)

    def ended(self, route: str, model: str, status: int, seconds: float) -> None:
        """A request has ended, in whatever way."""
        self._requests.labels(route, model, str(status)).inc()
        self._seconds.labels(route, model).observe(seconds)

    def began(self, model: str, seconds: float) -> None:
        """A stream has its first event."""
        self._first.labels(model).observe(seconds)

    def tokens(self, model: str, prompt: int, generated: int = 0, cached: int = 0) -> None:
        """Tokens that were read and made."""
        self._prompt.labels(model).inc(prompt)
        self._generated.labels(model).inc(generated)
        self._cached.labels(model).inc(cached)

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        text: bytes = generate_latest(self._registry)
        return text
