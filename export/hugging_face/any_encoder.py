"""Encoders of texts in transformers that are none of the families: the class's own code is traced, as it is."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from onnxport.errors import CheckpointError
from onnxport.export.description import EncoderModel
from onnxport.export.hugging_face.config_keys import architecture_problems
from onnxport.export.hugging_face.encoder import OPTIONAL_TENSORS, text_encoding
from onnxport.export.hugging_face.family import Decoding
from onnxport.export.hugging_face.original import TransformersEncoder
from onnxport.export.sentence_transformers import TextSettings
from onnxport.export.trace.tracer import Shapes
from onnxport.export.transformers_library import import_transformers, quiet, refusing

# transformers' tables of classes → what a class of it is for; None: hidden states, its head is for training
TABLES = {
    "MODEL_MAPPING_NAMES": None,
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES": None,
    "MODEL_FOR_PRETRAINING_MAPPING_NAMES": None,
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES": "classification",
    "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES": "question-answering",
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES": "tensor",
}
DECODERS = {"MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": None}
READS = ("input_ids", "attention_mask")
UNSUPPORTED = {  # settings that another program than the class alone would have to follow
    "auto_map": "the folder's own code",
    "quantization_config": "weights that are quantized already",
    "pruned_heads": "heads that were pruned",
}


def other_encoder(model_type: str, config: Mapping[str, Any], where: Path, known: str, embeds: bool = False) -> OtherEncoder:
    """The family of a `model_type` that transformers knows and we do not. CheckpointError, with `known`: it is no encoder of texts.

    embeds: a decoder is one too, by its hidden states, as sentence-transformers' files say.
    """
    from transformers.models.auto import configuration_auto, modeling_auto

    def refuse(what: str) -> CheckpointError:
        return CheckpointError(
            f"{where} has the model_type {model_type!r:.60}, {what}; known for now: {known}, and other encoders of texts"
        )

    transformers = import_transformers()
    if model_type not in vars(configuration_auto)["CONFIG_MAPPING_NAMES"]:
        raise refuse(f"which transformers {transformers.__version__} does not know")
    tables = TABLES | (DECODERS if embeds else {})
    named = {table: getattr(modeling_auto, table).get(model_type) for table in tables}
    classes = {name: tables[table] for table, found in named.items() for name in ([found] if isinstance(found, str) else found or [])}
    base = named["MODEL_MAPPING_NAMES"]
    base = base if isinstance(base, str) or base is None else base[0]
    if base is None:
        raise refuse("of which transformers has no encoder")
    with quiet(), refusing(where.parent):
        cls = getattr(transformers, base)
        model_config = cls.config_class.from_dict(dict(config))
    for key in ("vocab_size", "hidden_size"):
        if not isinstance(getattr(model_config, key, None), int):
            raise refuse(f"whose configuration has no {key} of its own")
    if model_config.is_encoder_decoder:
        raise refuse("an encoder-decoder")
    masked, causal = (model_type in getattr(modeling_auto, f"MODEL_FOR_{kind}_LM_MAPPING_NAMES") for kind in ("MASKED", "CAUSAL"))
    if not embeds and ((causal and not masked) or getattr(model_config, "is_decoder", False)):
        raise refuse("a decoder")
    reads = inspect.signature(cls.forward).parameters
    if lacking := [name for name in READS if name not in reads]:
        raise refuse(f"whose {base} reads {cls.main_input_name} and no {' and no '.join(lacking)}")
    return OtherEncoder(model_type, base, classes, cls.base_model_prefix)


@dataclass(frozen=True)
class OtherEncoder:
    """A family that is only what transformers makes of it. classes: those that can be exported → their task, None for hidden states."""

    model_type: str
    base: str
    classes: Mapping[str, str | None]
    base_prefix: str
    kind: Literal["encoder"] = "encoder"
    settings: frozenset[str] = field(default_factory=frozenset)

    @property
    def prefix(self) -> str:
        """Of the encoder's tensors in classes with a head."""
        return f"{self.base_prefix}."

    def problems(self, config: Mapping[str, Any]) -> list[str]:
        """What the class alone would not do; all else in a config.json is between it and transformers."""
        problems = [f"{key} is {config[key]!r:.60}: {what} cannot be exported" for key, what in UNSUPPORTED.items() if config.get(key)]
        return problems + architecture_problems(config, self.classes)

    def class_name(self, config: Mapping[str, Any]) -> str:
        """The class of `architectures`, or the one that gives hidden states."""
        named = (config.get("architectures") or [None])[0]
        return named if isinstance(named, str) and self.classes.get(named) is not None else self.base

    def optional_tensors(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of tensors that may be there or not: of hidden states, whatever is of a head."""
        if self.class_name(config) != self.base:
            return OPTIONAL_TENSORS
        from transformers.initialization import no_init_weights

        cls = getattr(import_transformers(), self.base)
        with quiet(), torch.device("meta"), no_init_weights():
            shell = cls(cls.config_class.from_dict(dict(config)))
        parts = "|".join(re.escape(name) for name, _ in [*shell.named_children(), *shell.named_parameters(recurse=False)])
        return (*OPTIONAL_TENSORS, r"(^|\.)pooler\.", rf"^(?!{re.escape(self.prefix)}|({parts})(\.|$)).*")

    def task(self, config: Mapping[str, Any]) -> str | None:
        """What the class is for."""
        return self.classes[self.class_name(config)] or "embedding"

    def vocabularies(self, config: Any) -> dict[str, int]:
        """Rows of the one table."""
        return {"source": config.vocab_size, "target": config.vocab_size}

    def adapter(self, model: Any, folder: Path, decoding: Decoding | None, texts: TextSettings) -> TracedEncoder:
        """The loaded model with the folder's settings of texts."""
        model.config.use_cache = False  # of decoders that embed: nothing comes after the text
        return TracedEncoder(model, self.classes[type(model).__name__], texts)


@dataclass(eq=False)
class TracedEncoder:
    """An encoder of texts of transformers, whatever is inside. task: of its head, None without one. texts: what the folder says."""

    model: Any
    task: str | None
    texts: TextSettings

    @property
    def max_length(self) -> int | None:
        """Tokens of a text: what the config says, no more than tables of positions hold behind the padding's row; None: no bound."""
        bounds = [getattr(self.model.config, "max_position_embeddings", None), self.texts.max_length]
        for name, module in self.model.named_modules():
            table = getattr(module, "weight", None)  # of nn.Embedding, or of a class's own kind
            if isinstance(table, Tensor) and table.dim() == 2 and re.search(r"(^|[._])(position_embeddings|embed_positions)$", name):
                padding = getattr(module, "padding_idx", None)
                bounds.append(table.shape[0] - (0 if padding is None else padding + 1))
        return min((bound for bound in bounds if isinstance(bound, int) and bound > 0), default=None)

    @cached_property
    def types(self) -> int:
        """Token types of its input `token_type_ids`, 0 without one."""
        reads = inspect.signature(self.model.forward).parameters
        return int(getattr(self.model.config, "type_vocab_size", 0) or 0) if "token_type_ids" in reads else 0

    def outputs(self) -> Shapes:
        """Names and shapes of what it answers."""
        config = self.model.config
        if self.task is None:
            return {"last_hidden_state": ("batch", "sequence", int(config.hidden_size))}
        if self.task == "question-answering":
            return {"start_logits": ("batch", "sequence"), "end_logits": ("batch", "sequence")}
        labels = int(config.num_labels)
        return {"logits": ("batch", labels) if self.task == "classification" else ("batch", "sequence", labels)}

    def describe(self) -> EncoderModel:
        """The model for the exporter, with no canonical form."""
        config, named = self.model.config, self.outputs()
        return EncoderModel(
            modules=[self.model],
            answer=TransformersEncoder(self.model, list(named)).answer,
            build=None,
            outputs=named,
            rows=int(config.vocab_size),
            pad_id=int(getattr(config, "pad_token_id", None) or 0),
            max_length=self.max_length,
            tasks=("embedding", "tensor") if self.task is None else tuple(dict.fromkeys((self.task, "tensor"))),
            types=self.types,
            encoding=text_encoding(self.task, config, self.texts),
        )
