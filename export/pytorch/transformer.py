"""PyTorch's own Transformer for the canonical model: the table of its weights, the checks of its modules, and its settings."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from onnxport.errors import CheckpointError
from onnxport.export.canonical.load_weights import StackWeights
from onnxport.export.canonical.settings import Layer, Stack
from onnxport.export.canonical.weight_table import Row, Transform, WeightTable, existing, merged, pad_rows, plain, transposed


def _projection(start: int, stop: int) -> Transform:
    """Parts start..stop of PyTorch's packed (query, key, value), padded, and transposed where it is a matrix."""

    def take(weight: Tensor, layer: Layer) -> Tensor:
        rows = weight.shape[0] // 3
        return pad_rows(weight[start * rows : stop * rows], (stop - start) * layer.heads, layer.size).t()

    return take


def _rows(*rows: tuple[str, str, Transform]) -> list[Row]:
    return [Row((source,), ours, transform, source + PARTS.get(transform, "")) for source, ours, transform in rows]


qkv, query, key_value = _projection(0, 3), _projection(0, 1), _projection(1, 3)
PARTS = {query: ".query", key_value: ".key_value"}  # what a traced initializer is called when it is only a part of its parameter

SELF_ATTENTION = _rows(
    ("self_attn.in_proj_weight", "attention.qkv.weight", qkv),
    ("self_attn.in_proj_bias", "attention.qkv.bias", qkv),
    ("self_attn.out_proj.weight", "attention.out.weight", merged),
    ("self_attn.out_proj.bias", "attention.out.bias", plain),
    ("norm1.weight", "attention_norm.weight", plain),
    ("norm1.bias", "attention_norm.bias", plain),
)
FEED_FORWARD = _rows(
    ("linear1.weight", "feed_forward.up.weight", transposed),
    ("linear1.bias", "feed_forward.up.bias", plain),
    ("linear2.weight", "feed_forward.down.weight", transposed),
    ("linear2.bias", "feed_forward.down.bias", plain),
)
ENCODER_LAYER = [
    *SELF_ATTENTION,
    *FEED_FORWARD,
    *_rows(
        ("norm2.weight", "feed_forward_norm.weight", plain),
        ("norm2.bias", "feed_forward_norm.bias", plain),
    ),
]
DECODER_LAYER = [
    *SELF_ATTENTION,
    *FEED_FORWARD,
    *_rows(
        ("multihead_attn.in_proj_weight", "cross.query.weight", query),
        ("multihead_attn.in_proj_bias", "cross.query.bias", query),
        ("multihead_attn.out_proj.weight", "cross.out.weight", merged),
        ("multihead_attn.out_proj.bias", "cross.out.bias", plain),
        ("norm2.weight", "cross_norm.weight", plain),
        ("norm2.bias", "cross_norm.bias", plain),
        ("norm3.weight", "feed_forward_norm.weight", plain),
        ("norm3.bias", "feed_forward_norm.bias", plain),
    ),
]
CROSS_PROJECTION = _rows(
    ("multihead_attn.in_proj_weight", "kv.weight", key_value),
    ("multihead_attn.in_proj_bias", "kv.bias", key_value),
)
LAYER_MODULES = {
    "attention.qkv": "self_attn.in_proj",
    "attention": "self_attn",
    "cross.query": "multihead_attn.in_proj.query",
    "cross": "multihead_attn",
    "feed_forward": "activation",
    "kv": "multihead_attn.in_proj.key_value",
}
TABLE = WeightTable(ENCODER_LAYER, DECODER_LAYER, CROSS_PROJECTION, LAYER_MODULES)

INSTEAD = "use Module(...) to trace it as it is"
EXACT = (nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
EXACT_MODULES = (
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
        if type(part) not in EXACT_MODULES and activation_name(part) is None:
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
        if module is not None and type(module) is not wanted[name]:
            problems.append(f"{name} is a {type(module).__name__}, not exactly torch.nn.{wanted[name].__name__}")
        elif module is not None:
            problems += found_problems(module, name)
    if isinstance(modules["transformer"], nn.Module):
        problems += _stack_problems(modules["transformer"])
    if problems:
        raise CheckpointError(f"this model has no canonical form: {'; '.join(dict.fromkeys(problems))}; {INSTEAD}")


def _stack_problems(transformer: nn.Module) -> list[str]:
    """What the canonical stacks cannot have: parts that disagree in their order of axes or their width, and stacks of other classes."""
    problems = []
    attentions = [part for part in transformer.modules() if isinstance(part, nn.MultiheadAttention)]
    orders = {part.batch_first for part in [*attentions, *([transformer] if isinstance(transformer, nn.Transformer) else [])]}
    if len(orders) > 1:
        problems.append("transformer has parts with batch_first and parts without")
    if len(widths := {part.embed_dim for part in attentions}) > 1:
        problems.append(f"transformer has layers of different widths ({', '.join(map(str, sorted(widths)))})")
    if isinstance(transformer, nn.Transformer):
        for side, kind in (("encoder", nn.TransformerEncoder), ("decoder", nn.TransformerDecoder)):
            if type(getattr(transformer, side)) is not kind:
                problems.append(f"transformer.{side} is not exactly torch.nn.{kind.__name__}")
    return problems


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


def stack_weights(
    stack: nn.TransformerEncoder | nn.TransformerDecoder,
    path: str,
    tokens_path: str,
    tokens: Tensor,
    positions: Tensor | None,
    scale: float,
) -> StackWeights:
    """An encoder or decoder called `path`, with the tables in front of it."""
    named = None if positions is None else ("positions", positions)
    state = dict(stack.named_parameters(remove_duplicate=False))  # layers may share their weights
    norms = {} if stack.norm is None else {"norm": "norm"}
    return StackWeights(read_stack(stack, path), TABLE, path, state, (tokens_path, tokens), named, scale, norms)
