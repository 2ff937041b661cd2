"""Caches of a decoder with a source, as classes of transformers read them: its own, and the keys and values of a source."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from onnxport.export.attention_interface.own_attention import Watch


@dataclass
class SourceLayer:
    """A layer of a cache of sources, as classes read it: [sources, heads, source, size]."""

    keys: Tensor
    values: Tensor


class WatchedLayer:
    """The same for a class whose cross-attention is its own: who reads its keys begins a call that `watch` is told of.

    Keys and values have as many rows as the decoder, and are zeros: their shapes are read, and products with them are replaced.
    """

    def __init__(self, watch: Watch, place: int, key: Tensor, value: Tensor, rows: Any) -> None:
        self.watch, self.place = watch, place
        self.zeros = key.new_zeros(rows, *key.shape[1:]), value.new_zeros(rows, *value.shape[1:])

    @property
    def keys(self) -> Tensor:
        """Of each row."""
        key, self.values = self.watch.updated(*self.zeros, self.place)
        return key


Layers = Callable[[int, Tensor, Tensor], Any]  # place, key and value → a layer


def both_caches(own: Any, cross: Sequence[Tensor], layer: Layers = lambda _, key, value: SourceLayer(key, value)) -> Any:
    """A cache of transformers: `own`, and keys and values of a source; where there are none yet, `found` takes them by layer."""
    from transformers import Cache, EncoderDecoderCache

    class Source(Cache):
        """Keys and values of a source."""

        def __init__(self) -> None:
            layers: Any = [layer(i, *pair) for i, pair in enumerate(zip(cross[::2], cross[1::2], strict=True))]
            super().__init__(layers=layers)
            self.found: dict[int, tuple[Tensor, Tensor]] = {}

        def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            """Take what a layer made of the source."""
            self.found[layer_idx] = (key_states, value_states)
            return key_states, value_states

        def get_seq_length(self, *_: Any, **__: Any) -> int:
            """None are before."""
            return 0

    class Both(EncoderDecoderCache):
        """Caches of a decoder with a source."""

        def __init__(self) -> None:
            self.self_attention_cache = own
            source: Any = Source()
            self.cross_attention_cache = source
            self.is_updated: dict[int, bool] = defaultdict(lambda: False)

    both = Both()
    both.is_updated |= dict.fromkeys(range(len(cross) // 2), True)
    return both
