"""From fused graphs in float32 to those of one precision, with the plan that says what each weight became."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxport.errors import UsageError
from onnxport.graph import search_graphs
from onnxport.quantize import precisions
from onnxport.quantize.calibration_inputs import golden_feeds
from onnxport.quantize.plan import Plan
from onnxport.quantize.precisions import RECIPES
from onnxport.quantize.safeguards import half_overflow, sensitive_weights, static_outliers
from onnxport.quantize.schemes import half, smooth_quant
from onnxport.quantize.schemes.apply import quantize
from onnxport.quantize.schemes.half import owners

Graphs = dict[str, Any]  # role → onnx_ir.Model
Feeds = Mapping[str, list[dict[str, np.ndarray]]]
ROOM = 0.8  # share of a variant's bound that an encoder may use before its most sensitive weights stay in float32


@dataclass(frozen=True)
class Wish:
    """A variant to be made.

    precision: its name. plan: in place of the precision's recipe. feeds: gives calibration inputs of each graph, where there is data.
    """

    precision: str
    plan: Plan | None = None
    feeds: Callable[[], Feeds] | None = None

    @property
    def chosen(self) -> Plan:
        """The plan to carry out."""
        return self.plan if self.plan is not None else RECIPES[self.precision]


def graphs_of(wish: Wish, fused: Graphs, goldens: Path) -> tuple[Graphs, dict[str, str]]:
    """New graphs and what each weight became: a plan that makes the same again. Errors: see `quantize`, `to_half`.

    Activations of a text encoder are smoothed before they are quantized, by the calibration data or else by the inputs of golden answers.
    """
    models, became = _graphs(wish, fused, goldens)
    if "decoder" in models:
        models = models | {"decoder": search_graphs.add_choice(models["decoder"])}
    return models, became


def _graphs(wish: Wish, fused: Graphs, goldens: Path) -> tuple[Graphs, dict[str, str]]:
    plan = wish.chosen
    if plan.half is not None:
        return _half(wish, plan, fused, goldens)
    if set(plan.schemes.values()) == {"fp32"}:
        return fused, dict(plan.schemes)
    if plan.needs and wish.feeds is None:
        raise UsageError(f"{wish.precision} is calibrated on data, and there is none: give --calibrate FILE")
    feeds = wish.feeds() if wish.feeds is not None else None
    if plan.rounds_activations:
        fused = smoothed(fused, feeds, goldens)
    if wish.plan is None and not plan.needs and list(fused) == ["encoder"]:
        most = ROOM * precisions.BOUNDS[wish.precision]["relative_error"]
        plan = Plan(plan.schemes | sensitive_weights.to_keep(fused["encoder"], golden_feeds(goldens, fused)["encoder"], plan, most))
    if wish.plan is None and feeds is not None and "range" in plan.needs:
        plan = static_outliers.settle(fused, plan, feeds)
    return quantize(fused, plan, feeds)


def _half(wish: Wish, plan: Plan, fused: Graphs, goldens: Path) -> tuple[Graphs, dict[str, str]]:
    """In half precision but for the layers that do not fit it, which the plan names. A plan by hand is carried out as it is."""
    plan.check(name for graph in fused.values() for name in owners(half.prepared(graph).graph).values())
    if plan.half == "bf16":
        precisions.check_bf16()
        if "decoder" in fused:
            raise UsageError("bf16 is made of encoders and plain modules: the cache of a model that generates has no such type; use fp16")
    elif wish.plan is None:
        plan = half_overflow.safe(fused, plan, wish.feeds() if wish.feeds is not None else golden_feeds(goldens, fused))
    return {role: half.to_half(graph, plan) for role, graph in fused.items()}, dict(plan.schemes)


def smoothed(fused: Graphs, feeds: Feeds | None, goldens: Path) -> Graphs:
    """The graph of a text encoder with activations that are easier to quantize, other graphs as they are."""
    if list(fused) != ["encoder"]:
        return fused
    seen = (feeds if feeds is not None else golden_feeds(goldens, fused))["encoder"]
    return {"encoder": smooth_quant.smooth(fused["encoder"], seen)} if seen else fused
