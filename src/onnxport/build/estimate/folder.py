"""A folder of Hugging Face as the model that an export takes it for, and the tensors that the bundle holds.

Names tell it, those of the class in config.json and of the tensors: transformers, which knows, takes long to import.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxport.build.estimate import weights
from onnxport.build.estimate.model import MASKED, NUMBER, POOLED, SCORES, SHARED, TABLE, TOKENS, Kind, Model
from onnxport.build.estimate.weights import Tensor
from onnxport.errors import UsageError
from onnxport.export.config_checks import named_class
from onnxport.export.sentence_transformers import has_modules, transformer_folder
from onnxport.files import MOST, read_regular

CAUSAL = ("ForCausalLM", "LMHeadModel")  # end the names of classes that write on
AT_ONCE = (MASKED, *POOLED, "ForTokenClassification", "ForQuestionAnswering")  # of those whose heads read a text once
BARE = ("EncoderModel", "ForPreTraining", "ForNextSentencePrediction", "Model")  # without a head, or with one for training
WRITES = (*TOKENS, "lm_head.weight")  # of which a decoder has one
POOLER, NEXT_SENTENCE = re.compile(r"(^|\.)pooler\."), re.compile(r"^cls\.seq_relationship\.")
EXPERT = re.compile(r"\.experts\.\d+\.")
HEADS = re.compile(  # of classes whose other names begin with no name of their own
    r"^(cls|lm_head|classifier|pre_classifier|qa_outputs|vocab_\w+|predictions|\w+_predictions|pred_layer|head|decoder)\."
)


def read(source: Any, allow_pickle: bool = False, task: str | None = None) -> Model:
    """The model of a folder.

    Raises:
        UsageError: the source is no folder of Hugging Face with plain weights, or its class is none whose files can be told.
        CheckpointError: files are missing, damaged, or pickled where that is not allowed.
    """
    whole = Path(source) if isinstance(source, str | Path) else Path()
    if not isinstance(source, str | Path) or not whole.is_dir():
        raise _refused(f"{source} is no folder")
    folder = transformer_folder(whole)
    if not (folder / "config.json").is_file() or not weights.has_weights(folder):
        raise _refused(f"{source} is no folder with config.json and {weights.SAFETENSORS} or {weights.PICKLE}")
    config = json.loads(read_regular(folder / "config.json", MOST))
    if not isinstance(config, dict) or "architecture" in config:
        raise _refused(f"{source} is no folder of Hugging Face")
    if config.get("quantization_config"):
        raise _refused(f"{source} holds weights that are quantized already")
    headers = weights.read(folder, allow_pickle)
    embeds = has_modules(whole)
    kind, name, tensors = _kind(config, headers.tensors, embeds, source), named_class(config) or "", list(headers.tensors)
    if kind == "encoder":
        head = not embeds and not (task == "embedding" and name.endswith(MASKED)) and _has_head(name, config, tensors)
        name, tensors = (name, _with_head(name, tensors)) if head else ("", _without_head(name, config, tensors))
    return Model(kind, name, config, tuple(_once(kind, config, tensors)), _held(headers), folder, whole, embeds)


def _refused(what: str) -> UsageError:
    return UsageError(f"--dry-run: {what}; it tells of folders of Hugging Face with plain weights: leave --dry-run out")


def _held(headers: weights.Headers) -> int:
    """Bytes of weights that an export holds in memory: those of pickles of old, experts that lie apart and are joined, and float64 as
    float32."""
    held = [tensor for tensor in headers.tensors if not headers.mapped or tensor.width == 8 or EXPERT.search(tensor.name)]
    return sum(min(tensor.width, 4) * tensor.numbers for tensor in held)


def _kind(config: Mapping[str, Any], tensors: Iterable[Tensor], embeds: bool, source: Any) -> Kind:
    """UsageError: the class is of none of the kinds."""
    name, both = named_class(config), bool(config.get("is_encoder_decoder"))
    if embeds:
        return "encoder"
    if name is not None and name.endswith(CAUSAL):
        return "causal"
    if both and not str(name).endswith((*AT_ONCE, "EncoderModel")):
        return "seq2seq"
    if (name is None or name.endswith((*AT_ONCE, *BARE))) and config.get("vocab_size"):
        writes = name is None or (name.endswith("Model") and config.get("tie_word_embeddings"))
        return "causal" if writes and any(tensor.name.endswith(WRITES) for tensor in tensors) else "encoder"
    raise _refused(f"{source} holds a {name!s:.80}, expected a language model, an encoder of texts or an encoder-decoder")


def _has_head(name: str, config: Mapping[str, Any], tensors: Sequence[Tensor]) -> bool:
    """Whether a class has a head, and the folder the tensors of one with a mask: many folders of embedding models have none."""
    if not name.endswith(MASKED):
        return name.endswith(AT_ONCE)
    base = _base(config, tensors)
    return bool(base) and not all(tensor.name.startswith(base) for tensor in tensors)


def _with_head(name: str, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that a class with a head reads."""
    unread = [NEXT_SENTENCE] if name.endswith(POOLED) else [NEXT_SENTENCE, POOLER]
    return [tensor for tensor in tensors if not any(one.search(tensor.name) for one in unread)]


def _without_head(name: str, config: Mapping[str, Any], tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that hidden states are made of."""
    base = _base(config, tensors)
    unread = [POOLER, re.compile(rf"^(?!{re.escape(base)})") if base else HEADS]
    if config.get("is_encoder_decoder"):
        unread.append(re.compile(r"^decoder\."))
    return [tensor for tensor in tensors if not any(one.search(tensor.name) for one in unread)]


def _base(config: Mapping[str, Any], tensors: Sequence[Tensor]) -> str:
    """The start of the names of what is no head: what has both layers and a row for each token; "" where the names have none."""
    rows = config.get("vocab_size")
    starts = dict.fromkeys(tensor.name.partition(".")[0] + "." for tensor in tensors)
    for start in starts:
        inside = [tensor for tensor in tensors if tensor.name.startswith(start)]
        table = any(len(tensor.shape) == 2 and tensor.shape[0] == rows for tensor in inside)
        if table and any(NUMBER.search(tensor.name) for tensor in inside):
            return start
    return ""


def _once(kind: Kind, config: Mapping[str, Any], tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """The tensors without the further names of a table that is tied. transformers ties all but decoders' by itself."""
    tied = config.get("tie_word_embeddings", kind != "causal")
    shared = next((tensor for tensor in tensors if tensor.name.endswith(SHARED)), None)
    sides = [tensor for tensor in tensors if tensor.name.endswith(TOKENS)]
    one = config.get("share_encoder_decoder_embeddings", True) and len({tensor.shape for tensor in sides}) == 1
    seen = shared or (sides[0] if kind != "causal" and one and sides else None)
    inputs = {tensor.shape for tensor in tensors if TABLE.search(tensor.name)}
    for tensor in tensors:
        if tied and SCORES.search(tensor.name) and tensor.shape in inputs:
            continue
        if seen is not None and tensor is not seen and tensor.name.endswith(TOKENS) and tensor.shape == seen.shape:
            continue
        yield tensor
