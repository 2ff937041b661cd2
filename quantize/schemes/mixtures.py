"""Mixtures of experts of a graph, and their weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxport.graph.edit import MICROSOFT, is_op, optional, sizes_of, source
from onnxport.graph.normalize import parameter_of
from onnxport.quantize.schemes.linear import Linear, float32_tensor, key_of, linears

UP, DOWN, THIRD = 2, 4, 6  # places of the weights among the inputs of MoE; a bias follows each


@dataclass(frozen=True)
class ExpertWeights:
    """One weight of all experts of a mixture. parameter: PyTorch's name; tensor: float32 [experts, N, K], as it is stored."""

    parameter: str
    tensor: ir.TensorProtocol

    @property
    def rows(self) -> np.ndarray:
        """float32 [experts * N, K], read anew each time."""
        found: np.ndarray = self.tensor.numpy().reshape(self.shape)
        return found

    @property
    def key(self) -> str:
        """`key_of` its rows."""
        return key_of(self.rows)

    @property
    def place(self) -> tuple[ir.TensorProtocol, bool]:
        """As of a product."""
        return self.tensor, False

    @property
    def shape(self) -> tuple[int, int]:
        """Of its rows."""
        experts, rows, columns = sizes_of(self.tensor)
        return experts * rows, columns


@dataclass(frozen=True)
class Mixture:
    """A MoE node of float32.

    tensors: up [experts, wide, hidden] and down [experts, hidden, inner], as they are stored; wide is 2 * inner where gates and values are
    in one weight. parameters: PyTorch's names of both.
    """

    node: ir.Node
    tensors: tuple[ir.TensorProtocol, ir.TensorProtocol]
    parameters: tuple[str, str]
    places: ClassVar[tuple[int, ...]] = (UP, DOWN)  # of the weights among the node's inputs

    @property
    def name(self) -> str:
        """What it is called: as the module that both weights are in, else as the first one."""
        first, second = (parameter.rpartition(".")[0] for parameter in self.parameters)
        return first if first and first == second else self.parameters[0]

    @property
    def values(self) -> int:
        """How many numbers both weights have."""
        return sum(math.prod(sizes_of(tensor)) for tensor in self.tensors)

    @property
    def widths(self) -> tuple[int, int]:
        """How many inputs an expert's products have: hidden, inner."""
        hidden, inner = (sizes_of(tensor)[2] for tensor in self.tensors)
        return hidden, inner

    @property
    def weights(self) -> list[ExpertWeights]:
        """Both, as rows."""
        return [ExpertWeights(name, tensor) for name, tensor in zip(self.parameters, self.tensors, strict=True)]


Product = Linear | Mixture  # what computes with weights; a plan's schemes of all weights of one make one kernel


def mixtures(graph: Iterable[ir.Node]) -> Iterator[Mixture]:
    """Every mixture of experts with two constant weights, in graph order; files of others may have one with a third product."""
    for node in list(graph):
        if not is_op(node, "MoE", MICROSOFT) or optional(node, THIRD) is not None:
            continue
        up, down = (float32_tensor(optional(node, place), 3) for place in (UP, DOWN))
        if up is not None and down is not None:
            yield Mixture(node, (up, down), (parameter_of(source(node, UP)), parameter_of(source(node, DOWN))))


def products(graph: Iterable[ir.Node]) -> Iterator[Product]:
    """Every product with a constant weight and every mixture of experts, in graph order."""
    for node in list(graph):
        yield from linears([node])
        yield from mixtures([node])


def parameters(models: Iterable[ir.Model]) -> list[str]:
    """The names of all weights of mixtures."""
    return [name for model in models for mixture in mixtures(model.graph) for name in mixture.parameters]
