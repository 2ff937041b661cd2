"""Encoder-decoders in transformers that are none of the families: the class's own code is traced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from onnxport.errors import CheckpointError
from onnxport.export.attention_interface.positions import NUMBERED
from onnxport.export.attention_interface.with_source.predict_streams import has_streams
from onnxport.export.description import Seq2SeqModel
from onnxport.export.hugging_face.any_decoder import is_decoder_alone
from onnxport.export.hugging_face.config_keys import architecture_problems
from onnxport.export.hugging_face.family import Decoding
from onnxport.export.hugging_face.original import SteppedSeq2Seq, TransformersSeq2Seq
from onnxport.export.hugging_face.other_family import COUNTS, LENGTHS, OtherFamily, code_problems, depth_problems
from onnxport.export.sentence_transformers import TextSettings
from onnxport.export.transformers_library import import_transformers, quiet, refusing

TABLE = "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES"
PARTS = ("encoder", "decoder", "text_config")  # configurations inside of one
DEPTHS = (*COUNTS, "encoder_layers", "decoder_layers", "num_decoder_layers", "num_encoder_layers")
SOURCE_LENGTHS, TARGET_LENGTHS = ("max_encoder_position_embeddings",), ("max_decoder_position_embeddings",)
TRANSLATES = ("m2m_100", "nllb-moe", "seamless_m4t", "seamless_m4t_v2")  # types whose models are all for that


def other_seq2seq(model_type: str, config: Mapping[str, Any], where: Path) -> OtherSeq2Seq | None:
    """The family of an encoder-decoder of transformers; None where the type has none, or its decoder alone is named.

    CheckpointError: transformers refuses the config.
    """
    from transformers.models.auto import modeling_auto

    found = getattr(modeling_auto, TABLE).get(model_type)
    if found is None or is_decoder_alone(model_type, config):
        return None
    transformers = import_transformers()
    with quiet(), refusing(where.parent):
        cls = getattr(transformers, found)
        cls.config_class.from_dict(dict(config))
    names = (found, str(modeling_auto.MODEL_MAPPING_NAMES.get(model_type, found)))
    return OtherSeq2Seq(model_type, found, tuple(dict.fromkeys(names)), cls.base_model_prefix)


@dataclass(frozen=True)
class OtherSeq2Seq(OtherFamily):
    """Encoder-decoders. classes: the one that generates, and that without a head."""

    kind: Literal["seq2seq"] = "seq2seq"

    def problems(self, config: Mapping[str, Any]) -> list[str]:
        """What the class alone would not do; all else in a config.json is between it and transformers."""
        deep = [problem for name, part in _parts(config) for problem in depth_problems(part, DEPTHS, name)]
        return code_problems(config) + deep + architecture_problems(config, self.classes)

    def task(self, config: Mapping[str, Any]) -> str | None:
        """translation or summarization where the type or the settings of tasks say so, else text2text."""
        tasks = config.get("task_specific_params")
        named = [str(name) for name in tasks] if isinstance(tasks, dict) else []
        if self.model_type in TRANSLATES or any(name.startswith("translation") for name in named):
            return "translation"
        return "summarization" if any(name.startswith("summarization") for name in named) else "text2text"

    def vocabularies(self, config: Any) -> dict[str, int]:
        """Rows of the tables of source and target."""
        source, target = _sides(config)
        return {"source": source.vocab_size, "target": target.vocab_size}

    def adapter(self, model: Any, folder: Path, decoding: Decoding | None, texts: TextSettings) -> TracedSeq2Seq:
        """The loaded model with what its decoding needs."""
        assert decoding is not None, "an encoder-decoder is decoded"
        return TracedSeq2Seq(model, decoding.ids, decoding.search)


def _parts(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The configuration and those inside of it, with what stands before the names of their keys."""
    yield "", config
    for name in PARTS:
        if isinstance(part := config.get(name), Mapping):
            yield f"{name}.", part


def _sides(config: Any) -> tuple[Any, Any]:
    """Configurations of encoder and decoder; of one that serves both, it itself."""
    source, target = (getattr(config, name, None) for name in ("encoder", "decoder"))
    source, target = (part if hasattr(part, "vocab_size") or hasattr(part, "text_config") else config for part in (source, target))
    return tuple(getattr(part, "text_config", part) for part in (source, target))  # type: ignore[return-value]


@dataclass(eq=False)
class TracedSeq2Seq:
    """A loaded encoder-decoder, whatever is inside, with what its decoding needs."""

    model: Any
    ids: dict[str, Any]
    generation: dict[str, Any]

    @property
    def max_length(self) -> int | None:
        """Positions of a target; None where nothing bounds them."""
        decoder = self.model.get_decoder()
        bound = _bound(_sides(self.model.config)[1], decoder, TARGET_LENGTHS)
        if bound is None or not has_streams(decoder):
            return bound
        return bound - 2  # the first row of the table is of padding, and predictions lie one position ahead

    @property
    def max_source_length(self) -> int | None:
        """Positions of a source; None where nothing bounds them."""
        bound = _bound(_sides(self.model.config)[0], self.model.get_encoder(), SOURCE_LENGTHS)
        blocks = sparse(self.model)
        return bound if blocks is None else min(blocks, bound or blocks)

    def describe(self) -> Seq2SeqModel:
        """The model for the exporter."""
        try:
            decoder = self.model.get_decoder()
            original = (SteppedSeq2Seq if has_streams(decoder) else TransformersSeq2Seq)(self.model, self.ids)
        except Exception as error:  # a class of speech, or what it likes
            name = type(self.model).__name__
            raise CheckpointError(f"{name} has no encoder, table of tokens and head that can be found; use Module(...)") from error
        padding = decoder.position_embeddings.padding_idx if has_streams(decoder) else 0
        if padding != 0:
            name = type(self.model).__name__
            raise CheckpointError(f"pad_token_id is {padding}, expected 0: with any other {name} cannot go on from its own cache")
        return Seq2SeqModel(original, None, self.ids, self.max_length, self.generation, self.max_source_length)


def sparse(model: Any) -> int | None:
    """Tokens up to which BigBird's encoder attends to all of a source, and beyond which to some blocks; None for others."""
    config = model.config
    if getattr(config, "attention_type", None) != "block_sparse":
        return None
    return int((5 + 2 * config.num_random_blocks) * config.block_size)  # as its forward decides it


def _bound(config: Any, part: Any, own: tuple[str, ...]) -> int | None:
    """The positions that one side has. T5's distances have no bound: its n_positions are those of the training."""
    if any(hasattr(module, "relative_attention_bias") for module in part.modules()):
        return None
    found = next((value for name in (*own, *LENGTHS) if isinstance(value := getattr(config, name, None), int)), None)
    if found is None or found <= 0:
        return None
    table = next((module for module in part.modules() if hasattr(module, NUMBERED)), None)
    rows = getattr(getattr(table, "position_embeddings", None), "num_embeddings", None)
    return min(found, rows - table.padding_idx - 1) if rows is not None and table is not None else found
