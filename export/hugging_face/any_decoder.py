"""Language models in transformers that are none of the families, or have settings unknown to theirs: the class's own code is traced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from onnxport.errors import CheckpointError
from onnxport.export.config_checks import named_class
from onnxport.export.description import CausalModel
from onnxport.export.hugging_face.config_keys import architecture_problems
from onnxport.export.hugging_face.family import Decoding
from onnxport.export.hugging_face.original import TransformersCausal
from onnxport.export.hugging_face.other_family import COUNTS, LENGTHS, OtherFamily, code_problems, depth_problems
from onnxport.export.sentence_transformers import TextSettings
from onnxport.export.transformers_library import import_transformers, quiet, refusing

TABLE = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"
VARYING = ("dynamic", "longrope")  # kinds of rotary positions whose tables change where a text is longer than the original length


def other_decoder(model_type: str, config: Mapping[str, Any], where: Path) -> OtherDecoder | None:
    """The family of a language model of transformers; None where the type has none. CheckpointError: transformers refuses the config."""
    transformers = import_transformers()
    names = _names(model_type)
    if not names:
        return None
    named = named_class(config)
    chosen: str = named if named is not None and named in names else names[0]
    with quiet(), refusing(where.parent):
        cls = getattr(transformers, chosen)
        cls.config_class.from_dict(dict(config))
    return OtherDecoder(model_type, chosen, names, cls.base_model_prefix)


def is_decoder_alone(model_type: str, config: Mapping[str, Any]) -> bool:
    """Whether the config names the class for language models of a type that has others too: BertLMHeadModel, BartForCausalLM."""
    return named_class(config) in _names(model_type) and not config.get("is_encoder_decoder")


def _names(model_type: str) -> tuple[str, ...]:
    """Classes for language models of a type, the usual one first; () where it has none."""
    from transformers.models.auto import modeling_auto

    found = getattr(modeling_auto, TABLE).get(model_type, ())
    return (found,) if isinstance(found, str) else tuple(found)


@dataclass(frozen=True)
class OtherDecoder(OtherFamily):
    """Language models. classes: those with a head for the next token."""

    kind: Literal["causal"] = "causal"

    def problems(self, config: Mapping[str, Any]) -> list[str]:
        """What the class alone would not do; all else in a config.json is between it and transformers."""
        problems = code_problems(config)
        if config.get("is_encoder_decoder"):
            problems.append("is_encoder_decoder is True, expected a decoder alone")
        return problems + depth_problems(config, COUNTS) + architecture_problems(config, self.classes)

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
        if not all(hasattr(part, "weight") for part in (self.model.get_input_embeddings(), self.model.get_output_embeddings())):
            raise CheckpointError(f"{type(self.model).__name__} has no one table of tokens and head that can be found; use Module(...)")
        return CausalModel(TransformersCausal(self.model, self.ids), None, self.ids, self.max_length, self.generation)
