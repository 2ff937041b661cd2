"""From what the user named to standard graphs with golden answers."""

from pathlib import Path
from typing import Any

from onnxport.errors import UsageError
from onnxport.export.adapters import Adapter, Module
from onnxport.export.description import CausalModel, EncoderModel, Seq2SeqModel
from onnxport.export.exported import Exported, Progress
from onnxport.export.pytorch.describe import described
from onnxport.export.resolve import resolve
from onnxport.export.routes.canonical import _causal, _encoder, _seq2seq
from onnxport.export.source import OnnxFile
from onnxport.export.trace.tracer import check_opset
from onnxport.export.user_code import evaluating, one_thread


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
        from onnxport.export.routes.onnx import export_onnx

        return export_onnx(found, found.adapter, task, opset, say)
    opset = check_opset(opset)
    if isinstance(found.adapter, Module):
        from onnxport.export.routes.direct import export_module

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
                from onnxport.export.routes.direct_encoder import export_encoder

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
