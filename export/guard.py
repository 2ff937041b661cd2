"""Leaves the user's modules and torch's global switches exactly as they were."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(*modules: nn.Module, fused: bool = False) -> Iterator[None]:
    """Eval mode, no gradients, PyTorch's unfused attention path and a private random state; all of it undone afterwards, whatever happens.

    The mode is set flag by flag: a module's own `train` or `eval` may do more than that. The fused path is off, unless `fused`, because it
    cannot be traced, and because a golden answer must not depend on which path a shape happens to take.
    """
    training = [(part, part.training) for module in modules for part in module.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        for part, _ in training:
            part.training = False
        if not fused:
            torch.backends.mha.set_fastpath_enabled(False)
        with torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for part, mode in training:
            part.training = mode


def on_cpu_in_float32(parts: dict[str, Any]) -> dict[str, Any]:
    """The same parts where every floating tensor is float32 on the CPU, else a copy that is (ties between parts are kept)."""
    tensors = [t for part in parts.values() for t in _tensors(part)]
    if all(t.device.type == "cpu" and (t.dtype == torch.float32 or not t.is_floating_point()) for t in tensors):
        return parts
    parts = copy.deepcopy(parts)
    return {name: part.float().cpu() if isinstance(part, nn.Module | Tensor) else part for name, part in parts.items()}


def _tensors(part: Any) -> list[Tensor]:
    if isinstance(part, nn.Module):
        return [*part.parameters(), *part.buffers()]
    return [part] if isinstance(part, Tensor) else []
