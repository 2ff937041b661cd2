"""Rotary positions that do not change with the length of a text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def fixed_rotation(model: Any) -> Iterator[None]:
    """Rotary tables of kinds that change with a text's length stay those of the original length, see `TracedCausal.max_length`."""
    changed = [(m, m.rope_type) for m in model.modules() if isinstance(getattr(m, "rope_type", None), str) and _varies(m.rope_type)]
    for module, _ in changed:
        module.rope_type = "default"
    try:
        yield
    finally:
        for module, kind in changed:
            module.rope_type = kind


def _varies(kind: str) -> bool:
    return "dynamic" in kind or kind == "longrope"
