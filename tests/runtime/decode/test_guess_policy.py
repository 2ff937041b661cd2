"""How many guesses are checked, on made-up acceptance and costs."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from onnxport.runtime.decode.guess_policy import AGAIN, FIRST, MEMORY, Acceptance, Chance, PassCosts, best_count
from onnxport.runtime.decode.speculation import Speculation


def costs(*times: tuple[int, float], rows: int = 1) -> PassCosts:
    """Passes of these widths and seconds, each measured often enough."""
    made = PassCosts()
    for width, seconds in times:
        for _ in range(FIRST):
            made.add(rows, width, seconds)
    return made


def count(known: PassCosts, *rates: float, most: int = 8, each: float = 0.0, rows: int = 1, live: int | None = None) -> int:
    return best_count(known, rows, len(rates) if live is None else live, [Chance(rate, most) for rate in rates], each)


def test_guesses_follow_what_came_true() -> None:
    known = costs((1, 10.0), (9, 14.0))  # 0.5 for each guess
    assert count(known, 0.0) == 0
    assert count(known, 0.02) == 0  # a pass more costs 5%, a guess gives 2%
    assert 0 < count(known, 0.3) < count(known, 0.6) < count(known, 0.9) == 8
    assert count(known, 0.9, most=3) == 3


def test_guesses_follow_what_a_pass_costs() -> None:
    assert count(costs((1, 10.0), (9, 10.1)), 0.5) > count(costs((1, 10.0), (9, 18.0)), 0.5) > 0
    assert count(costs((1, 10.0), (9, 90.0)), 0.9) == 0  # each new id takes as long as a pass of its own
    assert count(costs((1, 10.0), (9, 14.0)), 0.9, each=9.0) == 0  # making a guess takes as long as a pass
    assert 0 < count(costs((1, 10.0), (9, 14.0)), 0.9, each=3.0) < 8


def test_rows_without_chances_weigh() -> None:
    known = costs((1, 10.0), (9, 20.0), rows=8)
    assert count(known, *[0.8] * 8, rows=8) > 0
    assert best_count(known, 8, 8, [Chance(0.8, 8)], 0.0) == 0  # one row's guesses make all rows wait
    assert best_count(known, 8, 8, [], 0.0) == 0


def test_costs_between_and_beyond_what_was_measured() -> None:
    known = costs((1, 10.0), (5, 14.0), (9, 20.0))
    assert [known.seconds(1, width) for width in (1, 3, 5, 7, 9)] == [10.0, 12.0, 14.0, 17.0, 20.0]
    assert known.seconds(1, 17) == pytest.approx(30.0)
    assert costs((1, 10.0)).seconds(1, 5) > 10.0


def test_costs_are_those_of_late_and_bear_an_outlier() -> None:
    known = costs((1, 10.0))
    for _ in range(MEMORY):
        known.add(1, 1, 20.0)
    known.add(1, 1, 500.0)
    assert known.seconds(1, 1) == 20.0


def test_plain_passes_are_measured_first_and_again() -> None:
    known = PassCosts()
    for _ in range(FIRST):
        assert known.needs_plain(1)
        known.add(1, 1, 1.0)
    assert not known.needs_plain(1) and known.needs_plain(2)
    for _ in range(AGAIN):
        assert not known.needs_plain(1)
        known.add(1, 4, 1.0)
    assert known.needs_plain(1)


def test_acceptance_forgets() -> None:
    rate = Acceptance()
    for _ in range(40):
        rate.add(3, True)
    assert rate.rate == pytest.approx(0.75, abs=0.05)
    for _ in range(40):
        rate.add(0, True)
    assert rate.rate < 0.05


class Fixed(PassCosts):
    """A pass takes 1 second, and 0.05 for every further id of a row."""

    def needs_plain(self, rows: int) -> bool:
        return False

    def seconds(self, rows: int, width: int) -> float:
        return 1 + 0.05 * (width - 1)


class Guesses:
    """A draft whose guesses are what comes for as long as `right` says so; a guess takes 0.3 seconds."""

    each: float | None

    def __init__(self, right: Callable[[int], bool], each: float) -> None:
        self.right, self.made, self.each = right, 0, each

    def guess(self, rows: Sequence[Any], most: Sequence[int]) -> list[list[int]]:
        self.made, self.each = self.made + sum(most), 0.3
        return [[0 if self.right(len(row.tokens)) else 1] * count for row, count in zip(rows, most, strict=True)]


def spent(right: Callable[[int], bool], length: int, each: float = 0.3) -> tuple[float, int]:
    """Seconds for an answer of so many tokens, all 0, and how many guesses were made. each: what the first guess was measured to take."""
    costs, guesser = Fixed(), Guesses(right, each)
    engine = SimpleNamespace(pass_costs=costs, shortest_window=None, takes_several=lambda rows: True)
    row = SimpleNamespace(request=SimpleNamespace(limit=10 * length), tokens=[0], done=False)
    state, speculation, seconds = SimpleNamespace(rows=1, begun=True), Speculation(engine, guesser, 8), 0.0  # type: ignore[arg-type]
    while len(row.tokens) <= length:
        before = [len(row.tokens)]
        (guesses,) = speculation.guesses([row], state)  # type: ignore[list-item, arg-type]
        seconds += costs.seconds(1, 1 + len(guesses)) + 0.3 * len(guesses)
        row.tokens += [0] * (1 + (len(guesses) if not any(guesses) else 0))
        speculation.learn([row], before)  # type: ignore[list-item]
    return seconds, guesser.made


def test_a_draft_that_is_never_right_costs_next_to_nothing() -> None:
    for length in (128, 1000):
        assert spent(lambda at: False, length)[0] < length / 0.97
    assert spent(lambda at: False, 1000)[1] == spent(lambda at: False, 4000)[1]  # it is given up


def test_a_draft_that_was_slow_for_a_moment_is_used_again() -> None:
    assert spent(lambda at: True, 400, each=1.5)[0] < 400 / 1.5


def test_a_draft_that_becomes_right_is_used_again() -> None:
    assert spent(lambda at: True, 200)[0] < 200 / 2
    assert spent(lambda at: at > 60, 400)[0] < 400 / 1.5
