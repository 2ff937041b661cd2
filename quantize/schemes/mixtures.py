"""Mixtures of experts of a graph, and their weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxport.graph.edit import MICROSOFT, array_of, is_op, optional, source
from onnxport.graph.normalize import parameter_of
from onnxport.quantize.schemes.linear import key_of

UP, DOWN = 2, 4  # places of the weights among the inputs of MoE; a bias follows each


@dataclass(frozen=True)
class ExpertWeights:
    """One weight of all experts of a mixture. parameter: PyTorch's name; rows: float32 [experts * N, K]."""

    parameter: str
    rows: np.ndarray

    @property
    def key(self) -> str:
        """`key_of` its rows."""
        return key_of(self.rows)

    @property
    def shape(self) -> tuple[int, int]:
        """Of its rows."""
        return self.rows.shape[0], self.rows.shape[1]


@dataclass(frozen=True)
class Mixture:
    """A MoE node of float32. up [experts, 2 * inner, hidden], down [experts, hidden, inner]; parameters: PyTorch's names of both."""

    node: ir.Node
    up: np.ndarray
    down: np.ndarray
    parameters: tuple[str, str]

    @property
    def weights(self) -> list[ExpertWeights]:
        """Both, as rows."""
        both = zip(self.parameters, (self.up, self.down), strict=True)
        return [ExpertWeights(name, weight.reshape(-1, weight.shape[2])) for name, weight in both]


def mixtures(graph: Iterable[ir.Node]) -> Iterator[Mixture]:
    """Every mixture of experts with constant weights, in graph order."""
    for node in list(graph):
        if not is_op(node, "MoE", MICROSOFT):
            continue
        up, down = (array_of(optional(node, place)) for place in (UP, DOWN))
        if up is not None and down is not None and up.dtype == down.dtype == np.float32:
            yield Mixture(node, up, down, (parameter_of(source(node, UP)), parameter_of(source(node, DOWN))))


def parameters(models: Iterable[ir.Model]) -> list[str]:
    """The names of all weights of mixtures."""
    return [name for model in models for mixture in mixtures(model.graph) for name in mixture.parameters]
