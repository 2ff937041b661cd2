"""Building blocks of the canonical Transformer: linear projections, norms, activations and the feed-forward block."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onnxport.export.canonical.settings import Layer


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


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * weight + bias, over [..., size]."""

    def __init__(self, size: int, eps: float, bias: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(size)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] → [..., size]."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """x / sqrt(mean of squares + eps) * weight, over [..., size] (Zhang and Sennrich 2019)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] → [..., size]."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def make_norm(kind: str, size: int, eps: float, bias: bool) -> nn.Module:
    """A norm of kind "layer" or "rms", which has no bias."""
    return RMSNorm(size, eps) if kind == "rms" else LayerNorm(size, eps, bias)


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
