"""The knapsack search finds the fastest plan within a budget: predicted by sums over modules, then measured for real.

Each group of weights gets one of its options. Time is a sum over groups, and so, nearly, is the loss while it is small: both are quadratic
forms of errors that have little to do with each other. The best plans by these sums are a front, found exactly by dynamic programming
(a multiple-choice knapsack); where on the front the real budget ends is found by bisection, and then single groups are exchanged.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

MOST_POINTS = 8192  # of a front under way: beyond it points nearer than a 8192th of its span count as one
NEAR = 0.01  # of fp32's time: a difference not worth a measurement
FAILURES = 6  # exchanges in a row that do not hold end the search

Picks = tuple[int, ...]  # an option's number for each group
Table = Sequence[Sequence[float]]  # by group and option


@dataclass(frozen=True)
class Point:
    """A plan by its picks, with the sums that predict its time (seconds) and its loss."""

    cost: float
    loss: float
    picks: Picks


def point(costs: Table, losses: Table, picks: Picks) -> Point:
    """The sums of one plan."""
    chosen = list(enumerate(picks))
    return Point(sum(costs[i][p] for i, p in chosen), sum(losses[i][p] for i, p in chosen), picks)


def frontier(costs: Table, losses: Table, most: int = MOST_POINTS) -> list[Point]:
    """Plans that no other beats in both sums, the fastest first; exact while no front under way has more than `most` points."""
    cost, loss = np.zeros(1), np.zeros(1)
    steps: list[tuple[np.ndarray, np.ndarray]] = []  # of each kept point: its point before, and its option
    for own_cost, own_loss in zip(costs, losses, strict=True):
        all_cost = (cost[:, None] + np.asarray(own_cost, float)).ravel()
        all_loss = (loss[:, None] + np.asarray(own_loss, float)).ravel()
        order = np.lexsort((all_loss, all_cost))
        best = np.minimum.accumulate(all_loss[order])
        kept = order[np.concatenate([[True], all_loss[order][1:] < best[:-1]])]
        if len(kept) > most:
            span = all_cost[kept[-1]] - all_cost[kept[0]]
            bucket = np.floor((all_cost[kept] - all_cost[kept[0]]) / span * most)
            last = np.concatenate([bucket[1:] != bucket[:-1], [True]])  # of a bucket the one that loses least
            last[0] = True
            kept = kept[last]
        steps.append((kept // len(own_cost), kept % len(own_cost)))
        cost, loss = all_cost[kept], all_loss[kept]
    picks = np.zeros((len(cost), len(steps)), int)
    at = np.arange(len(cost))
    for i, (before, option) in reversed(list(enumerate(steps))):
        picks[:, i], at = option[at], before[at]
    return [Point(float(c), float(v), tuple(map(int, row))) for c, v, row in zip(cost, loss, picks, strict=True)]


def search(costs: Table, losses: Table, holds: Callable[[Point], bool], most: int, seeds: Iterable[Picks] = ()) -> Point | None:
    """The fastest plan found that `holds`, measured for real at most `most` times; None where nothing faster than all first options does.

    The first option of each group is the reference (fp32), which is never measured. seeds: plans that are measured before all others.
    """
    reference = point(costs, losses, (0,) * len(costs))
    trials = _Trials(holds, most, reference)
    front = [p for p in frontier(costs, losses) if p.cost < reference.cost]
    if not front:
        return None
    for picks in seeds:
        seed = point(costs, losses, picks)
        if seed.cost < reference.cost:
            trials.measure(seed)
    _bisect(front, reference, trials)
    _exchange(costs, losses, trials)
    return None if trials.best is reference else trials.best


class _Trials:
    """Measurements so far. best: the fastest that holds."""

    def __init__(self, holds: Callable[[Point], bool], most: int, reference: Point) -> None:
        self._holds, self._left, self.best, self.near = holds, most, reference, NEAR * reference.cost
        self._known: dict[Picks, bool] = {}

    def spent(self) -> bool:
        """Whether no more may be measured."""
        return self._left <= 0

    def knows(self, one: Point) -> bool:
        """Whether a plan was measured."""
        return one.picks in self._known

    def measure(self, one: Point) -> bool:
        """Whether a plan holds; False once measurements are spent."""
        if one.picks not in self._known:
            if self.spent():
                return False
            self._left -= 1
            self._known[one.picks] = self._holds(one)
            if self._known[one.picks] and one.cost < self.best.cost:
                self.best = one
        return self._known[one.picks]


def _bisect(front: Sequence[Point], reference: Point, trials: _Trials) -> None:
    """Where the budget ends on the front, by cost, as if every plan beyond one that fails failed too."""
    if trials.measure(front[0]):
        return
    low, high = front[0].cost, trials.best.cost
    while high - low > trials.near and not trials.spent():
        between = [p for p in front if low < p.cost < high]
        if not between:
            return
        middle = min(between, key=lambda p: abs(p.cost - (low + high) / 2))
        if trials.measure(middle):
            high = middle.cost
        else:
            low = middle.cost


def _exchange(costs: Table, losses: Table, trials: _Trials) -> None:
    """One or two groups of the best plan changed, so that it is faster: those that should lose least first."""
    failures = 0
    while failures < FAILURES and not trials.spent():
        enough = trials.best.cost - trials.near / 4
        faster = (p for p in _changes(costs, losses, trials.best.picks) if p.cost < enough and not trials.knows(p))
        least = min(faster, key=lambda p: (p.loss, p.cost), default=None)
        if least is None:
            return
        if trials.measure(least):
            failures = 0
        else:
            failures += 1


def _changes(costs: Table, losses: Table, picks: Picks) -> Iterator[Point]:
    base = point(costs, losses, picks)
    single = [
        (i, o, costs[i][o] - costs[i][p], losses[i][o] - losses[i][p]) for i, p in enumerate(picks) for o in range(len(costs[i])) if o != p
    ]
    for changes in itertools.chain(((one,) for one in single), itertools.combinations(single, 2)):
        if len(changes) == 2 and changes[0][0] == changes[1][0]:
            continue
        changed = list(picks)
        for i, option, _, _ in changes:
            changed[i] = option
        yield Point(base.cost + sum(c[2] for c in changes), base.loss + sum(c[3] for c in changes), tuple(changed))


def isotonic(losses: Sequence[float], badness: Sequence[float]) -> list[float]:
    """What was measured, evened out so that more predicted loss is never better: least squares by pooling neighbours (Ayer et al. 1955).

    The fastest of many plans that hold by a sample's chance would not hold on other data; its neighbours show that.
    """
    order = sorted(range(len(losses)), key=lambda i: losses[i])
    blocks: list[list[float]] = []  # sum, count
    for i in order:
        blocks.append([badness[i], 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1] = [blocks[-1][0] + total, blocks[-1][1] + count]
    even = [total / count for total, count in blocks for _ in range(int(count))]
    found = [0.0] * len(losses)
    for i, value in zip(order, even, strict=True):
        found[i] = value
    return found
