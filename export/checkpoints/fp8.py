"""Weights of 8-bit floats with a scale for all, for each output or for each tile: DeepSeek's fine-grained FP8, and FBGEMM's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from onnxport.export.checkpoints.codes import spread


def fine_grained(parts: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Tensor:
    """weight float8 [N, K], weight_scale_inv [N / tile, K / tile] (a factor, whatever its name says) → float32 [N, K]."""
    weight, sizes = parts["weight"], settings.get("weight_block_size")
    block = None if sizes is None else (int(sizes[0]), int(sizes[1]))
    return weight.float() * spread(parts["weight_scale_inv"], (weight.shape[0], weight.shape[1]), block)


def by_rows(parts: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Tensor:
    """weight float8 [N, K], weight_scale [N, 1] → float32 [N, K]."""
    weight = parts["weight"]
    return weight.float() * spread(parts["weight_scale"], (weight.shape[0], weight.shape[1]))
