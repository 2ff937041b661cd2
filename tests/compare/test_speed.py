"""The rules on speed, and how often they are wrong on a noisy machine: simulated, with seeds."""

import itertools
import math
import random

import pytest

from onnxport.compare import speed
from onnxport.compare.measure import measurement, timing
from onnxport.compare.speed import Ratio, between, paired
from onnxport.compare.verdict import recommend
from support.compare_samples import metrics


def test_the_interval_is_the_sign_tests():
    # Of 25 values the 8th and the 18th: 2 P(Bin(25, 1/2) <= 7) = 0.043, and with 8 it would be 0.108; 0.0041 with 5 and 0.015 with 6.
    found = paired([float(i) for i in range(1, 26)], [1.0] * 25)
    assert (found.ratio, found.low, found.high, found.rounds) == (13, 8, 18, 25)
    assert (found.sure_low, found.sure_high) == (6, 20)


@pytest.mark.parametrize("count, ends, sure", [(5, (None, None), (None, None)), (6, (1, 6), (None, None)), (8, (1, 8), (1, 8))])
def test_too_few_rounds_have_no_interval(count, ends, sure):
    found = paired([float(i) for i in range(1, count + 1)], [1.0] * count)
    assert (found.low, found.high) == ends
    assert (found.sure_low, found.sure_high) == sure
    assert (found.settled, found.faster, found.as_fast) == (False, None, None) if sure[0] is None else True


def test_an_interval_covers_the_true_median_as_often_as_it_says():
    generator = random.Random(1)
    missed = 0
    for _ in range(2000):
        found = paired([math.exp(generator.gauss(0, 0.3)) for _ in range(25)], [1.0] * 25)
        missed += not found.low <= 1 <= found.high
    assert 0.02 < missed / 2000 < 0.06


@pytest.mark.parametrize(
    "low, high, faster, as_fast, fast_enough",
    [
        (1.1, 1.3, True, True, True),
        (0.95, 1.05, False, True, True),
        (0.5, 0.6, False, False, False),
        (1.05, 1.2, None, True, True),
        (0.8, 1.0, False, None, True),
        (0.75, 0.95, False, None, None),
    ],
)
def test_what_is_said_follows_the_interval(low, high, faster, as_fast, fast_enough):
    ratio = Ratio(math.sqrt(low * high), low, high, low, high, 25)
    assert (ratio.faster, ratio.as_fast, ratio.fast_enough) == (faster, as_fast, fast_enough)
    assert ratio.settled == (None not in (faster, fast_enough))


def test_variants_that_were_not_held_against_each_other_have_no_interval():
    variants = {"a": {"throughput": 4.0}, "b": {"throughput": 2.0}}
    assert between(variants, "a", "b") == Ratio(2.0)
    assert between(variants, "a", "a").faster is False


class Machine:
    """Times of runs on a machine that drifts, has bursts of other work, and now and then stops for a while.

    speeds: by side.  busy: another process takes a processor: half of the runs take 1.2 to 2.2 times as long, and bursts are common.
    Every process has a speed of its own, within some 2%, that no number of runs averages out.
    """

    def __init__(self, speeds, seed, busy):
        self.random, self.speeds, self.busy = random.Random(seed), speeds, busy
        self.own = {name: self.random.gauss(0, 0.02) for name in speeds}
        self.drift, self.burst = 0.0, 0

    def run(self, name, number):
        draw = self.random
        self.drift += draw.gauss(0, 0.01)
        if self.burst:
            self.burst -= 1
        elif draw.random() < (0.1 if self.busy else 0.02):
            self.burst = draw.randint(1, 12)
        logarithm = self.own[name] + self.drift - math.log(self.speeds[name])
        logarithm += 0.03 * draw.gauss(0, 1) / max(0.2, math.sqrt(draw.gammavariate(1, 1)))  # heavy tails
        if self.burst:
            logarithm += math.log(draw.uniform(1.1, 3))
        if self.busy and draw.random() < 0.5:
            logarithm += math.log(draw.uniform(1.2, 2.2))
        return math.exp(logarithm), 32

    def variants(self):
        """What a report would hold, all of one size."""
        limits = measurement._DECIDING | {"budget_s": math.inf, "enough": measurement._settled}
        timed = timing.alternate({name: name for name in self.speeds}, self.run, **limits)
        ratios = speed.all_paired({name: one.rates for name, one in timed.items()})
        return {
            name: metrics(throughput=one.rate, speed_against={other: vars(ratio) for other, ratio in ratios[name].items()})
            for name, one in timed.items()
        }


@pytest.mark.parametrize("busy", [False, True])
def test_of_equal_variants_none_is_chosen_for_speed(busy):
    for seed, names in itertools.product(range(60), (("fp32", "int8"), ("fp32", "fp16", "int8"))):
        variants = Machine(dict.fromkeys(names, 1.0), seed, busy).variants()
        assert recommend(variants, "fp32").name == "fp32"
        assert not any(between(variants, a, b).faster for a, b in itertools.permutations(names, 2)), (seed, names)


@pytest.mark.parametrize("busy, least", [(False, 100), (True, 98)])
def test_a_variant_that_is_one_and_a_half_times_as_fast_is_chosen(busy, least):
    chosen = [recommend(Machine({"fp32": 1.0, "int8": 1.5}, seed, busy).variants(), "fp32") for seed in range(100)]
    assert sum((one.name, one.why) == ("int8", "speed") for one in chosen) >= least


def test_too_noisy_to_tell_is_rare_where_the_machine_is_quiet():
    unclear = [recommend(Machine({"fp32": 1.0, "int8": 1.0}, seed, False).variants(), "fp32").unclear for seed in range(100)]
    assert sum(map(bool, unclear)) <= 2
