"""PyTorch's own Transformer: the table of its names, and how each tensor becomes the canonical one.

A row is (name in PyTorch's layer, name in the canonical layer, transform). `heads` below is the number of heads; attention weights are
padded to the canonical head size with zeros.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from onnxport.export.model.attention import padded_head_size


def _pad_rows(weight: Tensor, heads: int, parts: int) -> Tensor:
    """[parts * heads * head, ...] → [parts * heads * size, ...]."""
    split = weight.unflatten(0, (parts * heads, -1))
    extra = padded_head_size(split.shape[1]) - split.shape[1]
    return F.pad(split, [0, 0] * (split.dim() - 2) + [0, extra]).flatten(0, 1)


def _projection(start: int, stop: int) -> Callable[[Tensor, int], Tensor]:
    """Parts start..stop of PyTorch's packed (query, key, value), padded, and transposed where it is a matrix."""

    def take(weight: Tensor, heads: int) -> Tensor:
        rows = weight.shape[0] // 3
        return _pad_rows(weight[start * rows : stop * rows], heads, stop - start).t()

    return take


def plain(weight: Tensor, heads: int) -> Tensor:
    """The weight as it is."""
    return weight


def transposed(weight: Tensor, heads: int) -> Tensor:
    """A linear weight [outputs, inputs] → [inputs, outputs]."""
    return weight.t()


def merged(weight: Tensor, heads: int) -> Tensor:
    """out_proj's weight [d, heads * head] → [heads * size, d]."""
    return _pad_rows(weight.t(), heads, 1)


qkv, query, key_value = _projection(0, 3), _projection(0, 1), _projection(1, 3)

Row = tuple[str, str, Callable[[Tensor, int], Tensor]]
SELF_ATTENTION: list[Row] = [
    ("self_attn.in_proj_weight", "attention.qkv.weight", qkv),
    ("self_attn.in_proj_bias", "attention.qkv.bias", qkv),
    ("self_attn.out_proj.weight", "attention.out.weight", merged),
    ("self_attn.out_proj.bias", "attention.out.bias", plain),
    ("norm1.weight", "attention_norm.weight", plain),
    ("norm1.bias", "attention_norm.bias", plain),
]
FEED_FORWARD: list[Row] = [
    ("linear1.weight", "feed_forward.up.weight", transposed),
    ("linear1.bias", "feed_forward.up.bias", plain),
    ("linear2.weight", "feed_forward.down.weight", transposed),
    ("linear2.bias", "feed_forward.down.bias", plain),
]
ENCODER_LAYER: list[Row] = [
    *SELF_ATTENTION,
    *FEED_FORWARD,
    ("norm2.weight", "feed_forward_norm.weight", plain),
    ("norm2.bias", "feed_forward_norm.bias", plain),
]
DECODER_LAYER: list[Row] = [
    *SELF_ATTENTION,
    *FEED_FORWARD,
    ("multihead_attn.in_proj_weight", "cross.query.weight", query),
    ("multihead_attn.in_proj_bias", "cross.query.bias", query),
    ("multihead_attn.out_proj.weight", "cross.out.weight", merged),
    ("multihead_attn.out_proj.bias", "cross.out.bias", plain),
    ("norm2.weight", "cross_norm.weight", plain),
    ("norm2.bias", "cross_norm.bias", plain),
    ("norm3.weight", "feed_forward_norm.weight", plain),
    ("norm3.bias", "feed_forward_norm.bias", plain),
]
CROSS_PROJECTION: list[Row] = [
    ("multihead_attn.in_proj_weight", "kv.weight", key_value),
    ("multihead_attn.in_proj_bias", "kv.bias", key_value),
]
PARTS = {query: ".query", key_value: ".key_value"}  # what a traced initializer is called when it is only a part of its parameter

# canonical module inside a layer → PyTorch's, for the names of nodes
LAYER_MODULES = {
    "attention.qkv": "self_attn.in_proj",
    "attention.out": "self_attn.out_proj",
    "attention": "self_attn",
    "attention_norm": "norm1",
    "cross.query": "multihead_attn.in_proj.query",
    "cross.out": "multihead_attn.out_proj",
    "cross": "multihead_attn",
    "cross_norm": "norm2",
    "feed_forward.up": "linear1",
    "feed_forward.down": "linear2",
    "feed_forward": "activation",
    "kv": "multihead_attn.in_proj.key_value",
}
