"""T5, of version 1.0 (relu, tied) and 1.1 (gated, untied): RMS norms before the blocks, positions as biases of distances."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from onnxport.export.canonical import load_weights
from onnxport.export.canonical.graphs import CanonicalModel
from onnxport.export.canonical.load_weights import StackWeights
from onnxport.export.canonical.settings import Layer, Stack
from onnxport.export.canonical.weight_table import WeightTable, linear, merged, norm, packed, transposed
from onnxport.export.config_checks import DEPTH, LENGTH, ROWS, WIDTH, Key, integer, number, optional
from onnxport.export.deferred import parameter
from onnxport.export.hugging_face.config_keys import ACTIVATIONS, FLAG, IGNORED, always, architecture_problems, read_config
from onnxport.export.hugging_face.family import Decoding
from onnxport.export.hugging_face.generation_settings import KNOWN
from onnxport.export.hugging_face.seq2seq import HuggingFaceSeq2Seq, Seq2SeqFamily
from onnxport.export.sentence_transformers import TextSettings


def _projections(word: str) -> str | None:
    """What was expected of feed_forward_proj instead."""
    name = word.removeprefix("gated-") if isinstance(word, str) else ""
    return None if name in ACTIVATIONS else f"one of {', '.join(ACTIVATIONS)}, or gated- before it"


KEYS: Mapping[str, Key] = {
    "vocab_size": Key(integer(1, ROWS), None),
    "d_model": Key(integer(1, WIDTH), None),
    "d_kv": Key(integer(1, WIDTH), None),
    "d_ff": Key(integer(1, 16 * WIDTH), None),
    "num_layers": Key(integer(1, DEPTH), None),
    "num_decoder_layers": Key(optional(integer(1, DEPTH)), None),
    "num_heads": Key(integer(1, WIDTH), None),
    "relative_attention_num_buckets": Key(integer(2, LENGTH), None),
    "relative_attention_max_distance": Key(integer(2, LENGTH), None),
    "layer_norm_epsilon": Key(number(0), None),
    "feed_forward_proj": Key(_projections, None),
    "tie_word_embeddings": FLAG,
    "scale_decoder_outputs": FLAG,
    "is_encoder_decoder": always(True),
    "is_decoder": FLAG,
    "add_cross_attention": always(False),
    "pruned_heads": always({}, None),
    "tie_encoder_decoder": always(False),
    "auto_map": always(None, {}),
}
# transformers makes them of the others; n_positions is that of the training, attention has no limit
DERIVED_KEYS = frozenset(
    """dense_act_fn is_gated_act n_positions dropout_rate initializer_factor output_past hidden_size head_dim num_hidden_layers
    num_attention_heads cross_attention_hidden_size use_encoder_only""".split()
)


def _feed_forward(place: int) -> list[Any]:
    """A plain one has `wi`, a gated one `wi_0` and `wi_1`."""
    path = f"layer.{place}.DenseReluDense"
    return [
        *linear(f"{path}.wi", "feed_forward.up"),
        *linear((f"{path}.wi_0", f"{path}.wi_1"), "feed_forward.up", f"{path}.wi_0_1", transposed),
        *linear(f"{path}.wo", "feed_forward.down"),
        *norm(f"layer.{place}.layer_norm", "feed_forward_norm"),
    ]


SELF = "layer.0.SelfAttention"
CROSS = "layer.1.EncDecAttention"
ATTENTION = [
    *linear((f"{SELF}.q", f"{SELF}.k", f"{SELF}.v"), "attention.qkv", f"{SELF}.qkv", packed(3)),
    *linear(f"{SELF}.o", "attention.out", weight=merged),
    *norm("layer.0.layer_norm", "attention_norm"),
]
TABLE = WeightTable(
    layer=[*ATTENTION, *_feed_forward(1)],
    cross_layer=[
        *ATTENTION,
        *linear(f"{CROSS}.q", "cross.query", weight=packed(1)),
        *linear(f"{CROSS}.o", "cross.out", weight=merged),
        *norm("layer.1.layer_norm", "cross_norm"),
        *_feed_forward(2),
    ],
    cross_projection=linear((f"{CROSS}.k", f"{CROSS}.v"), "kv", f"{CROSS}.kv", packed(2)),
    modules={"attention": SELF, "cross": CROSS},
)


class T5Family(Seq2SeqFamily):
    """T5 and what differs from it in name only."""

    def problems(self, config: Mapping[str, Any]) -> list[str]:
        """Everything in a config.json that the canonical model would not reproduce."""
        _, _, problems = read_config(self.model_type, config, KEYS, IGNORED | KNOWN | DERIVED_KEYS)
        return problems + architecture_problems(config, self.classes)

    def vocabularies(self, config: Any) -> dict[str, int]:
        """Rows of the one table."""
        return {"source": config.vocab_size, "target": config.vocab_size}

    def adapter(self, model: Any, folder: Path, decoding: Decoding | None, texts: TextSettings) -> HuggingFaceT5:
        """The loaded model with what its decoding needs."""
        assert decoding is not None, "an encoder-decoder is decoded"
        return HuggingFaceT5(self, model, decoding.ids, decoding.search)


class HuggingFaceT5(HuggingFaceSeq2Seq):
    """A loaded T5."""

    @property
    def max_length(self) -> None:
        """Distances beyond the largest are alike: there is no limit."""

    def build(self) -> CanonicalModel:
        """The canonical encoder and decoder, over the same tensors where their layout allows it."""
        config, head = self.model.config, self.model.lm_head
        encoder, decoder = self._stack_weights("encoder", cross=False), self._stack_weights("decoder", cross=True)
        scale = config.d_model**-0.5 if getattr(config, "scale_decoder_outputs", False) else 1.0
        canonical = load_weights.decoder(decoder, ("lm_head.weight", parameter(head, "weight")), None, scale)
        return CanonicalModel({"encoder": load_weights.source_encoder(encoder, decoder), "decoder": canonical})

    def _stack_weights(self, name: str, cross: bool) -> StackWeights:
        config, part = self.model.config, getattr(self.model, name)
        state = dict(part.named_parameters(remove_duplicate=False))
        layer = Layer(
            heads=config.num_heads,
            head=config.d_kv,
            inner=config.d_ff,
            activation=ACTIVATIONS[config.dense_act_fn],
            gated=config.is_gated_act,
            norm="rms",
            norm_first=True,
            eps=(config.layer_norm_epsilon,) * 3,
            scale=1.0,
            biases=frozenset(),
        )
        distances = config.relative_attention_max_distance + 1
        stack = Stack(
            config.d_model,
            (layer,) * len(part.block),
            cross,
            config.layer_norm_epsilon,
            final_bias=False,
            relative=distances if cross else 2 * distances - 1,
        )
        tokens = parameter(part.embed_tokens, "weight")
        tied = load_weights.same_storage(parameter(self.model.shared, "weight"), tokens)
        named = ("shared" if tied else f"{name}.embed_tokens", tokens)
        relative = (f"{name}.block.0.{SELF}.relative_attention_bias", self._biases(part, cross))
        return StackWeights(stack, TABLE, name, state, named, None, 1.0, {"norm": "final_layer_norm"}, "block", relative=relative)

    def _biases(self, part: Any, causal: bool) -> torch.Tensor:
        """Biases by distance [distances, heads] out of the class's own buckets; see RelativeBias."""
        config, attention = self.model.config, part.block[0].layer[0].SelfAttention
        most = config.relative_attention_max_distance
        ahead = torch.arange(0, -most - 1, -1) if causal else torch.arange(most, -most - 1, -1)  # key less query
        buckets = attention._relative_position_bucket(ahead, not causal, config.relative_attention_num_buckets, most)
        table: torch.Tensor = attention.relative_attention_bias.weight[buckets]
        return table


def t5(model_type: str, prefix: str) -> T5Family:
    """A family whose classes' names begin with `prefix`."""
    return T5Family(
        model_type=model_type,
        classes=(f"{prefix}ForConditionalGeneration", f"{prefix}Model"),
        table=TABLE,
        task=lambda config: "text2text",
        prefix="",
        settings=frozenset(KEYS),
    )


FAMILIES = (t5("t5", "T5"), t5("mt5", "MT5"))
