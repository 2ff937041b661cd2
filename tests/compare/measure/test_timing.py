import subprocess
import sys

import pytest

from onnxport.compare.measure import machine, timing
from onnxport.compare.measure.timing import Timed, alternate, latency_ms, percentile, ratio


def test_sides_alternate_and_take_turns_at_the_start():
    calls = []

    def run(side, number):
        calls.append(side)
        return 1.0, 10

    timed = alternate({"a": "A", "b": "B", "c": "C"}, run, rounds=3, warm_up=1)
    assert len(timed["a"].seconds) == 3
    rounds = [calls[i : i + 3] for i in range(0, len(calls), 3)]
    assert len(rounds) == 4  # the warm-up is run but not kept
    assert all(sorted(one) == ["A", "B", "C"] for one in rounds)
    assert [one[0] for one in rounds[1:]] == ["A", "B", "C"]


def test_a_spent_budget_ends_the_rounds_but_not_before_the_least():
    timed = alternate({"a": None}, lambda side, number: (1.0, 1), rounds=50, least=4, fewest=4, budget_s=0.0)
    assert len(timed["a"].seconds) == 4


def test_a_very_slow_side_is_run_fewer_times(monkeypatch):
    clock = iter(range(0, 10_000, 100))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    timed = alternate({"a": None}, lambda side, number: (1.0, 1), rounds=50, least=20, fewest=3, budget_s=10.0)
    assert len(timed["a"].seconds) == 3


def test_rates_and_ratios_are_medians():
    slow, fast = Timed([1.0, 1.0, 9.0], [10, 10, 10]), Timed([0.5, 0.4, 0.5], [10, 10, 10])
    assert slow.rate == 10
    assert fast.rate == 20
    found = ratio(fast, slow)
    assert found["ratio"] == 2
    assert found["low"] == pytest.approx(2.1)
    assert found["high"] == pytest.approx(18 - 0.2 * (18 - 2.5))


@pytest.mark.parametrize("percent, expected", [(0, 1), (50, 3), (90, 4.6), (100, 5)])
def test_percentiles_interpolate(percent, expected):
    assert percentile([5, 1, 4, 2, 3], percent) == pytest.approx(expected)


def test_latencies_are_milliseconds():
    assert latency_ms(Timed([0.1] * 9, [1] * 9)) == pytest.approx({"p50": 100, "p90": 100, "p99": 100})


def test_the_machine_is_described():
    facts = machine.describe(["no-such-package"])
    assert facts["cores"] >= facts["available_cpus"] >= 1
    assert facts["versions"]["onnxport"]
    assert "no-such-package" not in facts["versions"]


def test_peak_memory_rises_with_what_is_held_and_stays():
    code = """
from onnxport.compare.protocol import worker
before = worker.peak_rss_bytes()
held = b"x" * 50_000_000
del held
print(before, worker.peak_rss_bytes(), worker.rss_bytes())
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    before, peak, now = map(int, found)
    assert 45e6 < peak - before < 100e6
    assert now < peak - 45e6
