"""Encoders whose tokens attend to their neighbours (Longformer's attention, which LED has): the same in blocks that can be traced.

The class pads a text to whole windows, as Python counts them for the text that is traced. Here a block of queries reads the keys around
it, whatever the length, and memory grows with the length, not with its square. No token attends to all others, nor is attended to by
all: that is what the class does where nobody gives it a `global_attention_mask`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE, PADS = "one_sided_attn_window_size", "_pad_to_window_size"  # a layer's neighbours on either side; the encoder's padding
MASKED = -1e30  # a score of what is not seen; finite, so that rows of padding are numbers


def attends_to_neighbours(model: nn.Module) -> bool:
    """Whether layers of the model attend so."""
    return any(hasattr(module, SIDE) for module in model.modules())


@contextmanager
def neighbours_in_blocks(model: nn.Module) -> Iterator[None]:
    """Layers that attend to neighbours do it in blocks, and their encoders do not pad, until the block is left."""
    replaced: list[tuple[nn.Module, str]] = []

    def replace(module: nn.Module, name: str, ours: Callable[..., Any]) -> None:
        setattr(module, name, ours)  # an attribute of the module alone, before the one of its class
        replaced.append((module, name))

    try:
        for module in model.modules():
            if hasattr(module, SIDE):
                replace(module, "forward", partial(_attend, module))
            if hasattr(module, PADS):
                replace(module, PADS, _unpadded)
        yield
    finally:
        for module, name in replaced:
            delattr(module, name)


def _unpadded(input_ids: Tensor, attention_mask: Tensor, inputs_embeds: Tensor, **_: Any) -> tuple[int, Tensor, Tensor, Tensor]:
    """What LED's encoder is told of its padding."""
    return 0, input_ids, attention_mask, inputs_embeds


def _attend(module: Any, hidden_states: Tensor, attention_mask: Tensor, is_index_masked: Tensor, **_: Any) -> tuple[Tensor]:
    """The layer's attention: hidden [batch, length, width], which tokens are padding, bool [batch, length] → the same shape."""
    side, heads = int(module.one_sided_attn_window_size), module.num_heads
    batch, length, width = hidden_states.shape
    block = max(1, side // 2)
    blocks = (length + block - 1) // block
    queries = (torch.arange(blocks)[:, None] * block + torch.arange(block)).clamp(max=length - 1)  # [blocks, block]
    keys = torch.arange(blocks)[:, None] * block + torch.arange(block + 2 * side) - side  # [blocks, around]
    distance = torch.arange(block + 2 * side) - side - torch.arange(block)[:, None]
    inside = (keys >= 0) & (keys < length)
    keys = keys.clamp(min=0).clamp(max=length - 1)
    seen = inside & ~is_index_masked[:, keys]  # [batch, blocks, around]
    bias = torch.where((distance.abs() <= side) & seen[:, :, None], 0.0, MASKED).flatten(0, 1)[:, None]

    def split(x: Tensor, index: Tensor) -> Tensor:
        """[batch, length, width] → [batch * blocks, heads, entries of a block, size of a head]."""
        return x[:, index].flatten(0, 1).unflatten(-1, (heads, -1)).transpose(1, 2)

    query, key, value = module.query(hidden_states), module.key(hidden_states), module.value(hidden_states)
    answer = F.scaled_dot_product_attention(split(query, queries), split(key, keys), split(value, keys), attn_mask=bias)
    answer = answer.transpose(1, 2).reshape(batch, blocks * block, width)
    return (answer[:, :length],)
