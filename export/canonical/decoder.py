"""The decoder with a cached step: one graph serves prefill and step."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onnxport.export.canonical.attention import LOWEST, CrossAttention, Rotation, SelfAttention
from onnxport.export.canonical.layers import FeedForward, make_norm
from onnxport.export.canonical.position import Embedding, RelativeBias, RotaryTables
from onnxport.export.canonical.settings import Layer, Stack

Pair = tuple[Tensor, Tensor]


class DecoderLayer(nn.Module):
    """Causal self attention, cross attention where there is a memory, feed-forward."""

    def __init__(self, hidden: int, layer: Layer, cross: bool) -> None:
        super().__init__()
        self.norm_first, self.window = layer.norm_first, layer.window
        has = layer.biases.__contains__
        self.attention = SelfAttention(hidden, layer)
        self.attention_norm = make_norm(layer.norm, hidden, layer.eps[0], has("attention_norm.bias"))
        self.cross = CrossAttention(hidden, layer) if cross else None
        self.cross_norm = make_norm(layer.norm, hidden, layer.eps[1], has("cross_norm.bias")) if cross else None
        self.feed_forward = FeedForward(hidden, layer)
        self.feed_forward_norm = make_norm(layer.norm, hidden, layer.eps[-1], has("feed_forward_norm.bias"))

    def forward(
        self, x: Tensor, mask: Tensor, past: Pair, rotation: Rotation | None, memory_mask: Tensor | None, memory: Pair | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x [batch, length, hidden], mask [batch, 1 or heads, length, total], past and memory pairs → x, key and value with new entries."""
        y, key, value = self.attention(self.attention_norm(x) if self.norm_first else x, mask, past, rotation)
        x = x + y if self.norm_first else self.attention_norm(x + y)
        if self.cross is not None and self.cross_norm is not None:
            assert memory is not None, "a layer with cross attention needs a memory"
            y = self.cross(self.cross_norm(x) if self.norm_first else x, memory_mask, *memory)
            x = x + y if self.norm_first else self.cross_norm(x + y)
        y = self.feed_forward(self.feed_forward_norm(x) if self.norm_first else x)
        return (x + y if self.norm_first else self.feed_forward_norm(x + y)), key, value


class Decoder(nn.Module):
    """Graph `decoder`: token ids and a cache to the logits of one position a row, and the grown cache."""

    def __init__(self, stack: Stack, embedding: Embedding, vocabulary: int | None, bias: bool, head_scale: float = 1.0) -> None:
        """`vocabulary`: rows of a head of its own; None when the embedding's table is also the head's. `head_scale`: of what it reads."""
        super().__init__()
        self.embedding, self.head_scale = embedding, head_scale
        first = stack.layers[0]
        self.rotary = RotaryTables(stack.rotary, first.size) if stack.rotary else None
        self.relative = RelativeBias(stack.relative, first.heads, 0) if stack.relative else None
        self.layers = nn.ModuleList(DecoderLayer(stack.hidden, layer, stack.cross) for layer in stack.layers)
        self.norm = make_norm(first.norm, stack.hidden, stack.final_eps, stack.final_bias) if stack.final_eps is not None else None
        # [vocabulary, hidden], not transposed: a tied table stays one tensor (Gemm reads it transposed)
        self.head = nn.Parameter(torch.empty(vocabulary, stack.hidden)) if vocabulary is not None else None
        self.vocabulary = vocabulary if vocabulary is not None else embedding.weight.shape[0]
        self.head_bias = nn.Parameter(torch.empty(self.vocabulary)) if bias else None

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        logits_index: Tensor,
        self_mask: Tensor,
        past: list[Pair],
        source_mask: Tensor | None = None,
        cross: list[Pair] | None = None,
    ) -> tuple[Tensor, ...]:
        """input_ids and position_ids int64 [batch, length], logits_index int64 [batch], self_mask bool [batch, 1, length, total]; past
        pairs [batch, kv_heads, past, size], source_mask int32 [sources, source], cross pairs [sources, heads, source, size]
        → logits [batch, vocabulary], then key and value [batch, kv_heads, total, size] of each layer."""
        x = self.embedding(input_ids, position_ids)
        memory_mask = None if source_mask is None else (source_mask != 0)[:, None, None, :]
        rotation = None if self.rotary is None else self.rotary(position_ids)
        masks = self._masks(self_mask, position_ids)
        present: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            x, key, value = layer(x, masks[layer.window], past[i], rotation, memory_mask, None if cross is None else cross[i])
            present += [key, value]
        if self.norm is not None:
            x = self.norm(x)
        x = x[torch.arange(x.shape[0], device=x.device), logits_index]
        if self.head_scale != 1.0:
            x = x * self.head_scale
        table = self.embedding.weight if self.head is None else self.head
        return F.linear(x, table, self.head_bias), *present

    def _masks(self, mask: Tensor, position_ids: Tensor) -> dict[int | None, Tensor]:
        """By window, what attention takes: which entries a query may see, or the biases of those that it may see."""
        windows = {layer.window for layer in self.layers}
        if windows == {None} and self.relative is None:
            return {None: mask}
        # a row's entries lie in the cache by position, without gaps
        entries = torch.arange(mask.shape[3], device=mask.device)
        masks: dict[int | None, Tensor] = {None: mask}
        for window in windows - {None}:
            masks[window] = mask & (position_ids[:, None, :, None] - entries < window)
        if self.relative is not None:
            bias = self.relative(position_ids, entries)
            masks = {window: torch.where(seen, bias, LOWEST) for window, seen in masks.items()}
        return masks
