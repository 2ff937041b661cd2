"""A linear projection that keeps its weight as ONNX's MatMul wants it."""

import torch
from torch import Tensor, nn


class Linear(nn.Module):
    """`x @ weight + bias` with weight [inputs, outputs]: the traced initializer is the parameter itself, not a folded transpose."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] → [..., outputs]."""
        y = x @ self.weight
        return y if self.bias is None else y + self.bias
