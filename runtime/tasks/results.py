"""What several tasks share: the mean over a text's windows, and the check of what a model answered."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from onnxport.errors import DataError, UsageError
from onnxport.runtime.encode import Encoder


def expect(encoder: Encoder, task: str, outputs: tuple[str, ...]) -> None:
    """UsageError where the bundle is for another task, or its graph does not answer it."""
    if encoder.task != task:
        raise UsageError(f"this bundle's task is {encoder.task}, expected {task}; use what belongs to its task, or run")
    if lacking := [name for name in outputs if name not in encoder.outputs]:
        raise UsageError(f"the model gives {', '.join(encoder.outputs)}, expected {' and '.join(lacking)} for {task}; use run")


def finite(array: np.ndarray, owner: int) -> np.ndarray:
    """`array` as float32. DataError where it holds NaN or infinity."""
    if not np.isfinite(array).all():
        raise DataError(f"text {owner}: the model answers NaN or infinity; try another precision, such as fp32")
    return array.astype(np.float32)


def weighted(parts: Iterable[tuple[int, int, np.ndarray]], count: int) -> list[np.ndarray]:
    """Means of (owner, weight, vector), one an owner, float64; every owner has a part."""
    sums: list[np.ndarray] = [np.zeros(())] * count
    weights = [0] * count
    for owner, weight, vector in parts:
        sums[owner] = sums[owner] + vector.astype(np.float64) * weight
        weights[owner] += weight
    return [total / weight for total, weight in zip(sums, weights, strict=True)]
