"""Adapters as one of the three kinds of models: those around torch's own Transformer, and those that describe themselves."""

import hashlib

from torch import Tensor

from onnxport.export.adapters import CausalLM, Encoder, Module, Seq2Seq
from onnxport.export.canonical import load_weights
from onnxport.export.canonical.graphs import Built
from onnxport.export.description import Arrays, CausalModel, EncoderModel, Seq2SeqModel
from onnxport.export.pytorch.original import OriginalEncoder, OriginalSeq2Seq
from onnxport.export.pytorch.parts import Parts, prepare
from onnxport.export.pytorch.transformer import side
from onnxport.export.source import OnnxFile, Source
from onnxport.export.weights import module_hashes


def described(found: Source) -> Seq2SeqModel | CausalModel | EncoderModel:
    """The source's model; what it is made of is checked. CheckpointError."""
    adapter = found.adapter
    assert not isinstance(adapter, Module | OnnxFile), "a module of no known kind is traced directly, a file is a graph already"
    if not isinstance(adapter, Seq2Seq | CausalLM | Encoder):
        return adapter.described()
    parts = prepare(adapter)
    plain = {"embedding_scale": parts.scale, "max_length": parts.max_length}
    found.settings |= {name: value for name, value in plain.items() if name in found.settings}
    found.hashes = found.hashes or _hashes(found, parts)
    if isinstance(adapter, Seq2Seq):
        return Seq2SeqModel(original_seq2seq(parts), lambda: seq2seq_built(parts), parts.ids, parts.max_length)
    if isinstance(adapter, CausalLM):
        return CausalModel(original_encoder(parts), lambda: causal_built(parts), parts.ids, parts.max_length)
    return _encoder_model(adapter, parts, bool(found.tokenizers))


def _encoder_model(adapter: Encoder, parts: Parts, reads_text: bool) -> EncoderModel:
    # without a head the runtime pools, for texts alone: the graph then gives every position
    pooling = adapter.pooling if parts.head is not None else None
    original, table = original_encoder(parts, pooling), parts.embedding.weight
    output = "last_hidden_state" if parts.head is None else "logits"
    width = table.shape[1] if parts.head is None else parts.head.out_features

    def answer(given: Arrays) -> Arrays:
        return {output: original.encode(given["input_ids"], given["attention_mask"])}

    def build() -> Built:
        stack = side(parts.transformer, "transformer", "embedding", table, parts.positions, parts.scale)
        head = None if parts.head is None else load_weights.HeadParts(("head", parts.head))
        return Built({"encoder": load_weights.text_encoder(stack, head, pooling)})

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
        encoding={"pooling": "cls" if adapter.pooling == "first" else "mean"},
    )


def seq2seq_built(parts: Parts) -> Built:
    """The canonical encoder and decoder of a sequence-to-sequence model."""
    transformer, source, target = parts.transformer, parts.source_embedding.weight, parts.target_embedding.weight
    path = "source_embedding" if load_weights.same_storage(target, source) else "target_embedding"
    decoder = side(transformer.decoder, "transformer.decoder", path, target, parts.positions, parts.scale)
    encoder = side(transformer.encoder, "transformer.encoder", "source_embedding", source, parts.positions, parts.scale)
    return Built(
        {"encoder": load_weights.source_encoder(encoder, decoder), "decoder": load_weights.decoder(decoder, *_head(parts, target))}
    )


def causal_built(parts: Parts) -> Built:
    """The canonical decoder of a language model."""
    table = parts.embedding.weight
    decoder = side(parts.transformer, "transformer", "embedding", table, parts.positions, parts.scale)
    return Built({"decoder": load_weights.decoder(decoder, *_head(parts, table))})


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
    return OriginalEncoder(parts.transformer, parts.embedding, parts.head, parts.positions, parts.scale, pooling)


def _hashes(found: Source, parts: Parts) -> dict[str, str]:
    tokenizers = {f"{side}_tokenizer": hashlib.sha256(data).hexdigest() for side, data in found.tokenizers.items()}
    return module_hashes(parts.modules | {"positions": parts.positions}) | tokenizers
