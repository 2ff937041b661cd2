"""Token embedding with optional absolute positions, and the tables of rotary and relative positions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onnxport.export.canonical.attention import Rotation
from onnxport.export.canonical.layers import LayerNorm


class Embedding(nn.Module):
    """`table[ids] * scale + positions[position_ids] + types[type_ids]`, normed where `eps` is given; `positions` may be missing, and
    learned or computed: it is a table either way."""

    def __init__(
        self, vocabulary: int, hidden: int, max_length: int | None, scale: float, eps: float | None = None, types: int = 0
    ) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(vocabulary, hidden))
        self.positions = nn.Parameter(torch.empty(max_length, hidden)) if max_length is not None else None
        self.types = nn.Parameter(torch.empty(types, hidden)) if types else None
        self.norm = LayerNorm(hidden, eps) if eps is not None else None

    def forward(self, ids: Tensor, position_ids: Tensor, type_ids: Tensor | None = None) -> Tensor:
        """ids and type_ids int64 [batch, length], position_ids int64 or int32 [batch, length] or [length] → [batch, length, hidden]."""
        x = F.embedding(ids, self.weight)
        if self.scale != 1.0:
            x = x * self.scale
        if self.types is not None:
            assert type_ids is not None, "an embedding of token types needs them"
            x = x + F.embedding(type_ids, self.types)
        if self.positions is not None:
            x = x + F.embedding(position_ids, self.positions)
        return x if self.norm is None else self.norm(x)


def counted_positions(ids: Tensor, padding: int) -> Tensor:
    """int64 [batch, length] → int32 of the same shape: tokens count from `padding + 1` on, and `padding` itself, wherever it stands, counts
    for nothing and has its own number, as in RoBERTa."""
    real = (ids != padding).int()
    return real.cumsum(1, dtype=torch.int32) * real + padding


class RotaryTables(nn.Module):
    """Cosines and sines [positions, size / 2] that all layers share."""

    def __init__(self, positions: int, size: int) -> None:
        super().__init__()
        self.cosines = nn.Parameter(torch.empty(positions, size // 2))
        self.sines = nn.Parameter(torch.empty(positions, size // 2))

    def forward(self, position_ids: Tensor) -> Rotation:
        """int64 [batch, length] → what turns queries and keys at these positions."""
        return Rotation(self.cosines, self.sines, position_ids)


class RelativeBias(nn.Module):
    """A bias of scores by distance, [distances, heads], that all layers share (Raffel et al. 2020, with its buckets looked up already).

    Row `zero` is that of a key at the query's own position, rows before it those of keys ahead; what is farther has the last row's.
    """

    def __init__(self, distances: int, heads: int, zero: int) -> None:
        super().__init__()
        self.zero = zero
        self.weight = nn.Parameter(torch.empty(distances, heads))

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Positions int64 [batch, length] and [total] → [batch, heads, length, total]."""
        distance = (queries[:, :, None] - keys[None, None, :] + self.zero).clamp(0, self.weight.shape[0] - 1)
        return F.embedding(distance, self.weight).permute(0, 3, 1, 2)
