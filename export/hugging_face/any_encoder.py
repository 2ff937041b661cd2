"""Encoders of texts in transformers that are none of the families: the class's own code is traced, as it is."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from onnxport.errors import CheckpointError
from onnxport.export.config_checks import named_class
from onnxport.export.deferred import weight_shape
from onnxport.export.description import Arrays, EncoderModel
from onnxport.export.hugging_face.config_keys import architecture_problems
from onnxport.export.hugging_face.encoder import CHOICE, FILL, OPTIONAL_TENSORS, POOLER, text_encoding
from onnxport.export.hugging_face.family import Decoding
from onnxport.export.hugging_face.original import OneChoice, RowByRow, TokenHead, TransformersEncoder
from onnxport.export.sentence_transformers import TextSettings
from onnxport.export.trace.tracer import Shapes
from onnxport.export.transformers_library import import_transformers, quiet, refusing

# transformers' tables of classes → what a class of it is for; None: hidden states, its head is for training
TABLES = {
    "MODEL_MAPPING_NAMES": None,
    "MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES": None,
    "MODEL_FOR_PRETRAINING_MAPPING_NAMES": None,
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES": FILL,
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES": "classification",
    "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES": "question-answering",
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES": "token-classification",
    "MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES": CHOICE,
}
DECODERS = {"MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": None}
MASKED = "MODEL_FOR_MASKED_LM_MAPPING_NAMES"
GENERATING = "ForConditionalGeneration"  # the end of encoder-decoders' classes, of which some stand among those with a mask
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
    from transformers.models.auto import configuration_auto

    def refuse(what: str) -> CheckpointError:
        return CheckpointError(f"{where} has the model_type {model_type!r:.60}, {what}; known for now: {known}")

    transformers = import_transformers()
    if model_type not in vars(configuration_auto)["CONFIG_MAPPING_NAMES"]:
        raise refuse(f"which transformers {transformers.__version__} does not know")
    classes = _classes(model_type)
    classes |= {name: None for name in _names(model_type, *DECODERS) if embeds}
    model_config = _config(model_type, config, where)
    hidden = embeds or _headless(model_type, config, model_config)
    base = _base(model_type)
    if base is None:
        raise refuse("of which transformers has no encoder")
    cls = getattr(transformers, base)
    for key in ("vocab_size", "hidden_size"):
        if not isinstance(getattr(model_config, key, None), int):
            raise refuse(f"whose configuration has no {key} of its own")
    if (what := _kind_refused(model_type, config, model_config, base, classes, hidden)) is not None:
        raise refuse(what)
    reads = inspect.signature(cls.forward).parameters
    if lacking := [name for name in READS if name not in reads]:
        raise refuse(f"whose {base} reads {cls.main_input_name} and no {' and no '.join(lacking)}")
    return OtherEncoder(model_type, base, classes, cls.base_model_prefix)


def answers_at_once(model_type: str, config: Mapping[str, Any], where: Path) -> bool:
    """Whether a folder's class reads a text once and answers, though its type may also generate. CheckpointError: a config is refused."""
    named, masked = _named(config), [name for name in _names(model_type, MASKED) if not name.endswith(GENERATING)]
    if named in _names(model_type, *DECODERS) or str(named).endswith(GENERATING):
        return False
    task = _classes(model_type).get(str(named))
    if task is not None or str(named).endswith("EncoderModel"):
        return True
    if masked and not config.get("is_decoder"):
        return True
    causal = bool(_names(model_type, *DECODERS)) and not masked
    return causal and _headless(model_type, config, _config(model_type, config, where))


def _named(config: Mapping[str, Any]) -> Any:
    return named_class(config)


def _names(model_type: str, *tables: str) -> list[str]:
    """The classes of a type in tables of transformers."""
    from transformers.models.auto import modeling_auto

    found = [getattr(modeling_auto, table).get(model_type) for table in tables]
    return [name for entry in found for name in ([entry] if isinstance(entry, str) else entry or [])]


def _classes(model_type: str) -> dict[str, str | None]:
    """The classes of a type that read a text once, with what they are for, None for hidden states."""
    return {name: task for table, task in TABLES.items() for name in _names(model_type, table) if not name.endswith(GENERATING)}


def _config(model_type: str, config: Mapping[str, Any], where: Path) -> Any:
    """transformers' own configuration. CheckpointError."""
    transformers = import_transformers()
    with quiet(), refusing(where.parent):
        return transformers.AutoConfig.for_model(model_type).from_dict(dict(config))


def _base(model_type: str) -> str | None:
    """The class that gives hidden states of texts: of an encoder-decoder its encoder alone, where transformers has a class for that."""
    encoders = [name for name in _names(model_type, "MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES") if name.endswith("EncoderModel")]
    found = encoders or _names(model_type, "MODEL_MAPPING_NAMES")
    return found[0] if found else None


def _headless(model_type: str, config: Mapping[str, Any], model_config: Any) -> bool:
    """Whether a folder is of a language model without a head, and none is tied to its table of tokens: it can only give hidden states."""
    return _named(config) in _names(model_type, "MODEL_MAPPING_NAMES") and not getattr(model_config, "tie_word_embeddings", False)


def _kind_refused(
    model_type: str, config: Mapping[str, Any], model_config: Any, base: str, classes: Mapping[str, str | None], hidden: bool
) -> str | None:
    """What a model is that is no encoder of texts, and has no head that answers at once; None where it is one. hidden: of a decoder too."""
    if classes.get(str(_named(config))) is not None:
        return None
    if model_config.is_encoder_decoder:
        return None if base.endswith("EncoderModel") and (hidden or _named(config) == base) else "an encoder-decoder"
    masked, causal = _names(model_type, MASKED), _names(model_type, *DECODERS)
    return "a decoder" if not hidden and ((causal and not masked) or getattr(model_config, "is_decoder", False)) else None


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
        named = named_class(config)
        return named if isinstance(named, str) and self.classes.get(named) is not None else self.base

    def optional_tensors(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of tensors that may be there or not: of hidden states, whatever is of a head."""
        if self.class_name(config) != self.base:
            return OPTIONAL_TENSORS if self.classes[self.class_name(config)] in ("classification", CHOICE) else (*OPTIONAL_TENSORS, POOLER)
        from transformers.initialization import no_init_weights

        cls = getattr(import_transformers(), self.base)
        with quiet(), torch.device("meta"), no_init_weights():
            shell = cls(cls.config_class.from_dict(dict(config)))
        parts = "|".join(re.escape(name) for name, _ in [*shell.named_children(), *shell.named_parameters(recurse=False)])
        return (*OPTIONAL_TENSORS, POOLER, rf"^(?!{re.escape(self.prefix)}|({parts})(\.|$)).*")

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
            if not re.search(r"(^|[._])(position_embeddings|embed_positions)$", name):
                continue
            shape = weight_shape(module)  # of nn.Embedding, or of a class's own kind
            if len(shape) == 2:
                padding = getattr(module, "padding_idx", None)
                bounds.append(shape[0] - (0 if padding is None else padding + 1))
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
        labels = {FILL: int(config.vocab_size), CHOICE: 1}.get(self.task, int(config.num_labels))
        return {"logits": ("batch", labels) if self.task in ("classification", CHOICE) else ("batch", "sequence", labels)}

    def for_task(self, task: str | None) -> TracedEncoder:
        """The same without its head, where only hidden states can do the task."""
        return replace(self, model=self.model.base_model, task=None) if task == "embedding" and self.task == FILL else self

    @property
    def end_id(self) -> int | None:
        """The id whose last place in a text the head of an encoder-decoder reads."""
        config = self.model.config
        return int(config.eos_token_id) if self.task == "classification" and config.is_encoder_decoder else None

    def describe(self) -> EncoderModel:
        """The model for the exporter, with no canonical form."""
        config, named = self.model.config, self.outputs()
        module, answer = self._original(list(named))
        return EncoderModel(
            modules=[module],
            answer=answer,
            build=None,
            outputs=named,
            rows=int(config.vocab_size),
            pad_id=int(getattr(config, "pad_token_id", None) or 0),
            max_length=self.max_length,
            tasks=("embedding", "tensor") if self.task is None else tuple(dict.fromkeys((self.task, "tensor"))),
            types=self.types,
            encoding=text_encoding(self.task, config, self.texts),
            end_id=self.end_id,
            layers=self.texts.arrays if self.task is None else (),
        )

    def _original(self, named: list[str]) -> tuple[nn.Module, Callable[[Arrays], Arrays]]:
        """What is traced, and the class's own answers."""
        unpadded = hasattr(self.model, "score") and self.model.config.get_text_config().pad_token_id is None
        if self.task == "classification" and (self.end_id is not None or unpadded):
            return TokenHead(self.model, self.end_id), RowByRow(self.model, named).answer
        module = OneChoice(self.model) if self.task == CHOICE else self.model
        return module, TransformersEncoder(module, named).answer
