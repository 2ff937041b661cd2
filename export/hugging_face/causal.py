"""Hugging Face's decoder-only language models as transformers loads them, described for the canonical model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxport.errors import CheckpointError
from onnxport.export.canonical import load_weights
from onnxport.export.canonical.graphs import CanonicalModel
from onnxport.export.canonical.load_weights import StackWeights
from onnxport.export.canonical.settings import Layer, Stack
from onnxport.export.canonical.weight_table import WeightTable, existing
from onnxport.export.config_checks import DEPTH, LENGTH, ROWS, WIDTH, Key, integer, number, one_of, optional
from onnxport.export.deferred import parameter
from onnxport.export.description import CausalModel
from onnxport.export.hugging_face.config_keys import ACTIVATIONS, FLAG, IGNORED, always, architecture_problems, read_config
from onnxport.export.hugging_face.family import Decoding
from onnxport.export.hugging_face.generation_settings import KNOWN
from onnxport.export.hugging_face.original import TransformersCausal
from onnxport.export.sentence_transformers import TextSettings

ROTARY = ("default", "linear", "llama3", "yarn")  # rope types whose tables do not depend on the length of a text
COMMON: dict[str, Key] = {
    "vocab_size": Key(integer(1, ROWS), None),
    "tie_word_embeddings": FLAG,
    "is_encoder_decoder": always(False),
    "is_decoder": FLAG,
    "add_cross_attention": always(False),
    "cross_attention_hidden_size": always(None),
    "pruned_heads": always({}, None),
    "tie_encoder_decoder": always(False),
    "auto_map": always(None, {}),
}


def _rotary(value: Any) -> str | None:
    """What was expected of rope_scaling or rope_parameters instead."""
    if not isinstance(value, dict):
        return "an object"
    kind = value.get("rope_type", value.get("type", "default"))
    if kind not in ROTARY:
        return f"a rope_type of {', '.join(ROTARY)}"
    return None if value.get("partial_rotary_factor", 1.0) == 1.0 else "a partial_rotary_factor of 1"


LLAMA: dict[str, Key] = {  # as Llama and its kin call them
    "hidden_size": Key(integer(1, WIDTH), None),
    "num_hidden_layers": Key(integer(1, DEPTH), None),
    "num_attention_heads": Key(integer(1, WIDTH), None),
    "num_key_value_heads": Key(optional(integer(1, WIDTH)), None),
    "intermediate_size": Key(integer(1, 16 * WIDTH), None),
    "head_dim": Key(optional(integer(1, WIDTH)), None),
    "hidden_act": Key(one_of(*ACTIVATIONS), None),
    "max_position_embeddings": Key(integer(1, LENGTH), None),
    "rms_norm_eps": Key(number(0), None),
    "rope_theta": Key(number(0), None),
    "rope_scaling": Key(optional(_rotary), None),
    "rope_parameters": Key(optional(_rotary), None),
    "attention_bias": FLAG,
    "mlp_bias": FLAG,
    "partial_rotary_factor": always(1.0, None),
}
TRAINING = frozenset(
    """initializer_range attention_dropout pretraining_tp rope_ratio max_window_layers attn_pdrop embd_pdrop resid_pdrop summary_activation
    summary_first_dropout summary_proj_to_labels summary_type summary_use_proj n_ctx use_bfloat16 mlp_dropout""".split()
)
OPTIONAL_TENSORS = (r"\.rotary_emb\.inv_freq$", r"\.attn\.(masked_)?bias$")  # buffers that older versions saved


@dataclass(frozen=True)
class CausalFamily:
    """A family of transformers' language models.

    classes: the one with a head, then the one without. base: the decoder's name in the first. paths: below the base, `tokens`, `positions`
    (may be missing: then positions are rotary), `norm` and `layers`. layer: settings of layer i beside heads, head and biases.
    """

    model_type: str
    classes: tuple[str, str]
    base: str
    table: WeightTable
    paths: Mapping[str, str]
    keys: Mapping[str, Key]
    layer: Callable[[Any, int], dict[str, Any]]
    kind: Literal["causal"] = "causal"
    settings: frozenset[str] = field(default_factory=frozenset)

    @property
    def prefix(self) -> str:
        """Of the decoder's tensors in the class with a head."""
        return f"{self.base}."

    def problems(self, config: Mapping[str, Any]) -> list[str]:
        """Everything in a config.json that the canonical model would not reproduce."""
        _, _, problems = read_config(self.model_type, config, {**COMMON, **self.keys}, IGNORED | KNOWN | TRAINING)
        return problems + architecture_problems(config, self.classes)

    def class_name(self, config: Mapping[str, Any]) -> str:
        """The class with a head; a model without is loaded into it where its head is tied."""
        return self.classes[0]

    def optional_tensors(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """Buffers."""
        return OPTIONAL_TENSORS

    def task(self, config: Mapping[str, Any]) -> str | None:
        """The one of all language models."""
        return "text-generation"

    def vocabularies(self, config: Any) -> dict[str, int]:
        """Rows of the one table."""
        return {"source": config.vocab_size, "target": config.vocab_size}

    def adapter(self, model: Any, folder: Path, decoding: Decoding | None, texts: TextSettings) -> HuggingFaceCausal:
        """The loaded model with what its decoding needs."""
        assert decoding is not None, "a language model is decoded"
        return HuggingFaceCausal(self, model, decoding.ids, decoding.search)


@dataclass(eq=False)
class HuggingFaceCausal:
    """A loaded language model with what its decoding needs."""

    family: CausalFamily
    model: Any
    ids: dict[str, Any]
    generation: dict[str, Any]

    @property
    def max_length(self) -> int:
        """Positions."""
        return int(self.model.config.max_position_embeddings)

    def original(self) -> TransformersCausal:
        """transformers' class behind functions of ids."""
        return TransformersCausal(self.model, self.ids)

    def describe(self) -> CausalModel:
        """The model for the exporter."""
        return CausalModel(self.original(), self.build, self.ids, self.max_length, self.generation)

    def build(self) -> CanonicalModel:
        """The canonical decoder, over the same tensors where their layout allows it."""
        head = self.model.get_output_embeddings()
        bias = None if getattr(head, "bias", None) is None else ("lm_head.bias", parameter(head, "bias"))
        return CanonicalModel({"decoder": load_weights.decoder(self._stack_weights(), ("lm_head.weight", parameter(head, "weight")), bias)})

    def _stack_weights(self) -> StackWeights:
        config, family = self.model.config, self.family
        base, path, paths = getattr(self.model, family.base), family.base, family.paths
        state = dict(base.named_parameters(remove_duplicate=False))
        heads = int(config.num_attention_heads)
        kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
        head = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        rotary = "positions" not in paths
        layers = tuple(
            Layer(
                heads=heads,
                kv_heads=kv_heads,
                head=head,
                rotary=rotary,
                norm_first=True,
                biases=existing(family.table.layer, {name.removeprefix(f"{paths['layers']}.{i}.") for name in state}),
                **family.layer(config, i),
            )
            for i in range(len(base.get_submodule(paths["layers"])))
        )
        norm = base.get_submodule(paths["norm"])
        tables = _tables(base.rotary_emb, self.max_length, head, layers[0].size) if rotary else None
        eps = getattr(norm, "eps", None) or getattr(norm, "variance_epsilon", None)
        final_bias = getattr(norm, "bias", None) is not None
        stack = Stack(config.hidden_size, layers, False, eps, final_bias=final_bias, rotary=self.max_length if rotary else 0)
        tokens = (f"{path}.{paths['tokens']}", parameter(base.get_submodule(paths["tokens"]), "weight"))
        learned = None if rotary else (f"{path}.{paths['positions']}", parameter(base.get_submodule(paths["positions"]), "weight"))
        norms = {"norm": paths["norm"]}
        return StackWeights(stack, family.table, path, state, tokens, learned, 1.0, norms, paths["layers"], rotary=tables)


def _tables(rotary: Any, positions: int, head: int, size: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [positions, size / 2] by transformers' own frequencies; padding is turned by nothing."""
    frequencies = rotary.inv_freq.float()
    if 2 * len(frequencies) != head:
        raise CheckpointError(f"rotary positions turn {2 * len(frequencies)} of {head} values of a head, expected all; use Module(...)")
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * frequencies[None]
    extra = size // 2 - len(frequencies)
    cosines, sines = angles.cos() * rotary.attention_scaling, angles.sin() * rotary.attention_scaling
    return F.pad(cosines, [0, extra], value=1.0), F.pad(sines, [0, extra])
