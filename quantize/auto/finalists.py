"""The choice among the plans that were timed: by intervals of paired rounds, never by single figures. See `onnxport.compare.speed`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from onnxport.compare.speed import EQUAL, Ratio, all_paired
from onnxport.quantize.plan import FP32


@dataclass(frozen=True)
class Choice:
    """name: the finalist.  speed: how many times as fast as fp32 it is.  alike: others whose speed cannot be told from its own.

    unclear: those that may be faster than fp32 and may not; named where fp32 is kept.
    """

    name: str
    speed: Ratio
    alike: tuple[str, ...] = ()
    unclear: tuple[str, ...] = ()


def choose(seconds: Mapping[str, Sequence[float]], losses: Mapping[str, float], allowed: Collection[str]) -> Choice:
    """The fastest finalist for certain; of those whose speed cannot be told apart the one that loses least.

    A plan must be faster than fp32 by what counts, where fp32 is allowed. seconds: of each round, by finalist, fp32 among them; the rounds
    of all are the same. losses: by finalist. allowed: the finalists within the budget.
    """
    ratios = all_paired({name: [1 / one for one in found] for name, found in seconds.items()})
    plans = [name for name in seconds if name in allowed and name != FP32.name]
    gaining = [name for name in plans if FP32.name not in allowed or ratios[name][FP32.name].faster]
    if not gaining:
        return Choice(FP32.name, EQUAL, unclear=tuple(name for name in plans if ratios[name][FP32.name].faster is None))
    unbeaten = [name for name in gaining if not any(_beats(ratios[other][name]) for other in gaining if other != name)] or gaining
    name = min(unbeaten, key=lambda one: losses[one])
    return Choice(name, ratios[name][FP32.name], alike=tuple(one for one in unbeaten if one != name))


def _beats(ratio: Ratio) -> bool:
    return ratio.sure_low is not None and ratio.sure_low > 1


def speed_text(speed: Ratio) -> str:
    """`2.10 times as fast as fp32 (2.02 to 2.18 in 24 rounds in turn)`."""
    interval = "" if speed.low is None or speed.high is None else f" ({speed.low:.2f} to {speed.high:.2f} in {speed.rounds} rounds in turn)"
    return f"{speed.ratio:.2f} times as fast as fp32{interval}"
