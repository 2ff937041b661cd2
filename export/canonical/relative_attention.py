"""Self attention whose scores depend on distances and token types beside contents, as XLNet has it.

Scores are those of Transformer-XL (Dai et al. 2019) with XLNet's relative encoding of segments (Yang et al. 2019): for query i and key j
scale * ((q_i + u) k_j + (q_i + v) R r_(i-j) + (q_i + s) e_[types differ]). The first term is the usual attention; the other two are added
to its scores as a bias. What all keys of a query have in common does not count behind a softmax, so the last term is only the
difference of both e, where types differ: one number a head and query, hence a projection of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onnxport.export.canonical.attention import LOWEST, merge_heads, split_heads
from onnxport.export.canonical.layers import Linear
from onnxport.export.canonical.settings import Layer


class Relations(NamedTuple):
    """What all layers share: keys that may be seen, bool [batch, 1, 1, length]; encoded distances [2 * length, hidden] from `length`
    positions back to `length - 1` ahead; whether two tokens are of different types, float 0 or 1 [batch, 1, length, length]."""

    seen: Tensor
    distances: Tensor
    differ: Tensor


class Distances(nn.Module):
    """A table of encoded distances [2 * positions, hidden], from the farthest back to the farthest ahead."""

    def __init__(self, positions: int, hidden: int) -> None:
        super().__init__()
        self.positions = positions
        self.weight = nn.Parameter(torch.empty(2 * positions, hidden))

    def forward(self, seen: Tensor, types: Tensor) -> Relations:
        """seen bool [batch, 1, 1, length], types int64 [batch, length] of at most `positions`."""
        length = types.shape[1]
        torch._check(length <= self.positions)
        distances = self.weight[self.positions - length : self.positions + length]
        differ = (types[:, None, :, None] != types[:, None, None, :]).to(distances.dtype)
        return Relations(seen, distances, differ)


def shift(scores: Tensor) -> Tensor:
    """Scores by distance [batch, heads, length, 2 * length] → by key [batch, heads, length, length]: row i begins i columns further left.

    Rows read one column short, behind the first `length` numbers, are shifted by one more each.
    """
    batch, heads, length, width = scores.shape
    short = scores.flatten(2)[:, :, length:].reshape(batch, heads, length, width - 1)
    return short[:, :, :, :length]


class RelativeAttention(nn.Module):
    """Self attention with the terms above. The scale of the two in the bias is in their weights."""

    def __init__(self, hidden: int, layer: Layer) -> None:
        super().__init__()
        self.heads, self.scale = layer.heads, layer.score_scale
        width = layer.heads * layer.size
        self.qkv = Linear(hidden, 3 * width, "attention.qkv.bias" in layer.biases)
        self.out = Linear(width, hidden, "attention.out.bias" in layer.biases)
        self.distance = Linear(hidden, width, bias=False)  # R
        self.kind = Linear(hidden, layer.heads)  # of q_i and s to the difference of both e
        self.content_bias = nn.Parameter(torch.empty(width))  # u
        self.distance_bias = nn.Parameter(torch.empty(width))  # v

    def forward(self, x: Tensor, related: Relations) -> tuple[Tensor]:
        """x [batch, length, hidden] → [batch, length, hidden]."""
        query, key, value = self.qkv(x).chunk(3, -1)
        far = split_heads(self.distance(related.distances)[None], self.heads)
        scores = shift(split_heads(query + self.distance_bias, self.heads) @ far.transpose(2, 3))
        scores = scores + related.differ * self.kind(x).transpose(1, 2)[:, :, :, None]
        query, key, value = (split_heads(part, self.heads) for part in (query + self.content_bias, key, value))
        bias = torch.where(related.seen, scores, LOWEST)
        return (self.out(merge_heads(F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=self.scale))),)
