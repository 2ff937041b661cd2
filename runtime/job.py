"""One input of a call, ready to be searched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """Its place in the call, source ids (seq2seq), the ids decoding starts from, and the most new tokens."""

    index: int
    source: Sequence[int]
    prefix: Sequence[int]
    limit: int
