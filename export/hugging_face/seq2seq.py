"""Hugging Face's encoder-decoders as transformers loads them, described for the canonical model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import nn

from onnxport.export.canonical import load_weights
from onnxport.export.canonical.graphs import CanonicalModel
from onnxport.export.canonical.load_weights import StackWeights
from onnxport.export.canonical.settings import Layer, Stack
from onnxport.export.canonical.weight_table import WeightTable, existing
from onnxport.export.config_checks import Key
from onnxport.export.deferred import parameter
from onnxport.export.description import Seq2SeqModel
from onnxport.export.hugging_face.config_keys import ACTIVATIONS, config_problems
from onnxport.export.hugging_face.family import Decoding
from onnxport.export.hugging_face.original import TransformersSeq2Seq
from onnxport.export.sentence_transformers import TextSettings

SETTINGS = frozenset(
    """d_model encoder_layers decoder_layers encoder_attention_heads decoder_attention_heads encoder_ffn_dim decoder_ffn_dim
    activation_function scale_embedding tie_word_embeddings share_encoder_decoder_embeddings max_position_embeddings vocab_size
    decoder_vocab_size""".split()
)


@dataclass(frozen=True)
class Seq2SeqFamily:
    """An encoder-decoder family of transformers, below `model.encoder` and `model.decoder`.

    `classes`: the one that generates, then the one without a head; `keys`: of config.json beside the common ones; `offset`: rows of the
    table of positions before that of position 0; `norms`: canonical norm outside the layers → its name in encoder and decoder.
    """

    model_type: str
    classes: tuple[str, str]
    table: WeightTable
    task: Callable[[Mapping[str, Any]], str | None]
    keys: Mapping[str, Key] = field(default_factory=dict)
    offset: int = 0
    norms: Mapping[str, str] = field(default_factory=dict)
    kind: Literal["seq2seq"] = "seq2seq"
    prefix: str = "model."
    settings: frozenset[str] = SETTINGS

    def problems(self, config: Mapping[str, Any]) -> list[str]:
        """Everything in a config.json that the canonical model would not reproduce."""
        return config_problems(self.model_type, config, self.keys, self.classes)

    def class_name(self, config: Mapping[str, Any]) -> str:
        """The class that generates; a model without its head is loaded into it too."""
        return self.classes[0]

    def optional_tensors(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """Every tensor matters."""
        return ()

    def vocabularies(self, config: Any) -> dict[str, int]:
        """Rows of the tables."""
        own = None if getattr(config, "share_encoder_decoder_embeddings", True) else config.decoder_vocab_size
        return {"source": config.vocab_size, "target": own or config.vocab_size}

    def adapter(self, model: Any, folder: Path, decoding: Decoding | None, texts: TextSettings) -> HuggingFaceSeq2Seq:
        """The loaded model with what its decoding needs."""
        assert decoding is not None, "an encoder-decoder is decoded"
        return HuggingFaceSeq2Seq(self, model, decoding.ids, decoding.search)


@dataclass(eq=False)
class HuggingFaceSeq2Seq:
    """A loaded model with what its decoding needs: an adapter as those of users are."""

    family: Seq2SeqFamily
    model: Any
    ids: dict[str, Any]
    generation: dict[str, Any]

    @property
    def max_length(self) -> int | None:
        """Positions of source and target."""
        return int(self.model.config.max_position_embeddings)

    def describe(self) -> Seq2SeqModel:
        """The model for the exporter."""
        return Seq2SeqModel(self.original(), self.build, self.ids, self.max_length, self.generation)

    def original(self) -> TransformersSeq2Seq:
        """transformers' class behind functions of ids."""
        return TransformersSeq2Seq(self.model, self.ids)

    def build(self) -> CanonicalModel:
        """The canonical encoder and decoder, over the same tensors where their layout allows it."""
        encoder, decoder = self._stack_weights("encoder", cross=False), self._stack_weights("decoder", cross=True)
        bias = self.model.final_logits_bias[0]
        head = ("lm_head.weight", parameter(self.model.lm_head, "weight"))
        named = ("final_logits_bias", bias) if bias.any() else None  # zeros where a checkpoint has none
        return CanonicalModel(
            {"encoder": load_weights.source_encoder(encoder, decoder), "decoder": load_weights.decoder(decoder, head, named)}
        )

    def _stack_weights(self, name: str, cross: bool) -> StackWeights:
        config, part, path = self.model.config, getattr(self.model.model, name), f"model.{name}"
        state = dict(part.named_parameters(remove_duplicate=False))
        rows = self.family.table.cross_layer if cross else self.family.table.layer
        layers = tuple(
            Layer(
                heads=getattr(config, f"{name}_attention_heads"),
                inner=layer.fc1.out_features,
                activation=ACTIVATIONS[config.activation_function],
                norm_first=False,
                eps=tuple(module.eps for module in layer.children() if isinstance(module, nn.LayerNorm)),
                biases=existing(rows, {key for key, _ in layer.named_parameters()}),
                head=config.d_model // getattr(config, f"{name}_attention_heads"),
            )
            for layer in part.layers
        )
        norm = self.family.norms.get("embedding.norm")
        stack = Stack(config.d_model, layers, cross, None, embedding_eps=getattr(part, norm).eps if norm else None)
        shared = getattr(self.model.model, "shared", None)
        tokens = parameter(part.embed_tokens, "weight")
        tied = shared is not None and load_weights.same_storage(parameter(shared, "weight"), tokens)
        positions = part.embed_positions.weight[self.family.offset :]
        scale = config.d_model**0.5 if config.scale_embedding else 1.0
        return StackWeights(
            stack,
            self.family.table,
            path,
            state,
            ("model.shared" if tied else f"{path}.embed_tokens", tokens),
            (f"{path}.embed_positions", positions),
            scale,
            self.family.norms,
        )
