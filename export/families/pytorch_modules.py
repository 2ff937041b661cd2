"""Reads a `torch.nn.Transformer` (or its encoder) into canonical settings, refusing whatever the canonical model would not reproduce."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from onnxport.errors import CheckpointError
from onnxport.export.families.pytorch_names import DECODER_LAYER, ENCODER_LAYER
from onnxport.export.families.table import existing
from onnxport.export.model.settings import Layer, Stack

INSTEAD = "use Module(...) to trace it as it is"
EXACT = (nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
PARTS = (
    *EXACT,
    nn.MultiheadAttention,
    nn.Linear,
    NonDynamicallyQuantizableLinear,
    nn.LayerNorm,
    nn.Dropout,
    nn.Dropout1d,
    nn.ModuleList,
    nn.Embedding,
)
HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def activation_name(activation: Any) -> str | None:
    """The canonical name of an activation function or module; None when it is not known."""
    if activation in (F.relu, torch.relu) or type(activation) is nn.ReLU:
        return "relu"
    if activation is F.gelu:
        return "gelu"
    if type(activation) is nn.GELU:
        return "gelu" if activation.approximate == "none" else "gelu_tanh"
    return None


def found_problems(module: nn.Module, name: str) -> Iterator[str]:
    """What makes `module` something else than PyTorch's own class in its published settings."""
    for path, part in module.named_modules(prefix=name):
        if type(part) not in PARTS and activation_name(part) is None:
            yield f"{path} is a {type(part).__name__}, not a module of torch.nn.Transformer"
        if any(getattr(part, hooks) for hooks in HOOKS):
            yield f"{path} has forward hooks"
        if "forward" in vars(part):
            yield f"{path} has a forward of its own"
        if isinstance(part, nn.MultiheadAttention):
            if part.in_proj_weight is None:
                yield f"{path} has kdim or vdim apart from embed_dim"
            if part.bias_k is not None or part.add_zero_attn:
                yield f"{path} uses add_bias_kv or add_zero_attn"
        if isinstance(part, nn.LayerNorm) and part.weight is None:
            yield f"{path} has no weight (elementwise_affine=False)"
        if isinstance(part, nn.Embedding) and part.max_norm is not None:
            yield f"{path} renormalizes its rows (max_norm)"


def check_exact(modules: dict[str, nn.Module | None], wanted: dict[str, type]) -> None:
    """Refuses, with all reasons at once, modules that are not exactly of the `wanted` class with exactly PyTorch's parts inside."""
    problems = []
    for name, module in modules.items():
        if module is None:
            continue
        if type(module) is not wanted[name]:
            problems.append(f"{name} is a {type(module).__name__}, not exactly torch.nn.{wanted[name].__name__}")
        elif isinstance(module, nn.Module):
            problems += found_problems(module, name)
    transformer = modules["transformer"]
    inside = transformer.modules() if isinstance(transformer, nn.Module) else []
    attentions = [part for part in inside if isinstance(part, nn.MultiheadAttention)]
    orders = {part.batch_first for part in [*attentions, *([transformer] if isinstance(transformer, nn.Transformer) else [])]}
    if len(orders) > 1:
        problems.append("transformer has parts with batch_first and parts without")
    if len(widths := {part.embed_dim for part in attentions}) > 1:
        problems.append(f"transformer has layers of different widths ({', '.join(map(str, sorted(widths)))})")
    if isinstance(transformer, nn.Transformer):
        for side, kind in (("encoder", nn.TransformerEncoder), ("decoder", nn.TransformerDecoder)):
            if type(getattr(transformer, side)) is not kind:
                problems.append(f"transformer.{side} is not exactly torch.nn.{kind.__name__}")
    if problems:
        raise CheckpointError(f"this model has no canonical form: {'; '.join(dict.fromkeys(problems))}; {INSTEAD}")


def read_layer(layer: nn.Module, path: str) -> Layer:
    """Settings of one encoder or decoder layer."""
    activation = activation_name(layer.activation)
    if activation is None:
        name = getattr(layer.activation, "__name__", type(layer.activation).__name__)
        raise CheckpointError(f"{path} has the activation {name}; known are relu, gelu (exact or tanh); {INSTEAD}")
    if isinstance(layer, nn.TransformerDecoderLayer) and layer.multihead_attn.num_heads != layer.self_attn.num_heads:
        counts = f"{layer.self_attn.num_heads} heads in self attention and {layer.multihead_attn.num_heads} in cross attention"
        raise CheckpointError(f"{path} has {counts}; {INSTEAD}")
    rows = DECODER_LAYER if isinstance(layer, nn.TransformerDecoderLayer) else ENCODER_LAYER
    norms = [layer.norm1, layer.norm2, *([layer.norm3] if isinstance(layer, nn.TransformerDecoderLayer) else [])]
    return Layer(
        heads=layer.self_attn.num_heads,
        inner=layer.linear1.out_features,
        activation=activation,
        norm_first=layer.norm_first,
        eps=tuple(norm.eps for norm in norms),
        biases=existing(rows, {name for name, _ in layer.named_parameters()}),
        head=layer.self_attn.head_dim,
    )


def read_stack(stack: nn.TransformerEncoder | nn.TransformerDecoder, path: str) -> Stack:
    """Settings of an encoder or decoder; `path` names it in messages."""
    if not len(stack.layers):
        raise CheckpointError(f"{path} has no layers; at least 1 is needed")
    cross = isinstance(stack, nn.TransformerDecoder)
    kind = nn.TransformerDecoderLayer if cross else nn.TransformerEncoderLayer
    for i, layer in enumerate(stack.layers):
        if type(layer) is not kind:
            raise CheckpointError(f"{path}.layers.{i} is a {type(layer).__name__}, not exactly torch.nn.{kind.__name__}; {INSTEAD}")
    layers = tuple(read_layer(layer, f"{path}.layers.{i}") for i, layer in enumerate(stack.layers))
    if len({layer.heads for layer in layers}) > 1:
        raise CheckpointError(f"{path} has layers with different numbers of heads; {INSTEAD}")
    norm = stack.norm
    return Stack(
        hidden=stack.layers[0].self_attn.embed_dim,
        layers=layers,
        cross=cross,
        final_eps=None if norm is None else norm.eps,
        final_bias=norm is not None and norm.bias is not None,
    )
