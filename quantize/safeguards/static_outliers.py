"""Where one scale for all activations of a layer is too coarse: found by what the layer's result loses on calibration data.

A few channels or tokens of some layers are far beyond all others (Dettmers et al. 2022, LLM.int8). One scale has to hold them, and little
is left for the rest; a scale of each row, taken while the model runs, does not care for other rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxport.graph.normalize import fold_constants
from onnxport.quantize.activation_statistics import Collector, Range, Sample, observe
from onnxport.quantize.plan import Plan, Scheme
from onnxport.quantize.schemes.int8 import Sides, quantize_columns, rounded
from onnxport.quantize.schemes.linear import Linear, linears

ROWS = 512  # of a value that errors are measured on
WORSE = 2.5  # times the error of rows that a static layer may have,
SMALL = 0.01  # or this much, relative to the layer's result
Feeds = Sequence[Mapping[str, np.ndarray]]


def settle(models: Mapping[str, ir.Model], plan: Plan, feeds: Mapping[str, Feeds]) -> Plan:
    """The plan with rows in the place of static for every layer that loses too much by static; those are named by their weights."""
    unfit: dict[str, str] = {}
    for role, model in models.items():
        copy = model.clone()
        fold_constants(copy.graph)
        chosen = [(linear, plan.of(linear.parameter)) for linear in linears(copy.graph)]
        static = [(linear, scheme) for linear, scheme in chosen if scheme.kind == "static"]
        ranges = {str(linear.x.name): Range() for linear, _ in static}
        samples = {name: Sample(ROWS) for name in ranges}
        collectors: dict[str, list[Collector]] = {name: [ranges[name], samples[name]] for name in ranges}
        observe(copy, collectors, feeds.get(role, ()))
        for linear, scheme in static:
            name = str(linear.x.name)
            if samples[name].kept and not holds(linear, scheme, ranges[name], np.stack(samples[name].kept)):
                unfit[linear.parameter] = "int8-rows-reduced" if scheme.reduced else "int8-rows"
    return Plan({**plan.schemes, **unfit})


def holds(linear: Linear, scheme: Scheme, seen: Range, x: np.ndarray) -> bool:
    """Whether a static layer's result on x [n, K] is about as good as by rows."""
    static, rows = errors(linear.weight, scheme, seen, x)
    return static <= max(SMALL, WORSE * rows)


def errors(weight: np.ndarray, scheme: Scheme, seen: Range, x: np.ndarray) -> tuple[float, float]:
    """Relative errors of x [n, K] times weight [K, N] with static and with row scales: of each row, then their root mean square.

    Rows count alike, so that those with outliers do not hide what the others lose.
    """
    small, scale = quantize_columns(weight, scheme)
    back, exact = small * scale, x @ weight
    size = np.square(exact, dtype=np.float64).sum(1)
    real = size > 0
    found = []
    for given in (rounded(x, seen.limits(scheme.range)), Sides().rounded(x)):
        lost = np.square(given @ back - exact, dtype=np.float64).sum(1)
        found.append(float(np.sqrt((lost[real] / size[real]).mean())) if real.any() else 0.0)
    return found[0], found[1]
