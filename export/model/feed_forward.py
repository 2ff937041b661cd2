"""The two-layer feed-forward block."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onnxport.export.model.linear import Linear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_sigmoid": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu_squared": lambda x: F.relu(x).square(),
}


class FeedForward(nn.Module):
    """`down(activation(up(x)))`."""

    def __init__(self, hidden: int, inner: int, activation: str, bias: tuple[bool, bool]) -> None:
        super().__init__()
        self.activation = activation
        self.up = Linear(hidden, inner, bias[0])
        self.down = Linear(inner, hidden, bias[1])

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] → [..., hidden]."""
        return self.down(ACTIVATIONS[self.activation](self.up(x)))
