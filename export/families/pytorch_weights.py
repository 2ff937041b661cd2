"""Carries the weights of PyTorch's own Transformer into the canonical model, by the table of names, and remembers who came from where."""

from dataclasses import dataclass, field

from torch import Tensor, nn

from onnxport.export.families.pytorch_modules import read_stack
from onnxport.export.families.pytorch_names import CROSS_PROJECTION, DECODER_LAYER, ENCODER_LAYER, LAYER_MODULES, PARTS, Row
from onnxport.export.model.decoder import Decoder
from onnxport.export.model.encoder import Encoder, SourceEncoder, TextEncoder
from onnxport.export.model.linear import Linear
from onnxport.export.model.position import Embedding
from onnxport.export.model.settings import Stack


@dataclass
class Names:
    """For one graph: canonical parameter → PyTorch parameter, canonical module → PyTorch module (longest prefix wins)."""

    parameters: dict[str, str] = field(default_factory=dict)
    modules: dict[str, str] = field(default_factory=dict)


@dataclass
class Canonical:
    """One canonical graph with its names and the settings of the stack it runs."""

    module: nn.Module
    names: Names
    stack: Stack


class _Loader:
    """Assigns tensors to a canonical module's parameters and fills its `Names`."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.names = module, Names()
        self.seen: set[str] = set()

    def put(self, canonical: str, source: str, value: Tensor) -> None:
        """Assigns the parameter `canonical`, which is called `source` in PyTorch. AssertionError when shapes differ."""
        parameter = self.module.get_parameter(canonical)
        if parameter.shape != value.shape:
            raise AssertionError(f"{source} {tuple(value.shape)} does not fit {canonical} {tuple(parameter.shape)}")
        parameter.data = value.detach().contiguous()
        self.names.parameters[canonical] = source
        self.seen.add(canonical)

    def layer(self, rows: list[Row], layer: nn.Module, canonical: str, source: str) -> None:
        """One layer's tensors; a missing bias is simply not there on either side."""
        tensors = dict(layer.named_parameters())
        heads = layer.self_attn.num_heads
        for name, ours, transform in rows:
            if name in tensors:
                self.put(f"{canonical}.{ours}", f"{source}.{name}{PARTS.get(transform, '')}", transform(tensors[name], heads))
        own = [(ours.rpartition(".")[0], name.rpartition(".")[0]) for name, ours, _ in rows if name.startswith(("norm", "linear"))]
        modules = LAYER_MODULES | dict(own)
        self.names.modules |= {f"{canonical}.{ours}": f"{source}.{name}" for ours, name in modules.items()}
        self.names.modules[canonical] = source

    def norm(self, norm: nn.LayerNorm | None, canonical: str, source: str) -> None:
        """A layer norm's tensors; None is no norm on either side."""
        if norm is not None:
            for name, value in norm.named_parameters():
                self.put(f"{canonical}.{name}", f"{source}.{name}", value)
            self.names.modules[canonical] = source

    def embedding(self, canonical: str, table: Tensor, positions: Tensor | None, source: str) -> None:
        """The token table, and the table of positions where there is one."""
        self.put(f"{canonical}.weight", f"{source}.weight", table)
        self.names.modules[canonical] = source
        if positions is not None:
            self.put(f"{canonical}.positions", "positions.weight", positions)

    def done(self, stack: Stack) -> Canonical:
        """The module in eval mode without gradients. AssertionError when a parameter was never assigned."""
        missing = {name for name, _ in self.module.named_parameters()} - self.seen
        if missing:
            raise AssertionError(f"canonical parameters without a source: {sorted(missing)}")
        return Canonical(self.module.eval().requires_grad_(False), self.names, stack)


def _embedding(table: Tensor, positions: Tensor | None, scale: float) -> Embedding:
    return Embedding(table.shape[0], table.shape[1], None if positions is None else positions.shape[0], scale)


def build_source_encoder(transformer: nn.Transformer, table: Tensor, positions: Tensor | None, scale: float) -> Canonical:
    """The graph `encoder` of a sequence-to-sequence model, with the cross-attention projections of its decoder."""
    encoder, decoder = transformer.encoder, transformer.decoder
    stack = read_stack(encoder, "transformer.encoder")
    cross = [(layer.multihead_attn.num_heads, layer.multihead_attn.in_proj_bias is not None) for layer in decoder.layers]
    loader = _Loader(SourceEncoder(Encoder(stack, _embedding(table, positions, scale)), stack.hidden, cross))
    _load_encoder(loader, encoder, "transformer.encoder", "source_embedding", table, positions)
    for i, layer in enumerate(decoder.layers):
        path = f"transformer.decoder.layers.{i}"
        loader.layer(CROSS_PROJECTION, layer, f"cross.{i}", path)
        loader.names.modules[f"cross.{i}"] = f"{path}.multihead_attn"
    return loader.done(stack)


def build_text_encoder(
    encoder: nn.TransformerEncoder, table: Tensor, positions: Tensor | None, scale: float, head: nn.Linear | None, pooling: str | None
) -> Canonical:
    """The graph `encoder` of a bidirectional model."""
    stack = read_stack(encoder, "transformer")

    linear = None if head is None else Linear(head.in_features, head.out_features, head.bias is not None)
    loader = _Loader(TextEncoder(Encoder(stack, _embedding(table, positions, scale)), linear, pooling))
    _load_encoder(loader, encoder, "transformer", "embedding", table, positions)
    if head is not None:
        loader.put("head.weight", "head.weight", head.weight.t())
        if head.bias is not None:
            loader.put("head.bias", "head.bias", head.bias)
    return loader.done(stack)


def _load_encoder(
    loader: _Loader, encoder: nn.TransformerEncoder, path: str, embedding_path: str, table: Tensor, positions: Tensor | None
) -> None:
    loader.embedding("encoder.embedding", table, positions, embedding_path)
    for i, layer in enumerate(encoder.layers):
        loader.layer(ENCODER_LAYER, layer, f"encoder.layers.{i}", f"{path}.layers.{i}")
    loader.norm(encoder.norm, "encoder.norm", f"{path}.norm")
    loader.names.modules["encoder"] = path


def build_decoder(
    decoder: nn.TransformerDecoder | nn.TransformerEncoder,
    path: str,
    embedding_path: str,
    table: Tensor,
    positions: Tensor | None,
    scale: float,
    head: nn.Linear | None,
) -> Canonical:
    """The graph `decoder`; a TransformerEncoder makes one without cross attention. A `head` that is None or shares the table is tied."""
    stack = read_stack(decoder, path)
    own = None if head is None or same_storage(head.weight, table) else head
    bias = None if head is None else head.bias
    module = Decoder(stack, _embedding(table, positions, scale), None if own is None else own.out_features, bias is not None)
    loader = _Loader(module)
    loader.embedding("embedding", table, positions, embedding_path)
    for i, layer in enumerate(decoder.layers):
        loader.layer(DECODER_LAYER if stack.cross else ENCODER_LAYER, layer, f"layers.{i}", f"{path}.layers.{i}")
    loader.norm(decoder.norm, "norm", f"{path}.norm")
    if own is not None:
        loader.put("head", "head.weight", own.weight)
    if bias is not None:
        loader.put("head_bias", "head.bias", bias)
    return loader.done(stack)


def same_storage(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are one and the same table."""
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()
