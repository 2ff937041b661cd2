"""Token embedding with optional absolute positions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onnxport.export.model.norm import LayerNorm


class Embedding(nn.Module):
    """`table[ids] * scale + positions[position_ids]`, normed where `eps` is given; `positions` may be missing, and learned or computed: it
    is a table either way."""

    def __init__(self, vocabulary: int, hidden: int, max_length: int | None, scale: float, eps: float | None = None) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(vocabulary, hidden))
        self.positions = nn.Parameter(torch.empty(max_length, hidden)) if max_length is not None else None
        self.norm = LayerNorm(hidden, eps) if eps is not None else None

    def forward(self, ids: Tensor, position_ids: Tensor) -> Tensor:
        """ids int64 [batch, length], position_ids int64 [batch, length] or [length] → [batch, length, hidden]."""
        x = F.embedding(ids, self.weight)
        if self.scale != 1.0:
            x = x * self.scale
        if self.positions is not None:
            x = x + F.embedding(position_ids, self.positions)
        return x if self.norm is None else self.norm(x)
