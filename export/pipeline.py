"""From what the user named to standard graphs with golden answers."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onnxport.errors import UsageError
from onnxport.export import golden
from onnxport.export.adapters import Adapter, CausalLM, Encoder, Module, Seq2Seq
from onnxport.export.agreement import agree, cases, check_causal, check_seq2seq
from onnxport.export.canonical import Built, expected_fusions, trace_decoder, trace_source_encoder, trace_text_encoder
from onnxport.export.families import loading
from onnxport.export.families.hugging_face import HuggingFace
from onnxport.export.families.pytorch_weights import side
from onnxport.export.guard import evaluating
from onnxport.export.original import OriginalEncoder, OriginalSeq2Seq, Seq2SeqOriginal
from onnxport.export.prepare import Parts, prepare
from onnxport.export.result import Exported
from onnxport.export.source import Source, resolve
from onnxport.export.trace import check_opset

Progress = Callable[[str], None]
TASKS = {
    Seq2Seq: ("text2text", "translation", "summarization"),
    CausalLM: ("text-generation",),
    Encoder: ("embedding", "classification", "tensor"),
    Module: ("tensor",),
    HuggingFace: ("text2text", "translation", "summarization"),
}


@dataclass(frozen=True)
class Seq2SeqModel:
    """What an export needs of any encoder-decoder. `ids` and `extras` go into the bundle's generation settings."""

    original: Seq2SeqOriginal
    build: Callable[[], Built]
    ids: dict[str, Any]
    max_length: int | None
    extras: dict[str, Any] = field(default_factory=dict)


def export(
    source: str | Path | Adapter | tuple[Any, Any],
    task: str | None = None,
    opset: int | None = None,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Standard graphs and golden answers of a folder, a `package.module:factory`, an adapter, or `(module, example inputs)`.

    Errors: UsageError (task, opset), CheckpointError (the source was refused), ParityError (canonical model and user's class disagree).
    """
    opset = check_opset(opset)
    say = progress or (lambda message: None)
    say("reading the source")
    found = resolve(source, allow_pickle)
    adapter = found.adapter
    chosen = choose_task(adapter, task or found.task, found)
    if isinstance(adapter, Module):
        from onnxport.export.direct import export_module

        return export_module(found, adapter, chosen, opset, say)
    if isinstance(adapter, HuggingFace):
        model = Seq2SeqModel(adapter.original(), adapter.built, adapter.ids, adapter.max_length, adapter.generation)
        with evaluating(*model.original.modules):
            return _seq2seq(found, model, found.hashes, chosen, opset, say)
    parts = prepare(adapter)
    plain = {"embedding_scale": parts.scale, "max_length": parts.max_length}
    found.settings |= {name: value for name, value in plain.items() if name in found.settings}
    modules = [module for module in parts.modules.values() if module is not None]
    with evaluating(*modules):
        if isinstance(adapter, Seq2Seq):
            model = Seq2SeqModel(original_seq2seq(parts), lambda: seq2seq_built(parts), parts.ids, parts.max_length)
            return _seq2seq(found, model, _hashes(found, parts), chosen, opset, say)
        say("asking the original for golden answers")
        if isinstance(adapter, CausalLM):
            return _causal(found, parts, chosen, opset, say)
        return _encoder(found, adapter, parts, chosen, opset, say)


def choose_task(adapter: Adapter | HuggingFace, task: str | None, found: Source) -> str:
    """The asked task where this kind of model can do it, else its usual one."""
    possible = list(TASKS[type(adapter)])
    if isinstance(adapter, Encoder):
        labels = adapter.head is not None and adapter.pooling is not None
        possible = ["tensor", *(["classification"] if labels else ["embedding"] if adapter.head is None else [])]
        if found.tokenizers and adapter.head is None:
            possible.reverse()
    if task is None:
        return possible[0]
    if task not in possible:
        raise UsageError(f"task {task} is not possible for this {type(adapter).__name__}; possible: {', '.join(possible)}")
    return task


def _seq2seq(found: Source, model: Seq2SeqModel, hashes: dict[str, str], task: str, opset: int, say: Progress) -> Exported:
    say("asking the original for golden answers")
    goldens = golden.seq2seq_goldens(model.original, model.ids, model.max_length)
    say("checking the canonical model against the original")
    built = model.build()
    check_seq2seq(built, goldens)
    say("tracing the encoder")
    graphs = {"encoder": trace_source_encoder(built, opset)}
    say("tracing the decoder")
    graphs["decoder"] = trace_decoder(built, opset)
    generation = _generation("seq2seq", built, model.ids, model.max_length) | model.extras
    generation["source_vocab_size"] = model.original.source_rows
    return _exported(found, hashes, task, opset, graphs, goldens, generation, expected_fusions(built))


def seq2seq_built(parts: Parts) -> Built:
    """The canonical encoder and decoder of a sequence-to-sequence model."""
    transformer, source, target = parts.transformer, parts.source_embedding.weight, parts.target_embedding.weight
    path = "source_embedding" if loading.same_storage(target, source) else "target_embedding"
    decoder = side(transformer.decoder, "transformer.decoder", path, target, parts.positions, parts.scale)
    encoder = side(transformer.encoder, "transformer.encoder", "source_embedding", source, parts.positions, parts.scale)
    return Built({"encoder": loading.source_encoder(encoder, decoder), "decoder": loading.decoder(decoder, *_head(parts, target))})


def _head(parts: Parts, table: Tensor) -> tuple[loading.Named, loading.Named | None]:
    """Names and values of the head's weight, which is `table` where there is no head, and of its bias."""
    head = parts.head
    bias = None if head is None or head.bias is None else ("head.bias", head.bias)
    return ("head.weight", table if head is None else head.weight), bias


def _causal(found: Source, parts: Parts, task: str, opset: int, say: Progress) -> Exported:
    goldens = golden.causal_goldens(original_encoder(parts), parts.ids, parts.max_length)
    say("checking the canonical model against the original")
    built = causal_built(parts)
    check_causal(built, goldens)
    say("tracing the decoder")
    graphs = {"decoder": trace_decoder(built, opset)}
    generation = _generation("causal", built, parts.ids, parts.max_length)
    return _exported(found, _hashes(found, parts), task, opset, graphs, goldens, generation, expected_fusions(built))


def causal_built(parts: Parts) -> Built:
    """The canonical decoder of a language model."""
    table = parts.embedding.weight
    decoder = side(parts.transformer, "transformer", "embedding", table, parts.positions, parts.scale)
    return Built({"decoder": loading.decoder(decoder, *_head(parts, table))})


def _encoder(found: Source, adapter: Encoder, parts: Parts, task: str, opset: int, say: Progress) -> Exported:
    # without a head the runtime pools, for texts alone: the graph then gives every position
    pooling = adapter.pooling if parts.head is not None else None
    output = "last_hidden_state" if parts.head is None else "logits"
    goldens = golden.encoder_goldens(original_encoder(parts, pooling), parts.ids["pad_id"], parts.max_length, output)
    table = parts.embedding.weight
    stack = side(parts.transformer, "transformer", "embedding", table, parts.positions, parts.scale)
    encoder = loading.text_encoder(stack, parts.head, pooling)
    say("checking the canonical model against the original")
    for case in cases(goldens, "case"):
        ids, mask = (torch.from_numpy(goldens[f"{case}/in/{name}"]) for name in ("input_ids", "attention_mask"))
        agree(torch.from_numpy(goldens[f"{case}/out/{output}"]), encoder.module(ids, mask), output)
    say("tracing the encoder")
    width = encoder.stack.hidden if parts.head is None else parts.head.out_features
    shape = ("batch", width) if pooling else ("batch", "sequence", width)
    graphs = {"encoder": trace_text_encoder(encoder, output, shape, opset)}
    how = "cls" if adapter.pooling == "first" else "mean"
    found.settings["encoding"] = {"max_length": parts.max_length, "vocab_size": table.shape[0], "pooling": how, **parts.ids}
    expected = expected_fusions(Built({"encoder": encoder}))
    return _exported(found, _hashes(found, parts), task, opset, graphs, goldens, None, expected)


def original_seq2seq(parts: Parts) -> OriginalSeq2Seq:
    """The user's class behind functions of ids."""
    return OriginalSeq2Seq(parts.transformer, parts.source_embedding, parts.target_embedding, parts.head, parts.positions, parts.scale)


def original_encoder(parts: Parts, pooling: str | None = None) -> OriginalEncoder:
    """The user's class behind functions of ids; `pooling` before the head, None for every position."""
    return OriginalEncoder(parts.transformer, parts.embedding, parts.head, parts.positions, parts.scale, pooling)


def _generation(kind: str, built: Built, ids: dict[str, Any], max_length: int | None) -> dict[str, Any]:
    heads, size = built.head()
    decoder = built.graphs["decoder"]
    return {
        "kind": kind,
        "layers": len(decoder.stack.layers),
        "kv_heads": heads,
        "head_size": size,
        "vocab_size": decoder.module.vocabulary,
        "max_length": max_length,
        **ids,
    }


def _exported(
    found: Source,
    hashes: dict[str, str],
    task: str,
    opset: int,
    graphs: Any,
    goldens: dict[str, np.ndarray],
    generation: Any,
    expected: Any,
) -> Exported:
    return Exported(
        name=found.name,
        task=task,
        family=found.family,
        route="canonical",
        opset=opset,
        graphs=graphs,
        goldens=goldens,
        generation=generation,
        tokenizers=found.tokenizers,
        source_hashes=hashes,
        expected=expected,
        settings=found.settings,
    )


def _hashes(found: Source, parts: Parts) -> dict[str, str]:
    if found.hashes:
        return found.hashes
    tokenizers = {f"{side}_tokenizer": hashlib.sha256(data).hexdigest() for side, data in found.tokenizers.items()}
    return module_hashes(parts.modules | {"positions": parts.positions}) | tokenizers


def module_hashes(modules: dict[str, Any]) -> dict[str, str]:
    """sha256 of each module's class and state, name by name."""
    result = {}
    for name, module in modules.items():
        if module is None:
            continue
        digest = hashlib.sha256(type(module).__qualname__.encode())
        state = {"": module} if isinstance(module, Tensor) else module.state_dict()
        for key, value in sorted(state.items()):
            if isinstance(value, Tensor):
                digest.update(f"{key} {value.dtype} {list(value.shape)}".encode())
                digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        result[name] = digest.hexdigest()
    return result
