"""Timing on a noisy machine: sides alternate run by run, medians are compared, and the spread is kept."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnxport.compare.measure.energy import Meter
from onnxport.compare.protocol.client import Client

Sample = tuple[float, int]  # seconds, units


@dataclass(frozen=True)
class Timed:
    """Runs of one side over the same work; run i stands beside run i of every other side. joules: of each run, where they are measured."""

    seconds: list[float]
    units: list[int]
    joules: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Seconds of a run."""
        return statistics.median(self.seconds)

    @property
    def rates(self) -> list[float]:
        """Units a second of each run."""
        return [u / s for s, u in zip(self.seconds, self.units, strict=True)]

    @property
    def rate(self) -> float:
        """Units a second: the median over runs."""
        return statistics.median(self.rates)

    @property
    def joules_per_unit(self) -> float | None:
        """Over all runs: counters are too coarse for one. None where they were not measured."""
        return sum(self.joules) / sum(self.units) if self.joules else None


def alternate(
    sides: Mapping[str, Client],
    run: Callable[[Client, int], Sample],
    *,
    rounds: int,
    least: int = 5,
    fewest: int = 3,
    budget_s: float = 10.0,
    warm_up: int = 1,
    meters: Mapping[str, Meter] | None = None,
    enough: Callable[[Mapping[str, Timed]], bool] | None = None,
    on_round: Callable[[int, int], None] | None = None,
    after: Callable[[Client], None] | None = None,
) -> dict[str, Timed]:
    """Runs every side once a round, in an order that changes from round to round, so that none always runs after the same other.

    run: (side, round) -> (seconds, units). Rounds end early when `budget_s` is spent, but not before `least` of them, or before
    `fewest` when a side is so slow that twice the budget is spent. meters: by side, of the energy that is spent while it runs.
    enough: whether what was taken suffices, asked after `least` rounds, twice as many, and so on: each look is a chance to be misled.
    on_round: called before each round with how many are done and about how many there will be. after: called after each run, where there
    are several sides, such as `idle.wait`.
    """
    names = list(sides)
    joules: dict[str, list[float]] = {name: [] for name in names}
    samples: dict[str, list[Sample]] = {name: [] for name in names}

    def taken() -> dict[str, Timed]:
        return {name: Timed([s for s, _ in own], [u for _, u in own], joules[name]) for name, own in samples.items()}

    started, look = time.perf_counter(), least
    for number in range(-warm_up, rounds):
        spent = time.perf_counter() - started
        if spent > budget_s and number >= (least if spent < 2 * budget_s else fewest):
            break
        if enough is not None and number == look:
            look *= 2
            if enough(taken()):
                break
        if on_round is not None and number >= 0:
            on_round(number, max(number + 1, min(rounds, round(budget_s * number / spent)) if number and spent else rounds))
        for name in _order(names, number):
            sample, spent_joules = _run(sides[name], run, number, (meters or {}).get(name))
            if number >= 0:
                samples[name].append(sample)
                joules[name] += spent_joules
            if after is not None and len(names) > 1:
                after(sides[name])
    return taken()


def _run(side: Client, run: Callable[[Client, int], Sample], number: int, meter: Meter | None) -> tuple[Sample, list[float]]:
    """A run, and the joules of it where there is a meter."""
    before = meter.joules() if meter is not None else 0.0
    sample = run(side, max(number, 0))
    return sample, [] if meter is None else [meter.joules() - before]


def _order(names: Sequence[str], number: int) -> list[str]:
    """The order of a round: each side begins in turn, and once all have, they run the other way round."""
    turn = number % len(names)
    order = [*names[turn:], *names[:turn]]
    return order[::-1] if number // len(names) % 2 else order


def ratio(side: Timed, reference: Timed) -> dict[str, float]:
    """How many times as fast `side` is: the ratio of median rates, with the 10th and 90th percentile of the ratios run by run."""
    single = [own / other for own, other in zip(side.rates, reference.rates, strict=True)]
    return {"ratio": side.rate / reference.rate, "low": percentile(single, 10), "high": percentile(single, 90)}


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear between the two nearest ranks; `values` need not be sorted and must not be empty."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def latency_ms(timed: Timed) -> dict[str, float]:
    """p50, p90 and p99 in milliseconds of single inputs."""
    return {f"p{percent}": percentile(timed.seconds, percent) * 1e3 for percent in (50, 90, 99)}


def timed_call(method: str, batches: Sequence[Any], **options: Any) -> Callable[[Client, int], Sample]:
    """A run for `alternate`: the method on one batch a round, in turn."""

    def run(side: Client, number: int) -> Sample:
        return side.time(method, batches[number % len(batches)], **options)[0]

    return run
