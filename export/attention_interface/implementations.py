"""Which implementation a model of transformers uses, as its configurations say it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def using(model: Any, key: str, name: str) -> Iterator[None]:
    """Every configuration in the model that has `key` holds `name`, until the block is left."""
    configs = {id(config): config for module in model.modules() if hasattr(config := getattr(module, "config", None), key)}
    before = [(config, getattr(config, key)) for config in configs.values()]
    try:
        for config, _ in before:
            setattr(config, key, name)
        yield
    finally:
        for config, value in before:
            setattr(config, key, value)
