"""Mixtures of experts without a branch on values: every expert answers, and the router's weights choose.

A sum over all experts is what torch can trace. Fusion puts a kernel that computes the chosen ones in its place where it can.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from onnxport.export.attention_interface.implementations import using

DENSE = "onnxport_dense"


def register_experts() -> None:
    """Make `DENSE` known to transformers' experts interface."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(DENSE, dense_experts)


@contextmanager
def dense(model: Any) -> Iterator[None]:
    """The model's experts are ours, until the block is left."""
    register_experts()
    with using(model, "_experts_implementation_internal", DENSE):
        yield


def dense_experts(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The weighted sum of all experts, as transformers' `batched_mm_experts_forward` gives it for the chosen ones.

    hidden_states [tokens, hidden], top_k_index and top_k_weights [tokens, k] → [tokens, hidden]. It costs every expert's products.
    """
    chosen = top_k_index[:, :, None] == torch.arange(self.num_experts, device=top_k_index.device)
    weights = (chosen * top_k_weights[:, :, None].to(hidden_states.dtype)).sum(1)
    up = _product(self, hidden_states[None], "gate_up_proj" if self.has_gate else "up_proj")
    up = self._apply_gate(up) if self.has_gate else self.act_fn(up)
    down = _product(self, up, "down_proj")
    if getattr(self, "has_post_expert_norm", False):
        down = self.post_expert_norm(down)
    return (down * weights.t()[:, :, None]).sum(0)


def _product(experts: Any, x: Tensor, name: str) -> Tensor:
    """[experts or 1, tokens, width] → [experts, tokens, its rows], with the experts' biases."""
    weight = getattr(experts, name)
    y = torch.matmul(x, weight if experts.is_transposed else weight.transpose(1, 2))
    return y + getattr(experts, f"{name}_bias")[:, None] if experts.has_bias else y
