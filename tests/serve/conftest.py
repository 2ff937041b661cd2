"""Tiny bundles, and a server of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from onnxport.runtime import Model
from onnxport.serve.keys import Keys
from onnxport.serve.limits import Limits
from onnxport.serve.models import Models
from support import tiny_bundles, tiny_encoder
from support.serving import Running, running

# calls of tools are texts that a template only has to name for them to be looked for
CHAT = (
    "{% for message in messages %}{{ {'system': ' w31', 'user': ' w20', 'assistant': ' w21', 'tool': ' w23'}[message['role']] }}"
    "{{ ' ' + message['content'] }}{% for call in message['tool_calls'] or [] %}{{ ' ' + call['function']['arguments']['to'] }}{% endfor %}"
    "{% endfor %}{% for tool in tools or [] %}{{ ' ' + tool['function']['name'] }}{% endfor %} w22{# <tool_call> #}"
)
LABELS = ("good", "bad", "plain")


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles by the name that they are served under."""
    root = tmp_path_factory.mktemp("bundles")
    plain = tiny_bundles.write_bundle(root / "plain", tiny_bundles.TinyModel("causal", seed=1))
    return {
        "translator": tiny_bundles.write_bundle(root / "translator", tiny_bundles.TinyModel("seq2seq")),
        "plain": plain,
        "chat": tiny_bundles.with_chat(plain, root / "chat", CHAT, {}),
        "vectors": tiny_encoder.write(root / "vectors", "embedding", tiny_encoder.table(8), pooling="mean"),
        "labels": tiny_encoder.write(root / "labels", "classification", tiny_encoder.table(3), labels=list(LABELS)),
        "ranker": tiny_encoder.write(root / "ranker", "classification", tiny_encoder.table(1)),
        "reader": tiny_encoder.write(root / "reader", "question-answering", tiny_encoder.table(2)),
    }


@pytest.fixture(scope="session")
def models(bundles: dict[str, Path]) -> Iterator[Models]:
    found = Models.open([f"{name}={path}" for name, path in bundles.items()], None, "cpu", 1)
    yield found
    found.close()


@pytest.fixture
def model(models: Models) -> Callable[[str], Model]:
    """A served model by its name."""
    return lambda name: models.find(name).model


@pytest.fixture(scope="session")
def server(models: Models) -> Iterator[Running]:
    with running(models) as found:
        yield found


@pytest.fixture(scope="session")
def client(server: Running) -> OpenAI:
    return server.client()


@pytest.fixture
def limited(models: Models) -> Iterator[Running]:
    """A server with small limits and a key."""
    limits = Limits(body=1100, tokens=60, rows=3, requests=1, seconds=0.5, body_seconds=0.3)
    with running(models, limits=limits, keys=Keys(["good", "also good"])) as found:
        yield found
