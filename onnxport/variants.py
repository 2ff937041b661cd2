"""From fused graphs in float32 to those of one precision, with the plan that says what each weight became."""

from pathlib import Path
from typing import Any

import numpy as np

from onnxport.quantize import choice, dynamic, half, smooth

Graphs = dict[str, Any]  # role → onnx_ir.Model


def graphs_of(precision: str, fused: Graphs, goldens: Path) -> tuple[Graphs, dict[str, Any]]:
    """New graphs and their plan. Activations of a text encoder are smoothed by the inputs of its golden answers."""
    models, plan = _graphs(precision, fused, goldens)
    if "decoder" in models:
        models = models | {"decoder": choice.add_choice(models["decoder"])}
    return models, plan


def _graphs(precision: str, fused: Graphs, goldens: Path) -> tuple[Graphs, dict[str, Any]]:
    if precision == "fp16":
        return {role: half.to_fp16(graph) for role, graph in fused.items()}, {"*": "fp16"}
    if precision.startswith("int8"):
        if precision == "int8" and list(fused) == ["encoder"] and (feeds := golden_feeds(goldens)):
            fused = {"encoder": smooth.smooth(fused["encoder"], feeds)}
        models, plan = dynamic.to_int8(fused, dynamic.RECIPES[precision])
        return models, plan
    return fused, {"*": "fp32"}


def golden_feeds(path: Path) -> list[dict[str, Any]]:
    """The inputs of golden cases that are arrays by name."""
    cases: dict[str, dict[str, Any]] = {}
    with np.load(path, allow_pickle=False) as arrays:
        for name in arrays.files:
            case, is_input, key = name.partition("/in/")
            if is_input:
                cases.setdefault(case, {})[key] = arrays[name]
    return list(cases.values())
