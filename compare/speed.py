"""How many times as fast one side is as another, as an interval, and what may be said of it.

Sides run in turn, round by round, so that a round's ratio of their rates is of the same work at the same time: what slows the machine down
for a while slows both. The median of these ratios is taken, which a busy machine's outliers do not move, with the interval of the sign test
(order statistics): it asks nothing of how times are distributed. All rules that decide on speed ask that interval, never a single figure.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

LEVEL = 0.95  # of the intervals that are shown
SURE = 0.99  # of those that rules rest on: several variants are judged, and more than once
FASTER = 1.1  # times as fast is what counts: two processes that run the same graph differ by less
WORTH_ITS_SIZE = 0.8  # as fast at least must be what is chosen for its size: far from 1, where equals lie, so that noise does not decide
LEAST_ROUNDS = 8  # fewer have no interval that a rule could rest on


@dataclass(frozen=True)
class Ratio:
    """ratio: the median over the rounds.  low, high: the 95% interval.  sure_low, sure_high: the 99% interval.

    An interval is None, None where there are too few rounds for it (6 and 8).
    """

    ratio: float
    low: float | None = None
    high: float | None = None
    sure_low: float | None = None
    sure_high: float | None = None
    rounds: int = 0

    @property
    def faster(self) -> bool | None:
        """Whether the side is faster by what counts; None where that cannot be told."""
        return self._above(FASTER)

    @property
    def as_fast(self) -> bool | None:
        """Whether the side is not slower by what counts; None where that cannot be told."""
        return self._above(1 / FASTER)

    @property
    def fast_enough(self) -> bool | None:
        """Whether the side is fast enough to be chosen for its size; None where that cannot be told."""
        return self._above(WORTH_ITS_SIZE)

    @property
    def settled(self) -> bool:
        """Whether more rounds would change nothing that is decided between the two."""
        return self.faster is not None and self.fast_enough is not None

    def _above(self, boundary: float) -> bool | None:
        if self.sure_low is None or self.sure_high is None or self.sure_low < boundary < self.sure_high:
            return None
        return self.sure_low >= boundary


EQUAL = Ratio(1.0, 1.0, 1.0, 1.0, 1.0)  # a side and itself


def paired(rates: Sequence[float], others: Sequence[float]) -> Ratio:
    """How many times as fast a side is as another. rates, others: units a second of each round, in the same order."""
    ratios = sorted(own / other for own, other in zip(rates, others, strict=True))
    return Ratio(statistics.median(ratios), *_interval(ratios, LEVEL), *_interval(ratios, SURE), len(ratios))


def all_paired(rates: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Ratio]]:
    """`paired` of every two sides: [side][other]."""
    return {name: {other: paired(own, theirs) for other, theirs in rates.items() if other != name} for name, own in rates.items()}


def between(variants: Mapping[str, Mapping[str, Any]], name: str, other: str) -> Ratio:
    """How many times as fast variant `name` of a report is as `other`; without an interval where they were not held against each other."""
    known = variants[name].get("speed_against", {}).get(other)
    if name == other:
        return EQUAL
    return Ratio(**known) if known else Ratio(variants[name]["throughput"] / variants[other]["throughput"])


def _interval(ordered: Sequence[float], level: float) -> tuple[float | None, float | None]:
    """Of the median; None, None with too few values."""
    place = _place(len(ordered), level)
    return (None, None) if place is None else (ordered[place], ordered[-1 - place])


@lru_cache(maxsize=1024)
def _place(count: int, level: float) -> int | None:
    """From either end of so many sorted values, the place where the median's interval ends; None with too few.

    The median lies outside of it as often as a fair coin falls on one side at most `place` times of `count`, twice.
    """
    tail, place = 0, -1
    while 2 * (tail := tail + math.comb(count, place + 1)) <= (1 - level) * 2**count:
        place += 1
    return place if place >= 0 else None
