"""Example inputs at other sizes: an axis of size 1 would be specialized by the tracer, and one size proves nothing about the others."""

from collections.abc import Mapping

import torch
from torch import Tensor

Axes = dict[int, str]


def axis_sizes(tensors: Mapping[str, Tensor], dynamic: Mapping[str, Axes]) -> dict[str, int]:
    """Name of a free axis → its size in the examples (the first one seen)."""
    sizes: dict[str, int] = {}
    for name, axes in dynamic.items():
        for axis, label in axes.items():
            sizes.setdefault(label, tensors[name].shape[axis])
    return sizes


def traced_sizes(sizes: dict[str, int]) -> dict[str, int]:
    """Sizes to trace at: at least 2, no two alike, the user's own where they are already so."""
    chosen: dict[str, int] = {}
    for label, size in sizes.items():
        candidate = max(size, 2)
        while candidate in chosen.values():
            candidate += 1
        chosen[label] = candidate
    return chosen


def other_sizes(sizes: dict[str, int]) -> list[dict[str, int]]:
    """Sizes to check at, none of them traced: everything 1, each axis apart from the others, and larger all over."""
    names = list(sizes)
    return [
        dict.fromkeys(names, 1),
        {name: sizes[name] + 1 + 2 * i for i, name in enumerate(names)},
        {name: max(1, sizes[name] - 1 - i) for i, name in enumerate(names)},
    ]


def resized(tensors: Mapping[str, Tensor], dynamic: Mapping[str, Axes], sizes: dict[str, int], seed: int) -> dict[str, Tensor]:
    """The examples at other sizes: values tiled along each free axis, then, where that keeps their meaning, shuffled so rows differ."""
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for name, tensor in tensors.items():
        changed = tensor
        for axis, label in dynamic.get(name, {}).items():
            index = torch.arange(sizes[label], device=tensor.device) % tensor.shape[axis]
            changed = changed.index_select(axis, index)
        result[name] = changed if changed.shape == tensor.shape or not _may_shuffle(tensor) else _shuffled(changed, generator)
    return result


def _may_shuffle(tensor: Tensor) -> bool:
    """Ids and real numbers may change places; masks (two values at most, or infinities) may not: a row could lose all of its keys."""
    if tensor.dtype == torch.bool or tensor.is_complex() or tensor.numel() < 2:
        return False
    if tensor.is_floating_point():
        return bool(torch.isfinite(tensor).all()) and tensor.unique().numel() > 2
    return tensor.unique().numel() > 2


def _shuffled(tensor: Tensor, generator: torch.Generator) -> Tensor:
    order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
    return tensor.reshape(-1)[order].reshape(tensor.shape).contiguous()
