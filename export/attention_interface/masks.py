"""Masks of transformers, which a class asks for by functions of positions: what of them the kernel masks itself, and what is a bias.

A class gets a mark in the place of each mask, and hands it to its attention; there the mark says which function was asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MASKED = -1e30  # a score of what is not seen
AROUND = 8  # positions beyond a window that are looked at, to see what a function masks


@dataclass(frozen=True, eq=False)
class Mask:
    """function: of row, head, position of the query and of the key, whether the key is seen. size: of a window or of chunks."""

    function: Callable[..., Any]
    size: int | None

    def window(self) -> tuple[bool, int | None]:
        """Whether the kernel alone masks it, and the window, None for none. The function is asked of queries at the begin and around its
        size. ValueError: it shows what comes behind a token."""
        size = self.size or 0
        queries = torch.cat([torch.arange(AROUND), torch.arange(size, size + AROUND)]).unique()
        seen = self.seen(queries[None], size + AROUND)[0, 0]
        before = queries[:, None] - torch.arange(size + AROUND)
        if (seen & (before < 0)).any():
            raise ValueError("it shows what comes behind a token")
        if torch.equal(seen, before >= 0):
            return True, None
        return self.size is not None and torch.equal(seen, (before >= 0) & (before < size)), self.size

    def seen(self, positions: Tensor, total: Any) -> Tensor:
        """Positions of queries int64 [rows, length] → bool [rows, 1, length, total], or what is broadcast to it."""
        first = torch.zeros((1, 1, 1, 1), dtype=torch.long)
        keys = torch.arange(total)[None, None, None, :]
        rows, length = positions.shape
        return self.function(first, first, positions[:, None, :, None], keys).expand(rows, 1, length, keys.shape[-1])

    def bias(self, positions: Tensor, total: Any) -> Tensor:
        """The same as numbers that are added to scores."""
        return torch.where(self.seen(positions, total), 0.0, MASKED)


@contextmanager
def marked(name: str, marks: Callable[[Tensor, Mask], None]) -> Iterator[None]:
    """Classes whose attention implementation is `name` get marks as masks, which `marks` is told of, until the block is left."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    def mark(*_: Any, mask_function: Callable[..., Any], local_size: int | None = None, **__: Any) -> Tensor:
        made = torch.zeros((1, 1, 1, 1))
        marks(made, Mask(mask_function, local_size))
        return made

    ALL_MASK_ATTENTION_FUNCTIONS.register(name, mark)
    try:
        yield
    finally:
        del ALL_MASK_ATTENTION_FUNCTIONS._global_mapping[name]
