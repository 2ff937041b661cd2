"""Cross-attentions called alone, as a run of their decoder called them: all that keys and values of a source need of a decoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class CrossCall:
    """A call of a module that gave the cache keys and values of a source, with its arguments."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def again(self, seen: Tensor, memory: Tensor, cache: Any) -> None:
        """The call with another memory [batch, source, hidden] in the place of `seen`, and another cache.

        Hidden states are zeros: keys and values are not made of them. Masks and biases are left out.
        """
        from transformers import EncoderDecoderCache

        def given(value: Any) -> Any:
            if value is seen:
                return memory
            if isinstance(value, EncoderDecoderCache):
                return cache
            if isinstance(value, Tensor):
                return memory.new_zeros(memory.shape[0], *value.shape[1:]) if value.dim() == 3 else None
            return value

        self.module(*map(given, self.args), **{name: given(value) for name, value in self.kwargs.items()})


@contextmanager
def recorded(model: nn.Module) -> Iterator[dict[int, CrossCall]]:
    """The calls, by layer, that fill `found` of the cross-attention cache in their arguments, until the block is left."""
    from transformers import EncoderDecoderCache

    calls: dict[int, CrossCall] = {}

    def left(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any) -> None:
        for cache in (value for value in (*args, *kwargs.values()) if isinstance(value, EncoderDecoderCache)):
            source: Any = cache.cross_attention_cache
            for layer in source.found.keys() - calls.keys():
                calls[layer] = CrossCall(module, args, kwargs)  # the innermost is left first

    hooks = [module.register_forward_hook(left, with_kwargs=True) for module in model.modules()]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
