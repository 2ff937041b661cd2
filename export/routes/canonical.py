"""The canonical route: a model's weights go into the canonical Transformer, which is checked against the original, then traced."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from onnxport.export import golden
from onnxport.export.canonical.graphs import (
    CanonicalModel,
    agree,
    check_causal,
    check_seq2seq,
    expected_fusions,
    trace_decoder,
    trace_source_encoder,
    trace_text_encoder,
)
from onnxport.export.deferred import in_step
from onnxport.export.description import CausalModel, EncoderModel, Seq2SeqModel
from onnxport.export.exported import Exported
from onnxport.export.routes.generation import generation_config
from onnxport.export.source import Source
from onnxport.export.weights import release
from onnxport.progress import Progress
from onnxport.runtime.bundle.golden import by_case, inputs, outputs
from onnxport.runtime.bundle.interface import ATTENTION_MASK, TEXT_INPUTS
from onnxport.runtime.bundle.manifest import EncodingConfig, GenerationConfig

CHECKING = "checking the canonical model against the original"


def export_seq2seq(source: Source, model: Seq2SeqModel, task: str, opset: int, progress: Progress) -> Exported:
    """Graphs `encoder` and `decoder` of an encoder-decoder. ParityError: the canonical model answers otherwise than the original."""
    assert model.build is not None, "what has no canonical form is traced as its own class"
    goldens = golden.seq2seq_goldens(model.original, model.ids, model.max_length, source=source)
    progress(CHECKING)
    canonical = model.build()
    check_seq2seq(canonical, goldens)
    source_rows = model.original.source_rows
    _release(source, model.original.modules, canonical)
    progress("tracing the encoder")
    graphs = {"encoder": trace_source_encoder(canonical, opset)}
    progress("tracing the decoder")
    graphs["decoder"] = trace_decoder(canonical, opset)
    generation = generation_config(model, source_vocab_size=source_rows, **_sizes(canonical))
    return _exported(source, task, opset, graphs, goldens, canonical, generation=generation)


def export_causal(source: Source, model: CausalModel, task: str, opset: int, progress: Progress) -> Exported:
    """Graph `decoder` of a language model. ParityError: the canonical model answers otherwise than the original."""
    assert model.build is not None, "what has no canonical form is traced as its own class"
    goldens = golden.causal_goldens(model.original, model.ids, model.max_length, source)
    progress(CHECKING)
    canonical = model.build()
    check_causal(canonical, goldens)
    _release(source, model.original.modules, canonical)
    progress("tracing the decoder")
    graphs = {"decoder": trace_decoder(canonical, opset)}
    generation = generation_config(model, window=canonical.window(), **_sizes(canonical))
    return _exported(source, task, opset, graphs, goldens, canonical, generation=generation)


def export_encoder(source: Source, model: EncoderModel, task: str, opset: int, progress: Progress) -> Exported:
    """Graph `encoder` of a model that answers in one pass. ParityError: the canonical model answers otherwise than the original."""
    assert model.build is not None, "what has no canonical form is traced directly"
    goldens = golden.encoder_goldens(model, source.tokenizers.get("source"))
    progress(CHECKING)
    canonical = model.build()
    _check_encoder(canonical, model, goldens)
    _release(source, model.modules, canonical)
    progress("tracing the encoder")
    graphs = {"encoder": trace_text_encoder(canonical.graphs["encoder"], model.types > 0, model.outputs, opset)}
    exported = _exported(source, task, opset, graphs, goldens, canonical, encoding=model.encoding_config())
    return replace(exported, layers=model.layers)


def _check_encoder(canonical: CanonicalModel, model: EncoderModel, goldens: Mapping[str, np.ndarray]) -> None:
    encoder = canonical.graphs["encoder"].module

    def check(case: Mapping[str, np.ndarray]) -> None:
        arrays = inputs(case)
        results = encoder(*(torch.from_numpy(arrays[name]) for name in TEXT_INPUTS if name in arrays))
        results = results if isinstance(results, tuple) else (results,)
        for output, result in zip(model.outputs, results, strict=True):
            answers = torch.from_numpy(outputs(case)[output])
            if "sequence" in model.outputs[output]:  # nobody reads what is answered at padding
                real = torch.from_numpy(arrays[ATTENTION_MASK]) > 0
                answers, result = answers[real], result[real]
            agree(answers, result, output)

    in_step([encoder], [partial(check, case) for case in by_case(goldens).values()])


def _release(source: Source, original: Sequence[nn.Module], canonical: CanonicalModel) -> None:
    """The original has answered: what it holds twice goes, unless it is somebody's own."""
    if source.owned:
        release(original, [graph.module for graph in canonical.graphs.values()])


def _sizes(canonical: CanonicalModel) -> dict[str, int]:
    """Of the decoder and its caches."""
    heads, size = canonical.head()
    decoder = canonical.graphs["decoder"]
    return {"layers": len(decoder.stack.layers), "kv_heads": heads, "head_size": size, "vocab_size": decoder.module.vocabulary}


def _exported(
    source: Source,
    task: str,
    opset: int,
    graphs: dict[str, ir.Model],
    goldens: dict[str, np.ndarray],
    canonical: CanonicalModel,
    generation: GenerationConfig | None = None,
    encoding: EncodingConfig | None = None,
) -> Exported:
    padded = canonical.padded_heads()
    return Exported(
        name=source.name,
        task=task,
        family=source.family,
        route="canonical",
        opset=opset,
        graphs=graphs,
        goldens=goldens,
        generation=generation,
        encoding=encoding,
        tokenizers=source.tokenizers,
        source_hashes=source.hashes,
        expected=expected_fusions(canonical),
        settings=source.settings | ({"padded_heads": padded} if padded else {}),
        chat=source.chat,
    )
