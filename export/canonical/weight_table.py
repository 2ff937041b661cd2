"""Tables from a family's weight names to the canonical model's parameters, and the transforms that lay tensors out for it.

A transform takes a tensor and the settings of its layer; attention weights are padded to the layer's head size with zeros.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxport.export.canonical.settings import Layer

Transform = Callable[[Tensor, Layer], Tensor]


class Row(NamedTuple):
    """The canonical parameter `ours` is the `transform` of the sources, joined along their first axis; a graph calls it `name`."""

    sources: tuple[str, ...]
    ours: str
    transform: Transform
    name: str


@dataclass(frozen=True)
class WeightTable:
    """Names of tensors below one layer of the source.

    layer: of a layer without cross attention. cross_layer: of one with it. cross_projection: of the same layer, but computed beside the
    encoder. modules: canonical module → the source's, for the names of nodes that the rows do not name.
    """

    layer: list[Row]
    cross_layer: list[Row] = field(default_factory=list)
    cross_projection: list[Row] = field(default_factory=list)
    modules: Mapping[str, str] = field(default_factory=dict)


def pad_rows(weight: Tensor, heads: int, size: int) -> Tensor:
    """[heads * head, ...] → [heads * size, ...]; `heads` of several projections that lie behind one another count together."""
    split = weight.unflatten(0, (heads, -1))
    return F.pad(split, [0, 0] * (split.dim() - 2) + [0, size - split.shape[1]]).flatten(0, 1)


def pad_halves(weight: Tensor, heads: int, size: int) -> Tensor:
    """The same with the padding of each half of a head behind that half, where rotary positions expect it."""
    return pad_rows(weight, 2 * heads, size // 2)


def plain(weight: Tensor, layer: Layer) -> Tensor:
    """The weight as it is."""
    return weight


def transposed(weight: Tensor, layer: Layer) -> Tensor:
    """A linear weight [outputs, inputs] → [inputs, outputs]."""
    return weight.t()


def merged(weight: Tensor, layer: Layer) -> Tensor:
    """An output projection's weight [d, heads * head] → [heads * size, d]."""
    return pad_rows(weight.t(), layer.heads, layer.size)


def queries_keys_values(weight: Tensor, layer: Layer) -> Tensor:
    """Projections into queries, keys and values [(heads + 2 * kv_heads) * head, d] → [d, ... * size]; biases likewise."""
    turned = (layer.heads + layer.kv_heads) * layer.head
    pad = pad_halves if layer.rotary else pad_rows
    first = pad(weight[:turned], layer.heads + layer.kv_heads, layer.size)
    return torch.cat([first, pad_rows(weight[turned:], layer.kv_heads, layer.size)]).t()


def packed(parts: int) -> Transform:
    """`parts` projections into heads [parts * heads * head, d] → [d, parts * heads * size]; biases likewise."""
    return lambda weight, layer: pad_rows(weight, parts * layer.heads, layer.size).t()


def head_norm(weight: Tensor, layer: Layer) -> Tensor:
    """The weight [head] of a norm of single queries or keys → [size]: see HeadNorm."""
    pad = pad_halves if layer.rotary else pad_rows
    return pad(weight * (layer.head / layer.size) ** 0.5, 1, layer.size)


def linear(sources: str | tuple[str, ...], ours: str, name: str = "", weight: Transform = transposed, bias: Transform = plain) -> list[Row]:
    """Weight and bias of one linear module, or of several behind one another in one projection, which a graph calls `name`."""
    modules = (sources,) if isinstance(sources, str) else sources
    label = name or modules[0]
    rows = (("weight", weight), ("bias", bias))
    return [Row(tuple(f"{module}.{kind}" for module in modules), f"{ours}.{kind}", how, f"{label}.{kind}") for kind, how in rows]


def norm(source: str, ours: str) -> list[Row]:
    """Weight and bias of a norm."""
    return linear(source, ours, weight=plain)


def existing(rows: list[Row], names: set[str]) -> frozenset[str]:
    """Canonical names of the biases that a layer with these tensors has."""
    return frozenset(row.ours for row in rows if row.ours.endswith("bias") and set(row.sources) <= names)
