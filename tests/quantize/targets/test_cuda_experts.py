"""CUDA's kernel of few bits for experts is not used: there they stay as they are, whatever a plan says."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxport.quantize.plan import Plan
from onnxport.quantize.recipe import Recipe, make_graphs
from support import expert_layers

OWN = "layers.1.experts.gate_up_proj"


@pytest.mark.parametrize(("target", "kernels"), [("cpu", {"QMoE"}), ("cuda", {"MoE"})])
@pytest.mark.parametrize("plan", [None, Plan({"*": "int4-blocks32", "*layers.*.experts.gate_up_proj*": "int4-blocks32"})])
def test_experts_have_few_bits_on_the_cpu_alone(target: str, kernels: set[str], plan: Plan | None, tmp_path: Path) -> None:
    recipe = Recipe("int4-rtn", plan, target=target, feeds=lambda: {"decoder": expert_layers.feeds()})
    made = make_graphs(recipe, {"decoder": expert_layers.decoder(2)}, tmp_path / "golden.npz")
    assert {node.op_type for node in made.models["decoder"].graph if "MoE" in node.op_type} == kernels
    of_experts = {scheme for name, scheme in made.plan.schemes.items() if "experts" in name}
    assert ("fp32" in of_experts) == (target == "cuda") and (target == "cpu" or len(of_experts) == 1)


def test_a_weights_own_name_decides_before_longer_patterns() -> None:
    pattern = f"*{OWN.replace('.', '*.')}*"
    assert len(pattern) > len(OWN)
    plan = Plan({pattern: "int4-blocks32", OWN: "fp32"})
    assert plan.of(OWN).name == "fp32" and plan.of(OWN.replace("1", "12")).name == "int4-blocks32"
