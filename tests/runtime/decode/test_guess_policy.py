"""How many guesses are checked, on made-up acceptance and costs."""

import pytest

from onnxport.runtime.decode.guess_policy import AGAIN, FIRST, MEMORY, Acceptance, Chance, PassCosts, best_count
from onnxport.runtime.decode.speculation import HOPE_OF_DRAFT


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
    rate = Acceptance.expected(0.6)
    for _ in range(40):
        rate.add(3, True)
    assert rate.rate == pytest.approx(0.75, abs=0.05)
    for _ in range(40):
        rate.add(0, True)
    assert rate.rate < 0.05


def test_a_draft_of_half_a_pass_is_tried_before_anything_is_known_of_it() -> None:
    known = PassCosts()
    for _ in range(FIRST):
        known.add(1, 1, 1.0)
    assert best_count(known, 1, 1, [Chance(Acceptance.expected(HOPE_OF_DRAFT).rate, 8)], 0.52) >= 2
