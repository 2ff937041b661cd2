"""The exporter's stages: read the source, describe its model, and take one of the routes to standard graphs with golden answers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxport.errors import UsageError
from onnxport.export.adapters import Adapter, Module
from onnxport.export.description import CausalModel, EncoderModel, Model, Seq2SeqModel, choose_task
from onnxport.export.exported import Exported
from onnxport.export.hugging_face.original import TransformersCausal, TransformersSeq2Seq
from onnxport.export.pytorch.describe import describe
from onnxport.export.resolve import resolve
from onnxport.export.routes.canonical import export_causal, export_encoder, export_seq2seq
from onnxport.export.sentence_transformers import has_modules
from onnxport.export.source import OnnxFile, Source, for_task
from onnxport.export.trace.tracer import check_opset
from onnxport.export.user_code import evaluating, one_thread
from onnxport.progress import Progress

ATTENTION_INTERFACE = "attention-interface"


def export(
    source: str | Path | Adapter | tuple[Any, Any],
    task: str | None = None,
    opset: int | None = None,
    allow_pickle: bool = False,
    progress: Progress | None = None,
    lora: str | Path | None = None,
    allow_remote_code: bool = False,
    route: str | None = None,
    texts: tuple[str, ...] = (),
    goldens: dict[str, np.ndarray] | None = None,
) -> Exported:
    """Standard graphs and golden answers of a folder, a file, a `package.module:factory`, an adapter, or `(module, example inputs)`.

    lora: a folder of PEFT, which is merged into the weights first. route: ATTENTION_INTERFACE has a language model of transformers traced
    as its own class, also where it has a canonical form; None for what suits the source. texts: that a language model gives golden answers
    on beside the kit's. goldens: what an earlier export of the same source by the same options and versions gave: a language model is not
    asked again.
    Errors: UsageError (task, opset), CheckpointError (the source was refused), ParityError (canonical model and user's class disagree).
    """
    progress = progress or (lambda message: None)
    if route not in (None, ATTENTION_INTERFACE):
        raise UsageError(f"route {route} is not known, expected {ATTENTION_INTERFACE}; leave it out for what suits the source")
    progress("reading the source")
    opset_written = check_opset(opset)  # an ONNX file keeps its own where none is wanted
    found = replace(resolve(source, allow_pickle, lora, allow_remote_code), goldens=goldens)
    if task == "text-generation" and isinstance(source, str | Path) and has_modules(Path(source)):
        raise UsageError(
            f"task {task} is not possible for {source}: its modules.json makes it an embedding model; "
            "copy the folder without modules.json and export that"
        )
    exported = _routed(replace(found, texts=texts), task, opset, opset_written, progress, route)
    assumed = () if found.assumed is None or task is not None else (found.assumed,)
    return replace(exported, notes=(*found.notes, *assumed, *exported.notes))


def _routed(found: Source, task: str | None, opset: int | None, opset_written: int, progress: Progress, route: str | None) -> Exported:
    """The source by its route."""
    match found.adapter:
        case OnnxFile() as file:
            from onnxport.export.routes.onnx import export_onnx

            return export_onnx(found, file, task, opset, progress)
        case Module() as module:
            from onnxport.export.routes.direct import export_module

            return export_module(found, module, choose_task(("tensor",), task or found.task, "Module"), opset_written, progress)
    found, model = describe(for_task(found, task))
    task = choose_task(model.tasks, task or found.task, type(found.adapter).__name__)
    if route == ATTENTION_INTERFACE:
        if isinstance(model, EncoderModel) or not isinstance(model.original, TransformersCausal | TransformersSeq2Seq):
            raise UsageError(f"route {route} is for language models of transformers, found a {type(found.adapter).__name__}")
        model = replace(model, build=None)
    modules = model.modules if isinstance(model, EncoderModel) else model.original.modules
    with evaluating(*modules), one_thread():
        progress("asking the original for golden answers")
        return _described(found, model, task, opset_written, progress)


def _described(found: Source, model: Model, task: str, opset_written: int, progress: Progress) -> Exported:
    """The described model by its route."""
    match model:
        case Seq2SeqModel(build=None):
            from onnxport.export.routes.attention_interface_seq2seq import export_traced_seq2seq

            return export_traced_seq2seq(found, model, task, opset_written, progress)
        case Seq2SeqModel():
            return export_seq2seq(found, model, task, opset_written, progress)
        case CausalModel(build=None):
            from onnxport.export.routes.attention_interface import export_traced_causal

            return export_traced_causal(found, model, task, opset_written, progress)
        case CausalModel():
            return export_causal(found, model, task, opset_written, progress)
        case EncoderModel(build=None):
            from onnxport.export.routes.direct_encoder import export_traced_encoder

            return export_traced_encoder(found, model, task, opset_written, progress)
        case EncoderModel():
            return export_encoder(found, model, task, opset_written, progress)
