"""The choice among finalists rests on intervals of paired rounds."""

import re

import numpy as np

from onnxport.quantize.auto.finalists import choose, speed_text

LOSSES = {"fp32": 0.0, "int8-rows": 0.1, "int4": 0.3, "searched": 0.2}


def rounds(count: int = 24, noise: float = 0.02, **seconds: float) -> dict[str, list[float]]:
    """Seconds of finalists round by round: the machine slows all of a round alike, and each a little."""
    rng = np.random.default_rng(0)
    shared = rng.uniform(1, 4, count)
    return {name.replace("_", "-"): list(shared * value * rng.uniform(1 - noise, 1 + noise, count)) for name, value in seconds.items()}


def test_the_fastest_for_certain_is_chosen_whatever_it_loses() -> None:
    seconds = rounds(fp32=4.0, int8_rows=2.0, int4=1.0, searched=1.5)
    choice = choose(seconds, LOSSES, list(seconds))
    assert (choice.name, choice.alike, choice.unclear) == ("int4", (), ())
    assert 3.9 < choice.speed.ratio < 4.1
    assert re.fullmatch(r"\d\.\d\d times as fast as fp32 \(3\.9\d to 4\.0\d in 24 rounds in turn\)", speed_text(choice.speed))


def test_of_those_that_cannot_be_told_apart_the_one_that_loses_least_is_chosen() -> None:
    seconds = rounds(fp32=4.0, int8_rows=2.0, int4=1.985, searched=1.99)
    assert min(seconds, key=lambda name: float(np.median(seconds[name]))) != "int8-rows"  # by single figures it would be another
    choice = choose(seconds, LOSSES, list(seconds))
    assert choice.name == "int8-rows" and set(choice.alike) == {"int4", "searched"}


def test_a_plan_that_is_not_faster_for_certain_leaves_fp32() -> None:
    seconds = rounds(noise=0.5, fp32=4.0, int4=3.6, searched=4.4)
    choice = choose(seconds, LOSSES, list(seconds))
    assert choice.name == "fp32" and "int4" in choice.unclear
    slower = choose(rounds(fp32=1.0, int4=2.0), LOSSES, ["fp32", "int4"])
    assert (slower.name, slower.unclear) == ("fp32", ())
    few = choose(rounds(count=4, fp32=4.0, int4=1.0), LOSSES, ["fp32", "int4"])  # fewer rounds than an interval takes
    assert (few.name, few.unclear) == ("fp32", ("int4",))


def test_where_fp32_is_not_within_the_budget_another_is_chosen() -> None:
    choice = choose(rounds(fp32=1.0, int4=2.0, searched=3.0), LOSSES, ["int4", "searched"])
    assert choice.name == "int4" and choice.speed.ratio < 1


def test_fp32_alone_is_kept() -> None:
    assert choose({"fp32": [1.0]}, {"fp32": 0.0}, ["fp32"]).name == "fp32"
