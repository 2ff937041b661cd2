"""Language models in transformers that are none of the families, or have settings unknown to theirs: the class's own code is traced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from onnxport.errors import CheckpointError
from onnxport.export.config_checks import DEPTH, named_class
from onnxport.export.description import CausalModel
from onnxport.export.hugging_face.config_keys import architecture_problems
from onnxport.export.hugging_face.family import Decoding
from onnxport.export.hugging_face.original import TransformersCausal
from onnxport.export.sentence_transformers import TextSettings
from onnxport.export.transformers_library import import_transformers, quiet, refusing

TABLE = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"
OPTIONAL_TENSORS = (r"\.rotary_emb\.inv_freq$", r"\.attn\.(masked_)?bias$", r"\.attention\.(masked_)?bias$")  # buffers of older versions
COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_experts", "num_local_experts", "n_routed_experts")
LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length")
VARYING = ("dynamic", "longrope")  # kinds of rotary positions whose tables change where a text is longer than the original length


def other_decoder(model_type: str, config: Mapping[str, Any], where: Path) -> OtherDecoder | None:
    """The family of a language model of transformers; None where the type has none. CheckpointError: transformers refuses the config."""
    from transformers.models.auto import modeling_auto

    transformers = import_transformers()
    found = getattr(modeling_auto, TABLE).get(model_type)
    if found is None:
        return None
    names = (found,) if isinstance(found, str) else tuple(found)
    named = named_class(config)
    chosen: str = named if named is not None and named in names else names[0]
    with quiet(), refusing(where.parent):
        cls = getattr(transformers, chosen)
        cls.config_class.from_dict(dict(config))
    return OtherDecoder(model_type, chosen, names, cls.base_model_prefix)


def is_decoder_alone(model_type: str, config: Mapping[str, Any]) -> bool:
    """Whether the config names the class for language models of a type that has others too: BertLMHeadModel, BartForCausalLM."""
    from transformers.models.auto import modeling_auto

    found = getattr(modeling_auto, TABLE).get(model_type)
    return found is not None and named_class(config) in ((found,) if isinstance(found, str) else found)


@dataclass(frozen=True)
class OtherDecoder:
    """A family that is only what transformers makes of it. classes: those with a head for the next token; chosen: the one to load."""

    model_type: str
    chosen: str
    classes: tuple[str, ...]
    base_prefix: str
    kind: Literal["causal"] = "causal"
    settings: frozenset[str] = field(default_factory=frozenset)

    @property
    def prefix(self) -> str:
        """Of the decoder's tensors in the class with a head."""
        return f"{self.base_prefix}."

    def problems(self, config: Mapping[str, Any]) -> list[str]:
        """What the class alone would not do; all else in a config.json is between it and transformers."""
        problems = ["auto_map names the folder's own code, which is not run"] if config.get("auto_map") else []
        if config.get("is_encoder_decoder"):
            problems.append("is_encoder_decoder is True, expected a decoder alone")
        for key in COUNTS:  # the class is built with as many parts before its weights are held against it
            if isinstance(value := config.get(key), int) and value > DEPTH:
                problems.append(f"{key} is {value}, expected at most {DEPTH}")
        return problems + architecture_problems(config, self.classes)

    def class_name(self, config: Mapping[str, Any]) -> str:
        """The class with a head."""
        return self.chosen

    def optional_tensors(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """Buffers."""
        return OPTIONAL_TENSORS

    def task(self, config: Mapping[str, Any]) -> str | None:
        """The one of all language models."""
        return "text-generation"

    def vocabularies(self, config: Any) -> dict[str, int]:
        """Rows of the one table."""
        rows = config.get_text_config().vocab_size
        return {"source": rows, "target": rows}

    def adapter(self, model: Any, folder: Path, decoding: Decoding | None, texts: TextSettings) -> TracedCausal:
        """The loaded model with what its decoding needs."""
        assert decoding is not None, "a language model is decoded"
        return TracedCausal(model, decoding.ids, decoding.search)


@dataclass(eq=False)
class TracedCausal:
    """A loaded language model, whatever is inside, with what its decoding needs."""

    model: Any
    ids: dict[str, Any]
    generation: dict[str, Any]

    @property
    def max_length(self) -> int | None:
        """Positions; None where nothing bounds them. Rotary positions that change with the length are kept within the original one."""
        config = self.model.config.get_text_config()
        bounds = [next((getattr(config, name) for name in LENGTHS if isinstance(getattr(config, name, None), int)), None)]
        rope = getattr(config, "rope_parameters", None) or {}
        for part in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
            if part.get("rope_type") in VARYING:
                bounds.append(part.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None))
        return min((bound for bound in bounds if isinstance(bound, int) and bound > 0), default=None)

    def describe(self) -> CausalModel:
        """The model for the exporter."""
        if self.model.get_output_embeddings() is None or self.model.get_input_embeddings() is None:
            raise CheckpointError(f"{type(self.model).__name__} has no table of tokens and head that can be found; use Module(...)")
        return CausalModel(TransformersCausal(self.model, self.ids), None, self.ids, self.max_length, self.generation)
