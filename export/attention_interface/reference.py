"""What the kernel GroupQueryAttention computes, in PyTorch: a class is tried with it before it is traced."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cached:
    """Queries [rows, heads, length, size], new keys and values [rows, kv_heads, length, size]; past: those before.

    last: the last entry of each row after the run, int [rows]; real: new ids of each row that are no padding, int [rows].
    """

    query: Tensor
    key: Tensor
    value: Tensor
    past: tuple[Tensor, Tensor]
    last: Tensor
    real: Tensor


@dataclass(frozen=True)
class Rule:
    """How scores become probabilities. bias: added, [rows or 1, heads, length, total]; sinks: a score of each head that has no value."""

    scale: float
    window: int | None = None
    softcap: float | None = None
    bias: Tensor | None = None
    sinks: Tensor | None = None


def group_query_attention(of: Cached, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
    """→ [rows, heads, length, size], and all keys and values [rows, kv_heads, total, size]."""
    rows, heads, length, size = of.query.shape
    total = int(of.last.max()) + 1
    kept = [new.new_zeros(rows, new.shape[1], total, size) for new in (of.key, of.value)]
    starts = [int(last) + 1 - int(real) for last, real in zip(of.last, of.real, strict=True)]
    for whole, past, new in zip(kept, of.past, (of.key, of.value), strict=True):
        for row, (start, real) in enumerate(zip(starts, of.real.tolist(), strict=True)):
            whole[row, :, :start] = past[row, :, :start]
            whole[row, :, start : start + real] = new[row, :, :real]
    groups = heads // of.key.shape[1]
    keys, values = (x.repeat_interleave(groups, 1) for x in kept)
    scores = torch.matmul(of.query, keys.transpose(2, 3)) * rule.scale
    if rule.softcap:
        scores = torch.tanh(scores / rule.softcap) * rule.softcap
    if rule.bias is not None:
        scores = scores + rule.bias[..., :total]
    ahead = torch.arange(total) - (torch.tensor(starts)[:, None] + torch.arange(length))[:, :, None]  # [rows, length, total]
    hidden = (ahead > 0) if rule.window is None else (ahead > 0) | (ahead <= -rule.window)
    scores = scores.masked_fill(hidden[:, None], -torch.inf)
    if rule.sinks is not None:
        scores = torch.cat([scores, rule.sinks.view(1, heads, 1, 1).expand(rows, heads, length, 1)], -1)
    return torch.matmul(scores.softmax(-1)[..., :total], values), kept[0], kept[1]
