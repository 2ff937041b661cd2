"""What `compare` would have found of the speeds of sample variants: their ratios, with narrow intervals or wide ones."""

from collections.abc import Mapping
from typing import Any


def against_each_other(variants: Mapping[str, dict[str, Any]], noise: float = 0.01) -> dict[str, dict[str, Any]]:
    """The variants with `speed_against` and `speedup_ci` from their throughputs. noise: how far an interval reaches to either side."""
    reference = next(iter(variants))

    def ratio(name: str, other: str) -> dict[str, Any]:
        value = variants[name]["throughput"] / variants[other]["throughput"]
        low, high = value * (1 - noise), value / (1 - noise)
        return {"ratio": value, "low": low, "high": high, "sure_low": low, "sure_high": high, "rounds": 25}

    found = {}
    for name, values in variants.items():
        against = {other: ratio(name, other) for other in variants if other != name}
        own = against.get(reference, {"low": 1.0, "high": 1.0})
        found[name] = {"speed_against": against, "speedup_ci": {"low": own["low"], "high": own["high"]}, **values}
    return found
