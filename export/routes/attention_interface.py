"""The attention interface route: a class of transformers as it is, with cached attention of ours in the place of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from onnxport.export import golden
from onnxport.export.attention_interface.decoder import trace_decoder, vocabulary
from onnxport.export.attention_interface.ways import find_way
from onnxport.export.description import CausalModel
from onnxport.export.exported import Exported
from onnxport.export.routes.generation import cache_sizes, generation_config
from onnxport.export.source import Source
from onnxport.progress import Progress


def export_traced_causal(source: Source, model: CausalModel, task: str, opset: int, progress: Progress) -> Exported:
    """Graph `decoder` of a language model. CheckpointError: its class does not go through the attention interface, or cannot be traced."""
    (original,) = model.original.modules
    way, notes = find_way(original, model.max_length), tuple(_notes(original, model))
    if model.max_length is not None:
        model = replace(model, max_length=model.max_length - way.first)
    goldens = golden.causal_goldens(model.original, model.ids, model.max_length, source)
    progress("tracing the decoder")
    graph = trace_decoder(original, way, opset)
    return Exported(
        name=source.name,
        task=task,
        family=source.family,
        route="attention-interface",
        opset=opset,
        graphs={"decoder": graph},
        goldens=goldens,
        generation=generation_config(model, vocab_size=vocabulary(original), **cache_sizes(way.shapes)),
        tokenizers=source.tokenizers,
        source_hashes=source.hashes,
        expected={"decoder": {"group_query_attention": len(way.shapes)}},
        settings=source.settings | {"class": type(original).__name__},
        chat=source.chat,
        notes=notes,
    )


def _notes(original: Any, model: CausalModel) -> Iterator[str]:
    """What bounds what the model's own configuration does not."""
    longest = getattr(original.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(longest, int) and model.max_length is not None and model.max_length < longest:
        yield f"texts are bounded to {model.max_length} of {longest} tokens: beyond, its rotary positions change with the length of a text"
