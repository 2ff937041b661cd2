"""What a refusal must look like."""

from __future__ import annotations

from typing import Any

import pytest

from onnxport.errors import CheckpointError, OnnxportError
from onnxport.export import export


def assert_refused(source: Any, *parts: str, error: type[OnnxportError] = CheckpointError, **options: Any) -> str:
    """One line with every one of `parts` in it."""
    with pytest.raises(error) as caught:
        export(source, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) > 20
    for part in parts:
        assert part in message
    return message
