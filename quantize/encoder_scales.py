"""Encoders of texts read scaled channels where their activations are rounded: the graph of each plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxport.quantize.calibration_inputs import golden_feeds
from onnxport.quantize.plan import Plan
from onnxport.quantize.safeguards import static_norms
from onnxport.quantize.schemes.channel_scales import ChannelScales
from onnxport.quantize.schemes.linear import linears

Feeds = Mapping[str, Sequence[Mapping[str, np.ndarray]]]


class EncoderScales:
    """The scales of a text encoder's channels, which plans share; graphs of other models stay as they are.

    fused: float32, by role. feeds: calibration inputs by role; None takes the inputs of the golden answers. goldens: golden.npz.
    """

    def __init__(self, fused: Mapping[str, Any], feeds: Feeds | None, goldens: Path) -> None:
        self._fused, self._scales = dict(fused), None
        self._role = reads_texts(fused)
        if self._role is not None and (seen := (feeds if feeds is not None else golden_feeds(goldens, fused))[self._role]):
            self._scales = ChannelScales(fused[self._role], seen)

    def with_static_norms(self, plan: Plan) -> Plan:
        """The plan with one scale in the place of rows for inputs that norms make, as far as products hardly lose by it."""
        return plan if self._scales is None else static_norms.settle(self._fused[str(self._role)], plan, self._scales)

    def graphs(self, plan: Plan) -> dict[str, Any]:
        """The float32 graphs that a plan is carried out on."""
        if self._scales is None:
            return self._fused
        return {str(self._role): self._scales.scaled(_for_scales(plan, self._fused[str(self._role)]))}


def reads_texts(fused: Mapping[str, Any]) -> str | None:
    """The role of the only graph, where it encodes texts: it is called so, or reads token ids by their usual name and is no decoder."""
    if len(fused) != 1 or "decoder" in fused:
        return None
    ((role, model),) = fused.items()
    return role if role == "encoder" or any(value.name == "input_ids" for value in model.graph.inputs) else None


def _for_scales(plan: Plan, model: Any) -> Plan:
    """The schemes that channels are scaled for: all by rows, but for what one scale serves that holds all that was seen.

    So a weight that is left in float32 afterwards, or gets rows in the place of one scale, changes nothing for the others.
    """
    found = {linear.parameter: plan.of(linear.parameter) for linear in linears(model.graph)}
    return Plan({name: one.name if one.kind == "static" and one.range == "minmax" else static_norms.ROWS for name, one in found.items()})
