"""Memory of a model that was read from a folder: once the canonical model is checked, the original's own copies of weights can go."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def release(original: Iterable[nn.Module], kept: Iterable[nn.Module]) -> int:
    """Takes the values out of the original's parameters that no module of `kept` shares; returns how many bytes that frees.

    The original cannot be run afterwards: only for models that nobody but the exporter holds.
    """
    storages = {_storage(tensor) for module in kept for tensor in [*module.parameters(), *module.buffers()]}
    freed: dict[int, int] = {}
    for module in original:
        for tensor in module.parameters():
            if (place := _storage(tensor)) not in storages:
                freed[place] = tensor.untyped_storage().nbytes()
                tensor.data = torch.empty(0, dtype=tensor.dtype)
    freed.pop(0, None)  # what had no values already
    return sum(freed.values())


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
