"""A server under way in a thread of the test's own process."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn
from openai import OpenAI

from onnxport.serve.app import app
from onnxport.serve.models import Models
from onnxport.serve.service import Service


@dataclass(frozen=True)
class Running:
    """A server under way."""

    url: str
    service: Service

    def client(self, key: str = "any", **options: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60, **options)

    def post(self, path: str, body: object, **options: Any) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body)
        headers = {"content-type": "application/json", **options.pop("headers", {})}
        return httpx.post(f"{self.url}{path}", content=content, headers=headers, timeout=60, **options)


@contextmanager
def running(models: Models, **options: Any) -> Iterator[Running]:
    """A server of models with limits and keys of its own."""
    service = Service(models, **options)
    server = uvicorn.Server(uvicorn.Config(app(service), port=0, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 60
    while not server.started:
        assert thread.is_alive() and time.monotonic() < until
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield Running(f"http://127.0.0.1:{port}", service)
    server.should_exit = True
    thread.join(60)
    assert not thread.is_alive()
