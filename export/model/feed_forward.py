"""The feed-forward block."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onnxport.export.model.linear import Linear
from onnxport.export.model.settings import Layer

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
    """`down(activation(up(x)))`; gated (Shazeer 2020): `up` gives a gate and a value, of which `activation(gate) * value` goes down."""

    def __init__(self, hidden: int, layer: Layer) -> None:
        super().__init__()
        self.activation, self.gated = layer.activation, layer.gated
        self.up = Linear(hidden, layer.inner * (2 if layer.gated else 1), "feed_forward.up.bias" in layer.biases)
        self.down = Linear(layer.inner, hidden, "feed_forward.down.bias" in layer.biases)

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] → [..., hidden]."""
        y = self.up(x)
        if not self.gated:
            return self.down(ACTIVATIONS[self.activation](y))
        gate, value = y.chunk(2, -1)
        return self.down(ACTIVATIONS[self.activation](gate) * value)
