"""What an application around a bare encoder does: batches of texts of like lengths, and the mean over each text's tokens."""

from collections.abc import Iterator
from typing import Any

import numpy as np


def batches(lengths: list[int], size: int | None) -> Iterator[list[int]]:
    """Places of `size` texts at a time, the shortest first; None is all at once."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    size = size or len(order)
    for start in range(0, len(order), size):
        yield order[start : start + size]


def feeds(ids: list[list[int]], pad: int) -> dict[str, np.ndarray]:
    """Right-padded input_ids and attention_mask, int64 [rows, longest]."""
    longest = max(map(len, ids))
    found = {"input_ids": np.full((len(ids), longest), pad, np.int64), "attention_mask": np.zeros((len(ids), longest), np.int64)}
    for row, one in enumerate(ids):
        found["input_ids"][row, : len(one)] = one
        found["attention_mask"][row, : len(one)] = 1
    return found


def mean(hidden: Any, mask: Any) -> Any:
    """hidden [rows, length, size], mask [rows, length] -> [rows, size]."""
    weight = mask[..., None].astype(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1)
