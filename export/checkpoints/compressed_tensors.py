"""The formats of compressed-tensors, as LLM Compressor writes them: packed integers, int8, 8-bit floats, and 4-bit floats.

The formula is that of compressed_tensors/quantization/lifecycle/forward.py, _dequantize: (code - zero point) * scale, the scale divided by
the global one where there is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from onnxport.export.checkpoints.codes import fp4, spread, unpack

FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "nvfp4-pack-quantized", "mixed-precision", "dense")


def problem(settings: Mapping[str, Any]) -> str | None:
    """What of the settings cannot be read."""
    found = [settings.get("format"), *(group.get("format") for group in groups(settings))]
    if unknown := [one for one in found if one is not None and one not in FORMATS]:
        return f"the format is {unknown[0]!r:.60}, expected one of {', '.join(FORMATS)}"
    sparsity = settings.get("sparsity_config")
    if isinstance(sparsity, dict) and sparsity.get("format", "dense") != "dense":
        return f"weights are stored sparse ({sparsity.get('format')!r:.40}), expected dense"
    transforms = settings.get("transform_config")
    if transforms and (not isinstance(transforms, dict) or transforms.get("config_groups")):
        return "transform_config rotates activations, which no class of transformers does"
    return None


def groups(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is said of each group of layers."""
    found = settings.get("config_groups")
    return [group for group in found.values() if isinstance(group, dict)] if isinstance(found, dict) else []


def packed(parts: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Tensor:
    """weight_packed int32 [N, words] or uint8 [N, K / 2] (4-bit floats), weight_scale [N, groups], weight_shape [2] → float32 [N, K]."""
    words = parts["weight_packed"]
    if words.dtype == torch.uint8:
        values = fp4(words)
        scale = parts["weight_scale"].float() / parts["weight_global_scale"].float()
        return values * spread(scale, (values.shape[0], values.shape[1]))
    n, k = (int(size) for size in parts["weight_shape"])
    bits = next((b for b in (4, 8, 2) if words.shape[1] == -(-k // (32 // b))), None)
    if bits is None or len(words) != n:
        raise ValueError(f"weight_packed {list(words.shape)} does not hold a weight of [{n}, {k}]")
    codes = unpack(words, bits)[:, :k].float()
    scale = parts["weight_scale"].float()
    zero: Tensor | float = 2.0 ** (bits - 1)
    if "weight_zero_point" in parts:
        stored = parts["weight_zero_point"]
        packed_too = stored.dtype == torch.int32  # along the outputs
        zero = unpack(stored.t().contiguous(), bits).t()[:n].float() if packed_too else stored.float() + zero
    if "weight_g_idx" in parts:
        group = parts["weight_g_idx"].long()
        return (codes - (zero[:, group] if isinstance(zero, Tensor) else zero)) * scale[:, group]
    wide = spread(zero, (n, k)) if isinstance(zero, Tensor) else zero
    return (codes - wide) * spread(scale, (n, k))


def scaled(parts: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Tensor:
    """weight int8 or float8 [N, K], weight_scale for all, rows, groups or tiles (and weight_zero_point) → float32 [N, K]."""
    weight = parts["weight"]
    shape, block = (weight.shape[0], weight.shape[1]), _block(settings)
    scale = parts["weight_scale"]
    counts = None if block is None else [-(-size // each) for size, each in zip(shape, block, strict=True)]
    tiles = block if list(scale.shape) == counts else None
    zero = spread(parts["weight_zero_point"], shape, tiles) if "weight_zero_point" in parts else 0
    return (weight.float() - zero) * spread(scale, shape, tiles)


def _block(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """Sizes of tiles, where a group of the settings has some."""
    for group in groups(settings):
        sizes = (group.get("weights") or {}).get("block_structure")
        if isinstance(sizes, list) and len(sizes) == 2:
            return int(sizes[0]), int(sizes[1])
    return None
