"""From what the user named to standard graphs with golden answers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from onnxport.errors import UsageError
from onnxport.export import golden
from onnxport.export.adapters import Adapter, Module
from onnxport.export.agreement import agree, cases, check_causal, check_seq2seq
from onnxport.export.canonical import Built, expected_fusions, trace_decoder, trace_source_encoder, trace_text_encoder
from onnxport.export.described import described
from onnxport.export.guard import evaluating, one_thread
from onnxport.export.models import CausalModel, EncoderModel, Seq2SeqModel
from onnxport.export.onnx_source import OnnxFile
from onnxport.export.release import release
from onnxport.export.result import Exported
from onnxport.export.source import Source, resolve
from onnxport.export.trace import check_opset

Progress = Callable[[str], None]


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
    say = progress or (lambda message: None)
    say("reading the source")
    if opset is not None:
        check_opset(opset)
    found = resolve(source, allow_pickle)
    if isinstance(found.adapter, OnnxFile):
        from onnxport.export.onnx_export import export_onnx

        return export_onnx(found, found.adapter, task, opset, say)
    opset = check_opset(opset)
    if isinstance(found.adapter, Module):
        from onnxport.export.direct import export_module

        chosen = choose_task(("tensor",), task or found.task, "Module")
        return export_module(found, found.adapter, chosen, opset, say)
    model = described(found)
    chosen = choose_task(model.tasks, task or found.task, type(found.adapter).__name__)
    modules = model.modules if isinstance(model, EncoderModel) else model.original.modules
    with evaluating(*modules), one_thread():
        say("asking the original for golden answers")
        match model:
            case Seq2SeqModel():
                return _seq2seq(found, model, chosen, opset, say)
            case CausalModel():
                return _causal(found, model, chosen, opset, say)
            case EncoderModel(build=None):
                from onnxport.export.traced_encoder import export_encoder

                return export_encoder(found, model, chosen, opset, say)
            case EncoderModel():
                return _encoder(found, model, chosen, opset, say)


def choose_task(possible: tuple[str, ...], task: str | None, kind: str) -> str:
    """The asked task where this kind of model can do it, else its usual one."""
    if task is None:
        return possible[0]
    if task not in possible:
        raise UsageError(f"task {task} is not possible for this {kind}; possible: {', '.join(possible)}")
    return task


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
