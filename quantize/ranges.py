"""The range of activations that 8 bits should hold, told by calibration."""

from __future__ import annotations

import numpy as np


class Range:
    """Least and greatest value of a tensor over all feeds."""

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf

    def add(self, rows: np.ndarray) -> None:
        """rows: float32 [n, channels]."""
        if rows.size:
            self.low, self.high = min(self.low, float(rows.min())), max(self.high, float(rows.max()))

    def limits(self, method: str) -> tuple[float, float]:
        """By `minmax`: the values themselves."""
        return self.low, self.high
