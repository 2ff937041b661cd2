"""What a family's table of weight names is made of, and how tensors are laid out for the canonical model.

In the transforms `heads` is the number of heads; attention weights are padded to the canonical head size with zeros.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from onnxport.export.model.attention import padded_head_size

Transform = Callable[[Tensor, int], Tensor]


class Row(NamedTuple):
    """`transform` of the sources, joined along their first axis, is the canonical parameter `ours`; `name` is what a graph calls it."""

    sources: tuple[str, ...]
    ours: str
    transform: Transform
    name: str


@dataclass(frozen=True)
class Table:
    """Names below one layer. `modules`: canonical module → the source's, for the names of nodes, where the rows do not tell."""

    encoder: list[Row]
    decoder: list[Row]
    cross: list[Row]  # of the decoder's layer, computed beside the encoder
    modules: Mapping[str, str]


def pad_rows(weight: Tensor, heads: int) -> Tensor:
    """[heads * head, ...] → [heads * size, ...]; `heads` of several projections that lie behind one another count together."""
    split = weight.unflatten(0, (heads, -1))
    extra = padded_head_size(split.shape[1]) - split.shape[1]
    return F.pad(split, [0, 0] * (split.dim() - 2) + [0, extra]).flatten(0, 1)


def plain(weight: Tensor, heads: int) -> Tensor:
    """The weight as it is."""
    return weight


def transposed(weight: Tensor, heads: int) -> Tensor:
    """A linear weight [outputs, inputs] → [inputs, outputs]."""
    return weight.t()


def merged(weight: Tensor, heads: int) -> Tensor:
    """An output projection's weight [d, heads * head] → [heads * size, d]."""
    return pad_rows(weight.t(), heads)


def packed(parts: int) -> Transform:
    """`parts` projections into heads [parts * heads * head, d] → [d, parts * heads * size]; biases likewise."""
    return lambda weight, heads: pad_rows(weight, parts * heads).t()


def existing(rows: list[Row], names: set[str]) -> frozenset[str]:
    """Canonical names of the biases that a layer with these tensors has."""
    return frozenset(row.ours for row in rows if row.ours.endswith("bias") and set(row.sources) <= names)
