"""Attention with packed projections, explicit masks and heads padded to a size the kernels take.

`head` is the true head size and `size` the padded one. Padding is zeros in the projections, so it adds nothing to a score and nothing to an
output; only the scale has to remember the true size (1 / sqrt(head)).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onnxport.export.model.linear import Linear


def padded_head_size(head: int) -> int:
    """The next multiple of 8: what GroupQueryAttention asks for."""
    return (head + 7) // 8 * 8


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[batch, length, heads * size] → [batch, heads, length, size]."""
    return x.reshape(x.shape[0], -1, heads, x.shape[-1] // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[batch, heads, length, size] → [batch, length, heads * size]."""
    return x.transpose(1, 2).reshape(x.shape[0], -1, x.shape[1] * x.shape[3])


class SelfAttention(nn.Module):
    """Self attention behind one packed projection (query, key, value)."""

    def __init__(self, hidden: int, heads: int, bias: tuple[bool, bool]) -> None:
        super().__init__()
        self.heads, self.scale = heads, (hidden // heads) ** -0.5
        width = heads * padded_head_size(hidden // heads)
        self.qkv = Linear(hidden, 3 * width, bias[0])
        self.out = Linear(width, hidden, bias[1])

    def forward(self, x: Tensor, mask: Tensor, past: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x [batch, length, hidden], mask bool (true = may attend) broadcast to [batch, heads, length, total], past key and value
        [batch, heads, past, size] → output [batch, length, hidden], key and value [batch, heads, total, size] with the past before them."""
        query, key, value = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, -1))
        if past is not None:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=self.scale)
        return self.out(merge_heads(y)), key, value


class CrossProjection(nn.Module):
    """Keys and values of the memory for one decoder layer: computed once per source, in the encoder's graph."""

    def __init__(self, hidden: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.kv = Linear(hidden, 2 * heads * padded_head_size(hidden // heads), bias)

    def forward(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """[batch, source, hidden] → key and value [batch, heads, source, size]."""
        key, value = self.kv(memory).chunk(2, -1)
        return split_heads(key, self.heads), split_heads(value, self.heads)


class CrossAttention(nn.Module):
    """Attention over a source's keys and values, which all of its beams share."""

    def __init__(self, hidden: int, heads: int, bias: tuple[bool, bool]) -> None:
        super().__init__()
        self.heads, self.scale = heads, (hidden // heads) ** -0.5
        width = heads * padded_head_size(hidden // heads)
        self.query = Linear(hidden, width, bias[0])
        self.out = Linear(width, hidden, bias[1])

    def forward(self, x: Tensor, mask: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """x [sources * beams, length, hidden], mask bool [sources, 1, 1, source], key and value [sources, heads, source, size]
        → [sources * beams, length, hidden]; row b belongs to source b // beams."""
        query = self.query(x)
        together = query.reshape(key.shape[0], -1, query.shape[-1])
        y = F.scaled_dot_product_attention(split_heads(together, self.heads), key, value, attn_mask=mask, scale=self.scale)
        return self.out(merge_heads(y).reshape(query.shape))
