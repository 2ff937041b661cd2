"""Loading of a source's tensors into canonical graphs by the table of its family, with the names that they had in the source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from onnxport.export.canonical.decoder import Decoder
from onnxport.export.canonical.encoder import Encoder, HeadShape, SourceEncoder, TextEncoder
from onnxport.export.canonical.position import Embedding
from onnxport.export.canonical.settings import Layer, Stack
from onnxport.export.canonical.weight_table import Row, WeightTable
from onnxport.export.deferred import defer, deferred, parameter, read_deferred, values_of
from onnxport.export.trace.tracer import Names
from onnxport.export.weights import page_out

Named = tuple[str, Tensor]


@dataclass
class CanonicalGraph:
    """One canonical graph with its names and the settings of the stack it runs."""

    module: nn.Module
    names: Names
    stack: Stack


@dataclass(frozen=True)
class StackWeights:
    """The settings and tensors of one stack, an encoder or a decoder, as a family describes it.

    `path`: of the module in the source; `state`: its tensors by the names below `path`; `tokens`, `positions` and `types`: full names with
    tables [vocabulary, d], [max_length, d] and [types, d]; `norms`: canonical norm outside the layers → its name below `path`; `layers`:
    the name of the list of layers below `path`; `rotary`: cosines and sines [positions, size / 2]; `relative`: full name and biases by
    distance.
    """

    stack: Stack
    table: WeightTable
    path: str
    state: Mapping[str, Tensor]
    tokens: Named
    positions: Named | None
    scale: float
    norms: Mapping[str, str]
    layers: str = "layers"
    types: Named | None = None
    rotary: tuple[Tensor, Tensor] | None = None
    relative: Named | None = None

    def embedding(self) -> Embedding:
        """The canonical embedding in front of the stack, without values."""
        (rows, hidden), stack = self.tokens[1].shape, self.stack
        positions = None if self.positions is None else len(self.positions[1])
        return Embedding(rows, hidden, positions, self.scale, stack.embedding_eps, stack.types)

    def name(self, below: str) -> str:
        """The full name of a part that `path` calls `below`."""
        return f"{self.path}.{below}" if self.path else below


@dataclass(frozen=True)
class HeadParts:
    """A head's modules with their names: the last projection, and before it one with an activation and a norm. See HeadShape.

    tokens: the last projection gives a score for each token.
    """

    out: tuple[str, nn.Linear]
    dense: tuple[str, nn.Linear] | None = None
    activation: str = "tanh"
    split: bool = False
    norm: tuple[str, nn.LayerNorm] | None = None
    tokens: bool = False

    def shape(self, table: Tensor) -> HeadShape:
        """Its sizes; the last projection may be `table`, the embedding's own."""
        out, dense = self.out[1], self.dense
        sizes = None if dense is None else (dense[1].in_features, dense[1].out_features)
        tied: Literal["tied", "own"] = "tied" if same_storage(parameter(out, "weight"), table) else "own"
        return HeadShape(
            out.in_features,
            out.out_features,
            out.bias is not None,
            sizes,
            self.activation,
            self.split,
            None if self.norm is None else self.norm[1].eps,
            tied if self.tokens else None,
        )


def source_encoder(encoder: StackWeights, decoder: StackWeights) -> CanonicalGraph:
    """The graph `encoder` of a sequence-to-sequence model, with the cross-attention projections of its decoder."""
    loader = _Loader(SourceEncoder(Encoder(encoder.stack, encoder.embedding()), encoder.stack.hidden, decoder.stack.layers))
    loader.encoder(encoder)
    loader.layers(decoder, decoder.table.cross_projection, "cross")
    for i in range(len(decoder.stack.layers)):
        loader.names.modules[f"cross.{i}"] = decoder.name(f"{decoder.layers}.{i}.{decoder.table.modules['cross']}")
    return loader.done(encoder.stack)


def text_encoder(weights: StackWeights, head: HeadParts | None, pooling: str | None) -> CanonicalGraph:
    """The graph `encoder` of a bidirectional model."""
    shape = None if head is None else head.shape(weights.tokens[1])
    loader = _Loader(TextEncoder(Encoder(weights.stack, weights.embedding()), shape, pooling))
    loader.encoder(weights)
    if head is not None:
        loader.head(head)
    return loader.done(weights.stack)


def decoder(weights: StackWeights, head: Named, bias: Named | None, scale: float = 1.0) -> CanonicalGraph:
    """The graph `decoder`; a `head` that is the table of tokens itself is tied.

    bias: of the logits [vocabulary], if any. scale: of what the head reads.
    """
    tied = same_storage(head[1], weights.tokens[1])
    loader = _Loader(Decoder(weights.stack, weights.embedding(), None if tied else len(head[1]), bias is not None, scale))
    loader.around(weights, "")
    loader.layers(weights, weights.table.cross_layer if weights.stack.cross else weights.table.layer, "layers")
    if not tied:
        loader.put("head", *head)
    if bias is not None:
        loader.put("head_bias", *bias)
    return loader.done(weights.stack)


def same_storage(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are one and the same table."""
    return bool(a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride())


def _joined(row: Row, layer: Layer, *tensors: Tensor) -> Tensor:
    return row.transform(tensors[0] if len(tensors) == 1 else torch.cat(tensors), layer)


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


class _Loader:
    """Assigns tensors to a canonical module's parameters and fills its `Names`."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.names = module, Names()
        self.seen: set[str] = set()

    def put(self, canonical: str, source: str, *tensors: Tensor, make: Callable[..., Tensor] = _as_it_is) -> None:
        """Assigns the parameter `canonical`, which is called `source` in PyTorch, what `make` makes of the tensors; of deferred ones later.

        AssertionError when shapes differ.
        """
        ours = self.module.get_parameter(canonical)

        def value() -> Tensor:
            made = make(*map(values_of, tensors)).detach()
            if ours.shape != made.shape:
                raise AssertionError(f"{source} {tuple(made.shape)} does not fit {canonical} {tuple(ours.shape)}")
            return made

        if any(deferred(tensor) is not None for tensor in tensors):
            defer(ours, ours.shape, value)
        else:
            ours.data = value().contiguous()
        self.names.parameters[canonical] = source
        self.seen.add(canonical)

    def layers(self, weights: StackWeights, rows: list[Row], canonical: str) -> None:
        """Every layer's tensors; a missing bias is simply not there on either weights."""
        modules = {row.ours.rpartition(".")[0]: row.name.rpartition(".")[0] for row in rows} | dict(weights.table.modules)
        for i, layer in enumerate(weights.stack.layers):
            below, source = f"{weights.layers}.{i}", weights.name(f"{weights.layers}.{i}")
            read: list[Tensor] = []
            for row in rows:
                tensors = [weights.state.get(f"{below}.{name}") for name in row.sources]
                if found := [tensor for tensor in tensors if tensor is not None]:
                    self.put(f"{canonical}.{i}.{row.ours}", f"{source}.{row.name}", *found, make=partial(_joined, row, layer))
                    read += found
            page_out(read)  # what is not deferred is copied by now: else a large model would be in memory twice, once as pages of its files
            self.names.modules |= {f"{canonical}.{i}.{ours}": f"{source}.{name}" for ours, name in modules.items()}
            self.names.modules[f"{canonical}.{i}"] = source

    def around(self, weights: StackWeights, prefix: str) -> None:
        """What is around the layers: the table of tokens, of positions where there is one, and norms."""
        name, table = weights.tokens
        self.put(f"{prefix}embedding.weight", f"{name}.weight", table)
        self.names.modules[f"{prefix}embedding"] = name
        if weights.positions is not None:
            self.put(f"{prefix}embedding.positions", f"{weights.positions[0]}.weight", weights.positions[1])
        if weights.types is not None:
            self.put(f"{prefix}embedding.types", f"{weights.types[0]}.weight", weights.types[1])
        if weights.relative is not None:
            self.put(f"{prefix}relative.weight", f"{weights.relative[0]}.weight", weights.relative[1])
            self.names.modules[f"{prefix}relative"] = weights.relative[0]
        if weights.rotary is not None:
            for name, table in zip(("cosines", "sines"), weights.rotary, strict=True):
                self.put(f"{prefix}rotary.{name}", weights.name(f"rotary.{name}"), table)
            self.names.modules[f"{prefix}rotary"] = weights.name("rotary")
        for canonical, norm in weights.norms.items():
            for part in ("weight", "bias"):
                if (value := weights.state.get(f"{norm}.{part}")) is not None:
                    self.put(f"{prefix}{canonical}.{part}", weights.name(f"{norm}.{part}"), value)
            self.names.modules[f"{prefix}{canonical}"] = weights.name(norm)

    def encoder(self, weights: StackWeights) -> None:
        """All of an encoder below `encoder`."""
        self.around(weights, "encoder.")
        self.layers(weights, weights.table.layer, "encoder.layers")
        self.names.modules["encoder"] = weights.path

    def head(self, head: HeadParts) -> None:
        """A head's projections and norm below `head`; a tied one has no table of its own."""
        there = {name for name, _ in self.module.named_parameters()}
        for ours, named in (("head.dense", head.dense), ("head.norm", head.norm), ("head.out", head.out)):
            if named is None:
                continue
            name, module = named
            kept = isinstance(module, nn.LayerNorm) or (head.tokens and ours == "head.out")
            if f"{ours}.weight" in there:
                self.put(f"{ours}.weight", f"{name}.weight", parameter(module, "weight"), make=_as_it_is if kept else torch.t)
            if module.bias is not None:
                self.put(f"{ours}.bias", f"{name}.bias", parameter(module, "bias"))
            self.names.modules[ours] = name

    def done(self, stack: Stack) -> CanonicalGraph:
        """The module in eval mode without gradients. AssertionError when a parameter was never assigned."""
        missing = {name for name, _ in self.module.named_parameters()} - self.seen
        if missing:
            raise AssertionError(f"canonical parameters without a source: {sorted(missing)}")
        read_deferred(self.module)
        return CanonicalGraph(self.module.eval().requires_grad_(False), self.names, stack)
