"""How many guesses a pass checks: as many as give the most tokens for its time, by what came true and what passes took lately; or none."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

MEMORY = 9  # passes of a kind whose times count
FIRST = 3  # plain passes that are measured before anything is guessed: the first of a process is slow
AGAIN = 64  # passes after which a plain one is measured again: contexts grow, and machines have other work
GROWTH = 0.05  # of a pass, by each new id of a row, until it was measured
GAIN = 1.02  # that guessing must promise


class PassCosts:
    """Seconds that a pass takes on this machine, by its rows and by the new ids of each."""

    def __init__(self) -> None:
        self._times: dict[int, dict[int, deque[float]]] = {}
        self._medians: dict[int, list[tuple[int, float]]] = {}
        self._since: dict[int, int] = {}

    def add(self, rows: int, width: int, seconds: float) -> None:
        """Learn from a pass; what is lost between two threads does no harm."""
        times = self._times.setdefault(rows, {}).setdefault(width, deque(maxlen=MEMORY))
        times.append(seconds)
        known = dict(self._medians.get(rows, ()))
        known[width] = median(times)
        self._medians[rows] = sorted(known.items())
        self._since[rows] = 0 if width == 1 else self._since.get(rows, 0) + 1

    def needs_plain(self, rows: int) -> bool:
        """Whether too little is known of a pass with one id a row."""
        return len(self._times.get(rows, {}).get(1, ())) < FIRST or self._since[rows] >= AGAIN

    def seconds(self, rows: int, width: int) -> float:
        """What a pass will take, between those that were measured by a straight line; there is one with one id a row."""
        known = self._medians[rows]
        if len(known) == 1:
            return known[0][1] * (1 + GROWTH * (width - known[0][0]))
        upper = next((i for i, (measured, _) in enumerate(known) if measured >= width), len(known) - 1)
        (left, low), (right, high) = known[max(upper, 1) - 1], known[max(upper, 1)]
        if width > right:  # beyond all that was measured: at least the mean slope
            (left, low) = known[0]
            return high + max(high - low, 0.0) / (right - left) * (width - right)
        return low + (high - low) / (right - left) * (width - left)


@dataclass
class Acceptance:
    """How often guesses come true: a share that forgets what is long ago."""

    right: float
    tried: float

    @classmethod
    def expected(cls, rate: float) -> Acceptance:
        """What is hoped before anything is known; it weighs as much as two guesses."""
        return cls(2.0 * rate, 2.0)

    @property
    def rate(self) -> float:
        """The share, 0 to 1."""
        return self.right / self.tried

    def add(self, right: int, wrong: bool, keep: float = 0.9) -> None:
        """Learn from guesses in a row: so many came true, and perhaps the next did not; what follows that was not tried."""
        for came in [True] * right + [False] * wrong:
            self.right, self.tried = keep * self.right + came, keep * self.tried + 1


@dataclass(frozen=True)
class Chance:
    """Of a row: how likely its next guess comes true, and how many it can make."""

    rate: float
    most: int


def best_count(costs: PassCosts, rows: int, live: int, chances: Sequence[Chance], each: float) -> int:
    """How many guesses of each row to check in the next pass over `rows` rows, of which `live` go on.

    chances: of the rows that can guess. each: seconds that one more guess of all rows takes to make.
    """
    tokens, best = float(live), 0
    reached = GAIN * tokens / costs.seconds(rows, 1)
    for count in range(1, max((chance.most for chance in chances), default=0) + 1):
        tokens += sum(chance.rate**count for chance in chances if chance.most >= count)
        found = tokens / (costs.seconds(rows, count + 1) + count * each)
        if found > reached:
            reached, best = found, count
    return best
