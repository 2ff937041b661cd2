"""The attention interface route of encoder-decoders: a class of transformers as it is, with attention of ours in its decoder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from onnxport.export import golden
from onnxport.export.attention_interface.decoder import vocabulary
from onnxport.export.attention_interface.neighbours import attends_to_neighbours
from onnxport.export.attention_interface.with_source.encoder_decoder import find_shapes, trace_decoder, trace_source_encoder
from onnxport.export.attention_interface.with_source.predict_streams import has_streams
from onnxport.export.description import Seq2SeqModel
from onnxport.export.exported import Exported
from onnxport.export.hugging_face.any_seq2seq import sparse
from onnxport.export.routes.generation import cache_sizes, generation_config
from onnxport.export.source import Source
from onnxport.progress import Progress

LONGEST = 1024  # tokens of the long golden source: code that cuts or pads long texts shows itself there


def export_traced_seq2seq(source: Source, model: Seq2SeqModel, task: str, opset: int, progress: Progress) -> Exported:
    """Graphs `encoder` and `decoder` of an encoder-decoder.

    CheckpointError: its decoder's attention does not come through the attention interface, or torch cannot trace it.
    """
    (original,) = model.original.modules
    shapes = find_shapes(original)
    goldens = golden.seq2seq_goldens(model.original, model.ids, model.max_length, model.max_source_length, LONGEST, source)
    progress("tracing the encoder")
    graphs = {"encoder": trace_source_encoder(original, shapes, opset)}
    progress("tracing the decoder")
    graphs["decoder"] = trace_decoder(original, shapes, opset)
    return Exported(
        name=source.name,
        task=task,
        family=source.family,
        route="attention-interface",
        opset=opset,
        graphs=graphs,
        goldens=goldens,
        generation=generation_config(
            model,
            vocab_size=vocabulary(original),
            source_vocab_size=model.original.source_rows,
            max_source_length=None if model.max_source_length == model.max_length else model.max_source_length,
            **cache_sizes(shapes.own),
        ),
        tokenizers=source.tokenizers,
        source_hashes=source.hashes,
        expected={"decoder": {"group_query_attention": len(shapes.own)}},
        settings=source.settings | {"class": type(original).__name__},
        notes=tuple(_notes(original, model)),
    )


def _notes(original: Any, model: Seq2SeqModel) -> Iterator[str]:
    """What bounds what the model's own configuration does not, and what is assumed."""
    longest = getattr(original.config, "max_position_embeddings", None)
    if isinstance(longest, int) and model.max_source_length is not None and model.max_source_length < longest and sparse(original):
        yield f"sources are bounded to {model.max_source_length} of {longest} tokens: beyond, the class reads some blocks of them only"
    if attends_to_neighbours(original):
        yield "no token attends to all of a source: that is what the class does without a global_attention_mask"
    if has_streams(original.get_decoder()):
        yield "answers are those of generate(), one token a time: over a whole text the class gives other logits"
