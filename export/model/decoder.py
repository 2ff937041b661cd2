"""The decoder with a cached step: one graph serves prefill and step."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onnxport.export.model.attention import CrossAttention, SelfAttention
from onnxport.export.model.feed_forward import FeedForward
from onnxport.export.model.norm import LayerNorm
from onnxport.export.model.position import Embedding
from onnxport.export.model.settings import Layer, Stack

Pair = tuple[Tensor, Tensor]


class DecoderLayer(nn.Module):
    """Causal self attention, cross attention where there is a memory, feed-forward."""

    def __init__(self, hidden: int, layer: Layer, cross: bool) -> None:
        super().__init__()
        self.norm_first = layer.norm_first
        has = layer.biases.__contains__
        self.attention = SelfAttention(hidden, layer.heads, (has("attention.qkv.bias"), has("attention.out.bias")))
        self.attention_norm = LayerNorm(hidden, layer.eps[0], has("attention_norm.bias"))
        self.cross = CrossAttention(hidden, layer.heads, (has("cross.query.bias"), has("cross.out.bias"))) if cross else None
        self.cross_norm = LayerNorm(hidden, layer.eps[1], has("cross_norm.bias")) if cross else None
        self.feed_forward = FeedForward(hidden, layer.inner, layer.activation, (has("feed_forward.up.bias"), has("feed_forward.down.bias")))
        self.feed_forward_norm = LayerNorm(hidden, layer.eps[-1], has("feed_forward_norm.bias"))

    def forward(
        self, x: Tensor, mask: Tensor, past: Pair, memory_mask: Tensor | None, memory: Pair | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x [batch, length, hidden], mask bool [batch, 1, length, total], past and memory pairs → x, key and value with the new entries."""
        y, key, value = self.attention(self.attention_norm(x) if self.norm_first else x, mask, past)
        x = x + y if self.norm_first else self.attention_norm(x + y)
        if self.cross is not None and self.cross_norm is not None:
            assert memory is not None, "a layer with cross attention needs a memory"
            y = self.cross(self.cross_norm(x) if self.norm_first else x, memory_mask, *memory)
            x = x + y if self.norm_first else self.cross_norm(x + y)
        y = self.feed_forward(self.feed_forward_norm(x) if self.norm_first else x)
        return (x + y if self.norm_first else self.feed_forward_norm(x + y)), key, value


class Decoder(nn.Module):
    """Graph `decoder`: token ids and a cache to the logits of one position a row, and the grown cache."""

    def __init__(self, stack: Stack, embedding: Embedding, vocabulary: int | None, bias: bool) -> None:
        """`vocabulary`: rows of a head of its own; None when the embedding's table is also the head's."""
        super().__init__()
        self.embedding = embedding
        self.layers = nn.ModuleList(DecoderLayer(stack.hidden, layer, stack.cross) for layer in stack.layers)
        self.norm = LayerNorm(stack.hidden, stack.final_eps, stack.final_bias) if stack.final_eps is not None else None
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
        pairs [batch, heads, past, size], source_mask int32 [sources, source], cross pairs [sources, heads, source, size]
        → logits [batch, vocabulary], then key and value [batch, heads, total, size] of each layer."""
        x = self.embedding(input_ids, position_ids)
        memory_mask = None if source_mask is None else (source_mask != 0)[:, None, None, :]
        present: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            x, key, value = layer(x, self_mask, past[i], memory_mask, None if cross is None else cross[i])
            present += [key, value]
        if self.norm is not None:
            x = self.norm(x)
        x = x[torch.arange(x.shape[0], device=x.device), logits_index]
        table = self.embedding.weight if self.head is None else self.head
        return F.linear(x, table, self.head_bias), *present
