"""From what the user named to standard graphs with golden answers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from onnxport.export import golden
from onnxport.export.canonical.graphs import (
    Built,
    agree,
    cases,
    check_causal,
    check_seq2seq,
    expected_fusions,
    trace_decoder,
    trace_source_encoder,
    trace_text_encoder,
)
from onnxport.export.description import CausalModel, EncoderModel, Seq2SeqModel
from onnxport.export.exported import Exported, Progress
from onnxport.export.source import Source
from onnxport.export.weights import release


def _seq2seq(found: Source, model: Seq2SeqModel, task: str, opset: int, say: Progress) -> Exported:
    goldens = golden.seq2seq_goldens(model.original, model.ids, model.max_length)
    say("checking the canonical model against the original")
    built = model.build()
    check_seq2seq(built, goldens)
    rows = model.original.source_rows
    _release(found, model.original.modules, built)
    say("tracing the encoder")
    graphs = {"encoder": trace_source_encoder(built, opset)}
    say("tracing the decoder")
    graphs["decoder"] = trace_decoder(built, opset)
    generation = _generation("seq2seq", built, model) | {"source_vocab_size": rows}
    return _exported(found, task, opset, graphs, goldens, generation, built)


def _causal(found: Source, model: CausalModel, task: str, opset: int, say: Progress) -> Exported:
    goldens = golden.causal_goldens(model.original, model.ids, model.max_length)
    say("checking the canonical model against the original")
    built = model.build()
    check_causal(built, goldens)
    _release(found, model.original.modules, built)
    say("tracing the decoder")
    graphs = {"decoder": trace_decoder(built, opset)}
    generation = _generation("causal", built, model) | {"window": built.window()}
    return _exported(found, task, opset, graphs, goldens, generation, built)


def _encoder(found: Source, model: EncoderModel, task: str, opset: int, say: Progress) -> Exported:
    assert model.build is not None, "what has no canonical form is traced directly"
    goldens = golden.encoder_goldens(model, found.tokenizers.get("source"))
    say("checking the canonical model against the original")
    built = model.build()
    encoder = built.graphs["encoder"]
    for case in cases(goldens, "case"):
        names = [name.split("/")[-1] for name in goldens if name.startswith(f"{case}/in/")]
        results = encoder.module(*(torch.from_numpy(goldens[f"{case}/in/{name}"]) for name in names))
        results = results if isinstance(results, tuple) else (results,)
        for output, result in zip(model.outputs, results, strict=True):
            answers = torch.from_numpy(goldens[f"{case}/out/{output}"])
            if "sequence" in model.outputs[output]:  # nobody reads what is answered at padding
                real = torch.from_numpy(goldens[f"{case}/in/attention_mask"]) > 0
                answers, result = answers[real], result[real]
            agree(answers, result, output)
    _release(found, model.modules, built)
    say("tracing the encoder")
    graphs = {"encoder": trace_text_encoder(encoder, model.types > 0, model.outputs, opset)}
    found.settings["encoding"] = model.reading()
    return _exported(found, task, opset, graphs, goldens, None, built)


def _release(found: Source, original: Sequence[nn.Module], built: Built) -> None:
    """The original has answered: what it holds twice goes, unless it is somebody's own."""
    if found.owned:
        release(original, [graph.module for graph in built.graphs.values()])


def _generation(kind: str, built: Built, model: Seq2SeqModel | CausalModel) -> dict[str, Any]:
    heads, size = built.head()
    decoder = built.graphs["decoder"]
    return {
        "kind": kind,
        "layers": len(decoder.stack.layers),
        "kv_heads": heads,
        "head_size": size,
        "vocab_size": decoder.module.vocabulary,
        "max_length": model.max_length,
        **model.ids,
        **model.extras,
    }


def _exported(found: Source, task: str, opset: int, graphs: Any, goldens: dict[str, np.ndarray], generation: Any, built: Built) -> Exported:
    padded = built.padded_heads()
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
        source_hashes=found.hashes,
        expected=expected_fusions(built),
        settings=found.settings | ({"padded_heads": padded} if padded else {}),
        chat=found.chat,
    )
