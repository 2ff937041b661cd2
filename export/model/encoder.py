"""The encoder, and the graph that also prepares every decoder layer's keys and values."""

import torch
from torch import Tensor, nn

from onnxport.export.model.attention import CrossProjection, SelfAttention
from onnxport.export.model.feed_forward import FeedForward
from onnxport.export.model.linear import Linear
from onnxport.export.model.norm import LayerNorm
from onnxport.export.model.position import Embedding
from onnxport.export.model.settings import Layer, Stack


class EncoderLayer(nn.Module):
    """Self attention and feed-forward, each with its residual, normed before or after."""

    def __init__(self, hidden: int, layer: Layer) -> None:
        super().__init__()
        self.norm_first = layer.norm_first
        has = layer.biases.__contains__
        self.attention = SelfAttention(hidden, layer.heads, (has("attention.qkv.bias"), has("attention.out.bias")))
        self.feed_forward = FeedForward(hidden, layer.inner, layer.activation, (has("feed_forward.up.bias"), has("feed_forward.down.bias")))
        self.attention_norm = LayerNorm(hidden, layer.eps[0], has("attention_norm.bias"))
        self.feed_forward_norm = LayerNorm(hidden, layer.eps[-1], has("feed_forward_norm.bias"))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [batch, length, hidden], mask bool [batch, 1, 1, length] → [batch, length, hidden]."""
        if self.norm_first:
            x = x + self.attention(self.attention_norm(x), mask)[0]
            return x + self.feed_forward(self.feed_forward_norm(x))
        x = self.attention_norm(x + self.attention(x, mask)[0])
        return self.feed_forward_norm(x + self.feed_forward(x))


class Encoder(nn.Module):
    """Embedding, layers, final norm."""

    def __init__(self, stack: Stack, embedding: Embedding) -> None:
        super().__init__()
        self.embedding = embedding
        self.layers = nn.ModuleList(EncoderLayer(stack.hidden, layer) for layer in stack.layers)
        self.norm = LayerNorm(stack.hidden, stack.final_eps, stack.final_bias) if stack.final_eps is not None else None

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids int64 [batch, length], mask [batch, length] (non-zero = real) → [batch, length, hidden]."""
        x = self.embedding(ids, torch.arange(ids.shape[1], device=ids.device))
        attended = (mask != 0)[:, None, None, :]
        for layer in self.layers:
            x = layer(x, attended)
        return x if self.norm is None else self.norm(x)


class SourceEncoder(nn.Module):
    """Graph `encoder` of a sequence-to-sequence model: from source ids to every decoder layer's cross keys and values."""

    def __init__(self, encoder: Encoder, hidden: int, cross: list[tuple[int, bool]]) -> None:
        """`cross`: heads, and whether the projection has a bias, for each decoder layer."""
        super().__init__()
        self.encoder = encoder
        self.cross = nn.ModuleList(CrossProjection(hidden, heads, bias) for heads, bias in cross)

    def forward(self, input_ids: Tensor, source_mask: Tensor) -> tuple[Tensor, ...]:
        """int64 and int32 [batch, source] → key and value [batch, heads, source, size] of each decoder layer, in turn."""
        memory = self.encoder(input_ids, source_mask)
        return tuple(tensor for projection in self.cross for tensor in projection(memory))


class TextEncoder(nn.Module):
    """Graph `encoder` of a bidirectional model: hidden states, or logits where there is a head."""

    def __init__(self, encoder: Encoder, head: Linear | None, pooling: str | None) -> None:
        super().__init__()
        self.encoder, self.head, self.pooling = encoder, head, pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """int64 [batch, sequence] both → [batch, sequence, hidden or labels], or [batch, hidden or labels] when pooled."""
        x = pool(self.encoder(input_ids, attention_mask), attention_mask, self.pooling)
        return x if self.head is None else self.head(x)


def pool(x: Tensor, mask: Tensor, pooling: str | None) -> Tensor:
    """[batch, sequence, hidden] → the first position, or the mean of the real ones, [batch, hidden]; unchanged for None."""
    if pooling == "first":
        return x[:, 0]
    if pooling == "mean":
        real = mask[:, :, None].to(x.dtype)
        return (x * real).sum(1) / real.sum(1).clamp(min=1)
    return x
