"""Descriptions of adapters: those around torch's own Transformer are described here, all others describe themselves."""

import hashlib
from dataclasses import replace

from torch import Tensor

from onnxport.export.adapters import CausalLM, Encoder, Module, Seq2Seq
from onnxport.export.canonical import load_weights
from onnxport.export.canonical.graphs import CanonicalModel
from onnxport.export.description import Arrays, CausalModel, EncoderModel, Model, Seq2SeqModel
from onnxport.export.pytorch.original import OriginalEncoder, OriginalSeq2Seq
from onnxport.export.pytorch.parts import Parts, prepare
from onnxport.export.pytorch.transformer import stack_weights
from onnxport.export.source import OnnxFile, Source
from onnxport.export.weights import module_hashes
from onnxport.runtime.bundle.manifest import EncodingConfig


def describe(source: Source, hashed: bool = True) -> tuple[Source, Model]:
    """The source with checked settings, and its model. CheckpointError: the adapter's parts are not what a model needs.

    hashed: the source gets hashes of the adapter's parts where it has none.
    """
    adapter = source.adapter
    assert not isinstance(adapter, Module | OnnxFile), "a module of no known kind is traced directly, a file is a graph already"
    if not isinstance(adapter, Seq2Seq | CausalLM | Encoder):
        return source, adapter.describe()
    parts = prepare(adapter)
    checked = {"embedding_scale": parts.scale, "max_length": parts.max_length}
    settings = source.settings | {name: value for name, value in checked.items() if name in source.settings}
    hashes = source.hashes or (_hashes(source, parts) if hashed else {})
    return replace(source, settings=settings, hashes=hashes), _model(adapter, parts, bool(source.tokenizers))


def _model(adapter: Seq2Seq | CausalLM | Encoder, parts: Parts, reads_text: bool) -> Model:
    if isinstance(adapter, Seq2Seq):
        return Seq2SeqModel(original_seq2seq(parts), lambda: build_seq2seq(parts), parts.ids, parts.max_length)
    if isinstance(adapter, CausalLM):
        return CausalModel(original_encoder(parts), lambda: build_causal(parts), parts.ids, parts.max_length)
    return _encoder_model(adapter, parts, reads_text)


def _encoder_model(adapter: Encoder, parts: Parts, reads_text: bool) -> EncoderModel:
    # without a head the runtime pools, for texts alone: the graph then gives every position
    pooling = adapter.pooling if parts.head is not None else None
    original, table = original_encoder(parts, pooling), parts.source_embedding.weight
    output = "last_hidden_state" if parts.head is None else "logits"
    width = table.shape[1] if parts.head is None else parts.head.out_features

    def answer(inputs: Arrays) -> Arrays:
        return {output: original.encode(inputs["input_ids"], inputs["attention_mask"])}

    def build() -> CanonicalModel:
        stack = stack_weights(parts.transformer, "transformer", "embedding", table, parts.positions, parts.scale)
        head = None if parts.head is None else load_weights.HeadParts(("head", parts.head))
        return CanonicalModel({"encoder": load_weights.text_encoder(stack, head, pooling)})

    tasks = ("tensor", "embedding") if parts.head is None else ("tensor", "classification") if pooling else ("tensor",)
    return EncoderModel(
        modules=original.modules,
        answer=answer,
        build=build,
        outputs={output: ("batch", width) if pooling else ("batch", "sequence", width)},
        rows=len(table),
        pad_id=parts.ids["pad_id"],
        max_length=parts.max_length,
        tasks=tasks[::-1] if reads_text and parts.head is None else tasks,
        encoding=EncodingConfig(pooling="cls" if adapter.pooling == "first" else "mean"),
    )


def build_seq2seq(parts: Parts) -> CanonicalModel:
    """The canonical encoder and decoder of a sequence-to-sequence model."""
    transformer, source, target = parts.transformer, parts.source_embedding.weight, parts.target_embedding.weight
    path = "source_embedding" if load_weights.same_storage(target, source) else "target_embedding"
    decoder = stack_weights(transformer.decoder, "transformer.decoder", path, target, parts.positions, parts.scale)
    encoder = stack_weights(transformer.encoder, "transformer.encoder", "source_embedding", source, parts.positions, parts.scale)
    return CanonicalModel(
        {"encoder": load_weights.source_encoder(encoder, decoder), "decoder": load_weights.decoder(decoder, *_head(parts, target))}
    )


def build_causal(parts: Parts) -> CanonicalModel:
    """The canonical decoder of a language model."""
    table = parts.source_embedding.weight
    decoder = stack_weights(parts.transformer, "transformer", "embedding", table, parts.positions, parts.scale)
    return CanonicalModel({"decoder": load_weights.decoder(decoder, *_head(parts, table))})


def _head(parts: Parts, table: Tensor) -> tuple[load_weights.Named, load_weights.Named | None]:
    """Names and values of the head's weight, which is `table` where there is no head, and of its bias."""
    head = parts.head
    bias = None if head is None or head.bias is None else ("head.bias", head.bias)
    return ("head.weight", table if head is None else head.weight), bias


def original_seq2seq(parts: Parts) -> OriginalSeq2Seq:
    """The user's class behind functions of ids."""
    return OriginalSeq2Seq(parts.transformer, parts.source_embedding, parts.target_embedding, parts.head, parts.positions, parts.scale)


def original_encoder(parts: Parts, pooling: str | None = None) -> OriginalEncoder:
    """The user's class behind functions of ids; `pooling` before the head, None for every position."""
    return OriginalEncoder(parts.transformer, parts.source_embedding, parts.head, parts.positions, parts.scale, pooling)


def _hashes(source: Source, parts: Parts) -> dict[str, str]:
    """sha256 of the parts, by the adapter's names, and of the tokenizers."""
    if isinstance(source.adapter, Seq2Seq):
        tables = {"source_embedding": parts.source_embedding, "target_embedding": parts.target_embedding}
    else:
        tables = {"embedding": parts.source_embedding}
    modules = module_hashes({"transformer": parts.transformer, **tables, "head": parts.head, "positions": parts.positions})
    return modules | {f"{side}_tokenizer": hashlib.sha256(data).hexdigest() for side, data in source.tokenizers.items()}
