"""Attention with packed projections, explicit masks and heads padded to a size the kernels take.

Padding is zeros in the projections, so it adds nothing to a score and nothing to an output; only the scale has to remember the true size.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onnxport.export.canonical.layers import Linear, RMSNorm
from onnxport.export.canonical.settings import Layer

LOWEST = torch.finfo(torch.float32).min  # stands for minus infinity in scores: a row of nothing but padding stays finite


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[batch, length, heads * size] → [batch, heads, length, size]."""
    return x.reshape(x.shape[0], -1, heads, x.shape[-1] // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[batch, heads, length, size] → [batch, length, heads * size]."""
    return x.transpose(1, 2).reshape(x.shape[0], -1, x.shape[1] * x.shape[3])


class Rotation(NamedTuple):
    """Tables float [positions, size / 2] of cosines and sines, and position_ids int64 [batch, length] (Su et al. 2021)."""

    cosines: Tensor
    sines: Tensor
    position_ids: Tensor

    def turn(self, x: Tensor) -> Tensor:
        """[batch, heads, length, size] → the same, the first half of a head turned against its second."""
        return torch.onnx.ops.rotary_embedding(x, self.cosines, self.sines, self.position_ids)


class SelfAttention(nn.Module):
    """Self attention behind one packed projection (queries, keys, values)."""

    def __init__(self, hidden: int, layer: Layer) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.scale = layer.heads, layer.kv_heads, layer.score_scale
        self.widths = [layer.heads * layer.size, layer.kv_heads * layer.size, layer.kv_heads * layer.size]
        self.qkv = Linear(hidden, sum(self.widths), "attention.qkv.bias" in layer.biases)
        self.out = Linear(self.widths[0], hidden, "attention.out.bias" in layer.biases)
        self.query_norm = HeadNorm(layer) if layer.qk_eps is not None else None
        self.key_norm = HeadNorm(layer) if layer.qk_eps is not None else None

    def forward(
        self, x: Tensor, mask: Tensor, past: tuple[Tensor, Tensor] | None = None, rotation: Rotation | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x [batch, length, hidden], mask bool (true = may attend) or float (added to scores) broadcast to [batch, heads, length, total],
        past key and value [batch, kv_heads, past, size] → output [batch, length, hidden], key and value [batch, kv_heads, total, size]
        with the past before them."""
        parts = self.qkv(x).split(self.widths, -1)
        query, key, value = (split_heads(p, n) for p, n in zip(parts, (self.heads, self.kv_heads, self.kv_heads), strict=True))
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if rotation is not None:
            query, key = rotation.turn(query), rotation.turn(key)
        if past is not None:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        grouped = {"enable_gqa": True} if self.heads != self.kv_heads else {}
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=self.scale, **grouped)
        return self.out(merge_heads(y)), key, value


class HeadNorm(RMSNorm):
    """An RMS norm of single heads whose mean is over their true size: padding is zeros, which add nothing to the sum of squares."""

    def __init__(self, layer: Layer) -> None:
        assert layer.qk_eps is not None
        # mean over size = mean over head * head / size: the weight takes the root back, and eps shrinks alike
        super().__init__(layer.size, layer.qk_eps * layer.head / layer.size)


class CrossProjection(nn.Module):
    """Keys and values of the memory for one decoder layer: computed once per source, in the encoder's graph."""

    def __init__(self, hidden: int, layer: Layer) -> None:
        super().__init__()
        self.heads = layer.heads
        self.kv = Linear(hidden, 2 * layer.heads * layer.size, "cross.query.bias" in layer.biases)

    def forward(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """[batch, source, hidden] → key and value [batch, heads, source, size]."""
        key, value = self.kv(memory).chunk(2, -1)
        return split_heads(key, self.heads), split_heads(value, self.heads)


class CrossAttention(nn.Module):
    """Attention over a source's keys and values, which all of its beams share."""

    def __init__(self, hidden: int, layer: Layer) -> None:
        super().__init__()
        self.heads, self.scale = layer.heads, layer.score_scale
        width = layer.heads * layer.size
        self.query = Linear(hidden, width, "cross.query.bias" in layer.biases)
        self.out = Linear(width, hidden, "cross.out.bias" in layer.biases)

    def forward(self, x: Tensor, mask: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """x [sources * beams, length, hidden], mask bool [sources, 1, 1, source], key and value [sources, heads, source, size]
        → [sources * beams, length, hidden]; row b belongs to source b // beams."""
        query = self.query(x)
        together = query.reshape(key.shape[0], -1, query.shape[-1])
        y = F.scaled_dot_product_attention(split_heads(together, self.heads), key, value, attn_mask=mask, scale=self.scale)
        return self.out(merge_heads(y).reshape(query.shape))
