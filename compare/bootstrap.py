"""Confidence intervals of differences between metrics, by resampling the inputs.

A metric is kept as sums over its inputs, so that it can be computed for any sample of them.
Paired bootstrap resampling (Koehn 2004, "Statistical Significance Tests for Machine Translation Evaluation"): inputs are drawn anew with
replacement, the same ones for both sides, and the difference of the two metrics is taken again. Corpus metrics such as BLEU are computed
from the sums of the drawn sentences' counts, not as means of sentences' scores.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

RESAMPLES = 1000
SEED = 0
LEVEL = 0.95
_PART = 100  # resamples at once: what is held grows with the inputs


@dataclass(frozen=True)
class Statistic:
    """rows: float64 [inputs, k]. combine: sums of rows [..., k] to the metric [...]."""

    rows: np.ndarray
    combine: Callable[[np.ndarray], np.ndarray]

    @property
    def value(self) -> float:
        """Of all inputs."""
        return float(self.combine(self.rows.sum(0)))

    def resampled(self) -> np.ndarray:
        """The metric of each of RESAMPLES samples, float64 [RESAMPLES]; the same samples for every statistic of as many inputs."""
        draws = _draws(len(self.rows))
        parts = [self.combine(draws[i : i + _PART].astype(np.float64) @ self.rows) for i in range(0, RESAMPLES, _PART)]
        return np.concatenate(parts)


def mean(values: np.ndarray) -> Statistic:
    """The mean of one value an input."""
    values = np.asarray(values, np.float64)
    return Statistic(np.stack([values, np.ones_like(values)], 1), ratio)


def ratio(sums: np.ndarray) -> np.ndarray:
    """Sums [..., 2]: the first over the second."""
    return np.asarray(sums[..., 0] / np.maximum(sums[..., 1], 1e-300))


def interval(own: Statistic, base: Statistic, sign: int) -> dict[str, float] | None:
    """Of sign * (own - base): low and high, the 95% interval (percentiles), and p, two-sided, that there is no difference; n inputs.

    p is twice the smaller share of samples on either side of 0, so that p < 0.05 where the interval leaves 0 out. None with fewer than two
    inputs: they tell nothing of chance.
    """
    count = len(own.rows)
    if count < 2 or count != len(base.rows):
        return None
    differences = np.round(sign * (own.resampled() - base.resampled()), 9)  # equal answers differ by nothing, not by rounding
    low, high = np.percentile(differences, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    tail = min((differences <= 0).sum(), (differences >= 0).sum())
    p = min(1.0, 2 * (float(tail) + 1) / (RESAMPLES + 1))
    return {"low": float(low) + 0.0, "high": float(high) + 0.0, "p": p, "n": count}


@lru_cache(maxsize=2)
def _draws(count: int) -> np.ndarray:
    """How often each of `count` inputs is in each sample: uint16 [RESAMPLES, count]."""
    generator = np.random.default_rng(SEED)
    drawn = np.zeros((RESAMPLES, count), np.uint16)
    for row in drawn:
        row[:] = np.bincount(generator.integers(0, count, count), minlength=count)
    return drawn
