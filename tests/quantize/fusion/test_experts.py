"""Mixtures of experts: the sum over all experts that is traced becomes a kernel of the chosen ones, in float32, half and integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from onnxport.export.attention_interface.experts import dense_experts
from onnxport.export.trace.tracer import Names, trace
from onnxport.quantize.fusion import fuse, min_onnxruntime
from onnxport.quantize.plan import Plan
from onnxport.quantize.precisions import PRECISIONS
from onnxport.quantize.schemes.apply import quantize
from onnxport.quantize.schemes.half import to_half

EXPERTS, TOP, HIDDEN, INNER = 6, 2, 64, 32


class Mixture(nn.Module):
    """Experts as transformers' classes hold them, behind a router whose weights do not add up to 1."""

    num_experts, has_gate, is_transposed = EXPERTS, True, False

    def __init__(self, gate: str) -> None:
        super().__init__()
        self.gate, self.has_bias = gate, gate == "clamped"
        self.router = nn.Linear(HIDDEN, EXPERTS)
        self.gate_up_proj = nn.Parameter(torch.randn(EXPERTS, 2 * INNER, HIDDEN) / HIDDEN**0.5)
        self.down_proj = nn.Parameter(torch.randn(EXPERTS, HIDDEN, INNER) / INNER**0.5)
        self.gate_up_proj_bias = nn.Parameter(torch.randn(EXPERTS, 2 * INNER))
        self.down_proj_bias = nn.Parameter(torch.randn(EXPERTS, HIDDEN))

    def _apply_gate(self, x: Any) -> Any:
        if self.gate == "clamped":  # as gpt-oss has it
            gate, value = x[..., ::2].clamp(max=1.5), x[..., 1::2].clamp(-1.5, 1.5)
            return (value + 1) * gate * torch.sigmoid(gate * 1.702)
        gate, value = x.chunk(2, dim=-1)
        return value * (nn.functional.silu(gate) if self.gate == "silu" else nn.functional.gelu(gate))

    def forward(self, x: Any) -> Any:
        weights, chosen = self.router(x).sigmoid().topk(TOP)
        return dense_experts(self, x, chosen, weights * 2.5)


@pytest.fixture(scope="module")
def mixtures() -> dict[str, tuple[ir.Model, Mixture]]:
    torch.manual_seed(0)
    found = {}
    for gate in ("silu", "clamped", "gelu"):
        model = Mixture(gate).eval()
        names = Names({name: name for name, _ in model.named_parameters()})
        shapes, outputs = ({0: "tokens"},), {"y": ("tokens", HIDDEN)}
        found[gate] = trace(model, {"x": torch.randn(5, HIDDEN)}, shapes, ["x"], outputs, names, 23, "model"), model
    return found


def apart(session: Any, model: Mixture, tokens: int) -> float:
    """The largest difference of a session's answer from the module's, over the largest answer."""
    x = torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(tokens))
    with torch.no_grad():
        wanted = model(x).numpy()
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("gate", ["silu", "clamped"])
def test_chosen_experts_alone(mixtures, session, gate: str) -> None:
    standard, model = mixtures[gate]
    fused, counts = fuse(standard, "model", "cpu")
    assert counts["experts"] == 1 and min_onnxruntime({"model": fused}, "cpu") == "1.32"
    stored = ir.from_proto(ir.to_proto(fused))  # it keeps names alone
    graphs = {"fp32": (fused, 1e-5), "fp16": (to_half(fused, PRECISIONS["fp16"].plan), 1e-2)}
    for plan, kind, bound in (
        ("int8-rows", "int8-blocks32", 0.03),
        ("int8-blocks16-rotated", "int8-blocks16", 0.03),
        ("int4-blocks32-asym-fit", "int4-blocks32-asym", 0.25),
        ("int4-blocks16", "int4-blocks16", 0.25),
    ):
        made, became = quantize({"model": fused}, Plan({"*_proj": plan}))
        assert became == {"gate_up_proj": kind, "down_proj": kind, "router.weight": "fp32"}
        assert sum(node.op_type == "QMoE" for node in made["model"].graph) == 1
        again, _ = quantize({"model": stored}, Plan(became))
        weights = [
            {name: value.const_value.tobytes() for name, value in one.graph.initializers.items()} for one in (made["model"], again["model"])
        ]
        assert weights[0] == weights[1]
        graphs[plan] = made["model"], bound
    for name, (graph, bound) in graphs.items():
        opened = session(graph, threads=2)
        for tokens in (1, 3, 70):
            assert apart(opened, model, tokens) < bound, (name, tokens)


def test_what_the_kernel_does_not_know_stays(mixtures, session) -> None:
    standard, model = mixtures["gelu"]
    fused, counts = fuse(standard, "model", "cpu")
    assert "experts" not in counts and apart(session(fused), model, 3) < 1e-5
    assert "experts" not in fuse(mixtures["silu"][0], "model", "any")[1]
