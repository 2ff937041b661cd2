"""The encoder, and the graph that also prepares every decoder layer's keys and values."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onnxport.export.canonical.attention import LOWEST, CrossProjection, SelfAttention
from onnxport.export.canonical.layers import ACTIVATIONS, FeedForward, LayerNorm, Linear, make_norm
from onnxport.export.canonical.position import Embedding, RelativeBias, counted_positions
from onnxport.export.canonical.relative_attention import Distances, Relations, RelativeAttention
from onnxport.export.canonical.settings import Layer, Stack


class EncoderLayer(nn.Module):
    """Self attention and feed-forward, each with its residual, normed before or after."""

    def __init__(self, hidden: int, layer: Layer) -> None:
        super().__init__()
        self.norm_first = layer.norm_first
        has = layer.biases.__contains__
        self.attention = RelativeAttention(hidden, layer) if layer.relations else SelfAttention(hidden, layer)
        self.feed_forward = FeedForward(hidden, layer)
        self.attention_norm = make_norm(layer.norm, hidden, layer.eps[0], has("attention_norm.bias"))
        self.feed_forward_norm = make_norm(layer.norm, hidden, layer.eps[-1], has("feed_forward_norm.bias"))

    def forward(self, x: Tensor, mask: Tensor | Relations) -> Tensor:
        """x [batch, length, hidden], mask as its attention takes it → [batch, length, hidden]."""
        if self.norm_first:
            x = x + self.attention(self.attention_norm(x), mask)[0]
            return x + self.feed_forward(self.feed_forward_norm(x))
        x = self.attention_norm(x + self.attention(x, mask)[0])
        return self.feed_forward_norm(x + self.feed_forward(x))


class Encoder(nn.Module):
    """Embedding, layers, final norm."""

    def __init__(self, stack: Stack, embedding: Embedding) -> None:
        super().__init__()
        self.embedding, self.padding = embedding, stack.padding
        self.relative: nn.Module | None = None
        if stack.relative:
            self.relative = RelativeBias(stack.relative, stack.layers[0].heads, stack.relative // 2)
        if stack.distances:
            self.relative = Distances(stack.distances, stack.hidden)
        self.layers = nn.ModuleList(EncoderLayer(stack.hidden, layer) for layer in stack.layers)
        norm = stack.layers[-1].norm if stack.layers else "layer"
        self.norm = make_norm(norm, stack.hidden, stack.final_eps, stack.final_bias) if stack.final_eps is not None else None

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor | None = None) -> Tensor:
        """ids and types int64 [batch, length], mask [batch, length] (non-zero = real) → [batch, length, hidden]."""
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.embedding(ids, positions if self.padding is None else counted_positions(ids, self.padding), types)
        attended = (mask != 0)[:, None, None, :]
        if isinstance(self.relative, Distances):
            assert types is not None, "relations need token types"
            attended = self.relative(attended, types)
        elif self.relative is not None:
            bias = self.relative(positions[None], positions)
            attended = torch.where(attended, bias, LOWEST)
        for layer in self.layers:
            x = layer(x, attended)
        return x if self.norm is None else self.norm(x)


class SourceEncoder(nn.Module):
    """Graph `encoder` of a sequence-to-sequence model: from source ids to every decoder layer's cross keys and values."""

    def __init__(self, encoder: Encoder, hidden: int, layers: tuple[Layer, ...]) -> None:
        """`layers`: the decoder's."""
        super().__init__()
        self.encoder = encoder
        self.cross = nn.ModuleList(CrossProjection(hidden, layer) for layer in layers)

    def forward(self, input_ids: Tensor, source_mask: Tensor) -> tuple[Tensor, ...]:
        """int64 and int32 [batch, source] → key and value [batch, heads, source, size] of each decoder layer, in turn."""
        memory = self.encoder(input_ids, source_mask)
        return tuple(tensor for projection in self.cross for tensor in projection(memory))


@dataclass(frozen=True)
class HeadShape:
    """A head over hidden states: inputs and outputs of its last projection, and of one before it with an activation, if there is one.

    split: each output is a tensor of its own, [batch, sequence]. norm: eps of a LayerNorm before the last projection.
    tokens: the last projection is a table of tokens, "own" or "tied" to that of the embedding.
    """

    inputs: int
    outputs: int
    bias: bool = True
    dense: tuple[int, int] | None = None
    activation: str = "tanh"
    split: bool = False
    norm: float | None = None
    tokens: Literal["own", "tied"] | None = None


class Head(nn.Module):
    """`out(norm(activation(dense(x))))`, or less of it."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.dense = Linear(*shape.dense) if shape.dense is not None else None
        self.activation, self.split = shape.activation, shape.split
        self.norm = LayerNorm(shape.inputs, shape.norm) if shape.norm is not None else None
        self.out = Linear(shape.inputs, shape.outputs, shape.bias) if shape.tokens is None else TokenScores(shape)

    def forward(self, x: Tensor, table: Tensor) -> Tensor | tuple[Tensor, ...]:
        """[..., hidden], and the embedding's table → [..., outputs], or as many tensors [...]."""
        y = x if self.dense is None else ACTIVATIONS[self.activation](self.dense(x))
        y = y if self.norm is None else self.norm(y)
        y = self.out(y, table) if isinstance(self.out, TokenScores) else self.out(y)
        return tuple(part.squeeze(-1) for part in y.split(1, -1)) if self.split else y


class TokenScores(nn.Module):
    """A score for every token of the vocabulary."""

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        # [vocabulary, hidden], not transposed: a tied table stays one tensor (Gemm reads it transposed)
        self.weight = nn.Parameter(torch.empty(shape.outputs, shape.inputs)) if shape.tokens == "own" else None
        self.bias = nn.Parameter(torch.empty(shape.outputs)) if shape.bias else None

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """[..., hidden], and the embedding's table [vocabulary, hidden] → [..., vocabulary]."""
        rows = x.flatten(0, -2)  # of two dimensions: Gemm takes them, where a product of more would hold the table once more, turned
        return F.linear(rows, table if self.weight is None else self.weight, self.bias).unflatten(0, x.shape[:-1])


class TextEncoder(nn.Module):
    """Graph `encoder` of a bidirectional model: hidden states, or what a head makes of them."""

    def __init__(self, encoder: nn.Module, head: HeadShape | None, pooling: str | None) -> None:
        super().__init__()
        self.encoder, self.head, self.pooling = encoder, None if head is None else Head(head), pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
        """int64 [batch, sequence] all → [batch, sequence, hidden or outputs], or [batch, hidden or outputs] when pooled."""
        x = pool(self.encoder(input_ids, attention_mask, token_type_ids), attention_mask, self.pooling)
        return x if self.head is None else self.head(x, self.encoder.embedding.weight)


def pool(x: Tensor, mask: Tensor, pooling: str | None) -> Tensor:
    """[batch, sequence, hidden] → the first or last real position, or the mean of the real ones, [batch, hidden]; unchanged for None."""
    if pooling == "first":
        return x[:, 0]
    if pooling == "last":
        places = torch.arange(x.shape[1], device=x.device)
        return x[torch.arange(x.shape[0], device=x.device), ((mask != 0) * places).amax(1)]  # whichever side is padded
    if pooling == "mean":
        real = mask[:, :, None].to(x.dtype)
        return (x * real).sum(1) / real.sum(1).clamp(min=1)
    return x
