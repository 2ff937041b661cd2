"""Integers that are packed in words, and their scales spread over the weights they stand for."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)  # E2M1 by its four bits


def unpack(words: Tensor, bits: int) -> Tensor:
    """int32 or uint8 [..., words] → uint8 [..., codes]: codes of 1 to 8 bits behind one another, the lowest bits first."""
    stream = np.unpackbits(np.ascontiguousarray(words.numpy()).view(np.uint8), axis=-1, bitorder="little")
    codes = np.packbits(stream.reshape(*stream.shape[:-1], -1, bits), axis=-1, bitorder="little")
    return torch.from_numpy(codes[..., 0])


def spread(scale: Tensor, shape: tuple[int, int], block: tuple[int, int] | None = None) -> Tensor:
    """A scale for all, for each row, for each group of a row or for each tile → float32 [rows, columns].

    block: sizes of a tile, where the last ones may be cut; None where all are whole. ValueError: they do not fit.
    """
    scale = scale.float()
    scale = scale.reshape(-1, 1) if scale.dim() < 2 else scale
    if scale.dim() != 2:
        raise ValueError(f"scales of shape {list(scale.shape)} for a weight of shape {list(shape)}")
    for axis, size in enumerate(shape):
        count = scale.shape[axis]
        each = block[axis] if block is not None and count > 1 else -(-size // count)
        if -(-size // each) != count or (block is None and size % count):
            raise ValueError(f"scales of shape {list(scale.shape)} for a weight of shape {list(shape)}")
        scale = scale.repeat_interleave(each, axis).narrow(axis, 0, size)
    return scale


def fp4(packed: Tensor) -> Tensor:
    """uint8 [..., bytes] → float32 [..., 2 * bytes], the lower four bits first."""
    return torch.tensor(FP4)[unpack(packed, 4).long()]
