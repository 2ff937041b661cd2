"""The onnx route: an ONNX file made elsewhere becomes a standard graph with golden answers of ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxport.errors import CheckpointError, UsageError
from onnxport.export import pooled_layers
from onnxport.export.config_checks import named_class
from onnxport.export.exported import Exported
from onnxport.export.onnx_file.inputs import Arrays, GraphInput, inputs_of
from onnxport.export.onnx_file.original import HALF_ERROR, Original, goldens
from onnxport.export.onnx_file.read import encoding, is_half, load, tokenizers
from onnxport.export.sentence_transformers import LABELLED, has_modules, score_notes
from onnxport.export.source import OnnxFile, Source
from onnxport.export.tokenizers.folder import READY, FolderTokenizers
from onnxport.graph.edit import dims
from onnxport.progress import Progress

STATE = "last_hidden_state"
ENDINGS = {  # of transformers' classes → their task
    "ForSequenceClassification": "classification",
    "ForTokenClassification": "token-classification",
    "ForMaskedLM": "fill-mask",
    "ForQuestionAnswering": "question-answering",
    "Model": "embedding",
}
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# task → the outputs that it needs, with the number of their dimensions
TASKS: dict[str, dict[str, int]] = {
    "embedding": {STATE: 3},
    "classification": {"logits": 2},
    "token-classification": {"logits": 3},
    "fill-mask": {"logits": 3},
    "question-answering": {"start_logits": 2, "end_logits": 2},
}


def export_onnx(source: Source, file: OnnxFile, task: str | None, opset: int | None, progress: Progress) -> Exported:
    """Standard graph and golden answers of an ONNX file. Errors: UsageError (task, opset), CheckpointError (the file was refused)."""
    original = Original.of(file.path)
    model = load(file, opset)
    inputs = inputs_of(model.graph)
    wanted, task = task, task or _stated_task(file, inputs, model.graph) or "tensor"
    if problem := _task_problem(task, inputs, model.graph):
        raise UsageError(problem)
    progress("asking the original for golden answers")
    if is_half(file.proto):
        as_it_came, original = original, Original.rewritten(model, file.path)
        cases = goldens(original, inputs, progress)
        _check_half(as_it_came, cases)
    else:
        cases = goldens(original, inputs, progress)
    settings: dict[str, object] = {"producer": " ".join(filter(None, (file.proto.producer_name, file.proto.producer_version)))}
    config, found = None, FolderTokenizers()
    notes: tuple[str, ...] = ()
    if wanted is None:
        notes = _assumed(task, [other for other in TASKS if _task_problem(other, inputs, model.graph) is None])
    if task != "tensor":
        rows = next(entry.rows for entry in inputs if entry.name == "input_ids")
        labels = cases["case0/out/logits"].shape[-1] if task in LABELLED else None
        found = tokenizers(file)
        if rows is not None and (problems := found.problems(dict.fromkeys(found.by_side, rows))):
            raise CheckpointError(f"{problems[0]}; put the model's own tokenizer.json beside {file.path.name}")
        longest = file.texts.max_length or (found.longest if any(map(has_modules, file.folders)) else None)
        texts = replace(file.texts, token_types=found.gives_types, max_length=longest)
        file = replace(file, texts=replace(texts, mask_id=found.mask_id, unknown_id=found.unknown_id))
        config = encoding(file, task, rows, labels)
        notes = (*notes, *found.notes, *(score_notes(file.config, labels) if task == "classification" else ()))
    layers: tuple[pooled_layers.Arrays, ...] = ()
    if task == "embedding" and file.texts.layers:
        layers, hashes = pooled_layers.read(file.texts, cases[f"case0/out/{STATE}"].shape[-1], False)
        source = replace(source, hashes=source.hashes | hashes)
    return Exported(
        name=source.name,
        task=task,
        family=source.family,
        route="onnx",
        opset=model.opset_imports.get("", file.opset),
        graphs={"model" if task == "tensor" else "encoder": model},
        goldens=cases,
        encoding=config,
        tokenizers=found.by_side,
        source_hashes=source.hashes,
        settings=settings,
        notes=notes,
        layers=layers,
    )


def _stated_task(file: OnnxFile, inputs: list[GraphInput], graph: ir.Graph) -> str | None:
    """The task of the class in a config.json beside the file, where the graph can do it and a tokenizer is there; None for none."""
    if not any((folder / READY).is_file() for folder in file.folders):
        return None
    named = named_class(file.config) or ""
    embeds = any(map(has_modules, file.folders))
    stated = "embedding" if embeds else next((task for ending, task in ENDINGS.items() if named.endswith(ending)), None)
    return stated if stated is not None and _task_problem(stated, inputs, graph) is None else None


def _assumed(task: str, possible: list[str]) -> tuple[str, ...]:
    """What is said of a task that nobody named."""
    if task != "tensor":
        return (f"task {task} is taken from the files beside the ONNX file: for arrays in and arrays out say --task tensor",)
    return (f"task tensor is assumed, arrays in and arrays out: for texts say --task {' or '.join(possible)}",) if possible else ()


def _task_problem(task: str, inputs: list[GraphInput], graph: ir.Graph) -> str | None:
    """What of the graph's names and shapes is not as transformers has it for this task; None where all is."""
    if task == "tensor":
        return None
    if task not in TASKS:
        return f"task {task} is not possible for an ONNX file; possible: tensor, {', '.join(TASKS)}"
    named, outputs = {entry.name for entry in inputs}, {str(value.name): dims(value) for value in graph.outputs}
    if "input_ids" not in named or not named <= set(TEXT_INPUTS):
        return f"task {task} needs inputs among {', '.join(TEXT_INPUTS)}, found {', '.join(sorted(named))}; use --task tensor"
    for name, rank in TASKS[task].items():
        if name not in outputs:
            return f"task {task} needs an output {name}, found {', '.join(outputs)}; use --task tensor"
        shape = outputs[name]
        if shape is not None and len(shape) != rank:
            return f"task {task} needs {name} with {rank} axes, found {len(shape)}; use --task tensor"
    return None


def _check_half(as_it_came: Original, cases: Arrays) -> None:
    """CheckpointError where a half-precision file and its own nodes in float32 differ by more than half precision explains."""
    halves = {i.name: np.float16 for i in as_it_came.runner.inputs.values() if i.type == "tensor(float16)"}
    feed = {name[9:]: array.astype(halves.get(name[9:], array.dtype)) for name, array in cases.items() if name.startswith("case0/in/")}
    try:
        answer = as_it_came.answer(feed)
    except Exception:  # ONNX Runtime's CPU has no half-precision kernel for one of its nodes: float32 is all there is
        return
    for name, array in answer.items():
        wide = cases[f"case0/out/{name}"]
        if array.dtype.kind == "f":
            difference, size = np.abs(wide - array.astype(np.float32)).max(initial=0), np.abs(wide).max(initial=0)
            if not difference <= HALF_ERROR * max(float(size), 1e-3):
                raise CheckpointError(
                    f"output {name} in float32 is {difference:.2e} from the file's own half precision; export it in float32"
                )
