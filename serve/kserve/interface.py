"""What a model is as tensors in, tensors out: for KServe's protocol and for Triton, neither of which it knows.

Texts come as BYTES [rows], ids as INT64 [rows, tokens] with an attention_mask where rows differ in length. Models that answer in one pass
also take and give the arrays of their graph by their own names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from onnxport.errors import DataError, UsageError
from onnxport.runtime import Generation, Model
from onnxport.runtime.bundle.interface import ATTENTION_MASK, INPUT_IDS
from onnxport.serve.kserve.tensors import BYTES, NAMES, name_of, of_texts, to_texts
from onnxport.serve.tasks import TASKS, Kinds, Task

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Spec:
    """A tensor's name, type and shape, -1 for sizes that vary. optional: an input that may be left out."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True)
class Interface:
    """The tensors of a model. options: parameters that it takes, with their types."""

    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]
    options: Kinds


@dataclass(frozen=True)
class Asked:
    """A request as a call of the runtime. method: with an `a` in front of it awaited. texts: of it, to be counted. tensors: what its
    results are as outputs."""

    method: str
    arguments: Mapping[str, Any]
    tensors: Callable[[Any], dict[str, np.ndarray]]
    texts: Sequence[str] = ()
    tokens: int = 0
    rows: int = 0


TOLD: dict[str, tuple[Spec, ...]] = {  # outputs of each method
    "generate": (
        Spec("text", BYTES, (-1,)),
        Spec("tokens", "INT64", (-1, -1)),
        Spec("lengths", "INT64", (-1,)),
        Spec("score", "FP32", (-1,)),
        Spec("finish_reason", BYTES, (-1,)),
    ),
    "encode": (Spec("embedding", "FP32", (-1, -1)),),
    "classify": (Spec("label", BYTES, (-1,)), Spec("scores", "FP32", (-1, -1)), Spec("labels", BYTES, (-1,))),
    "answer": (Spec("answer", BYTES, (-1,)), Spec("start", "INT64", (-1,)), Spec("end", "INT64", (-1,)), Spec("score", "FP32", (-1,))),
    "entities": (Spec("json", BYTES, (-1,)),),
    "fill": (Spec("json", BYTES, (-1,)),),
}
IDS = (Spec(INPUT_IDS, "INT64", (-1, -1), True), Spec(ATTENTION_MASK, "INT64", (-1, -1), True))
ARRAYLESS = ("multiple-choice",)  # candidates are lists, which parameters cannot be


def interface(model: Model) -> Interface:
    """The tensors of a model."""
    task = None if model.task in ARRAYLESS else TASKS.get(model.task)
    inputs: list[Spec] = []
    outputs: list[Spec] = []
    if task is not None:
        inputs += [Spec(name, BYTES, (-1,), True) for name in (*task.inputs, *task.optional)]
        outputs += TOLD[task.method]
    if task is not None and task.method == "generate":
        inputs += IDS
    else:
        encoder = model.encoding()
        optional = task is not None
        inputs += [Spec(name, NAMES[dtype], _sizes(encoder.input_shapes[name]), optional) for name, dtype in encoder.inputs.items()]
        outputs += [Spec(name, NAMES[encoder.output_types[name]], _sizes(shape)) for name, shape in encoder.outputs.items()]
    return Interface(tuple(inputs), tuple(outputs), _options(task))


def _options(task: Task | None) -> Kinds:
    """Parameters are texts, numbers and truth values, so that options which are lists or objects alone are none."""
    return {} if task is None else {name: kinds for name, kinds in task.options.items() if set(kinds) - {list, dict} and name != "n_best"}


def _sizes(shape: Sequence[object]) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else -1 for size in shape)


def asked(model: Model, inputs: Arrays) -> Asked:
    """A request as a call. DataError, UsageError."""
    known = {spec.name for spec in interface(model).inputs}
    if not inputs or not set(inputs) <= known:
        found = "no inputs" if not inputs else f"unknown inputs {', '.join(sorted(set(inputs) - known))[:200]}"
        raise DataError(f"found {found}, expected {', '.join(sorted(known))}")
    task = None if model.task in ARRAYLESS else TASKS.get(model.task)
    if task is not None and set(inputs) & set(task.inputs):
        return _of_texts(model, task, inputs)
    if task is not None and task.method == "generate":
        return _of_ids(model, task, inputs)
    rows = max((len(array) for array in inputs.values() if array.ndim), default=1)
    return Asked("run", {"inputs": inputs}, lambda found: found, rows=rows, tokens=int(np.size(inputs.get(INPUT_IDS, 0))))


def _of_texts(model: Model, task: Task, inputs: Arrays) -> Asked:
    names = [name for name in (*task.inputs, *task.optional) if name in inputs]
    if missing := [name for name in task.inputs if name not in inputs]:
        raise DataError(f"the inputs lack {', '.join(missing)}")
    if others := sorted(set(inputs) - set(names)):
        raise DataError(f"{', '.join(others)} does not go with text; send texts or arrays")
    columns = [to_texts(name, inputs[name]) for name in names]
    if len({len(column) for column in columns}) > 1:
        raise DataError(f"{' and '.join(names)} differ in their number of texts")
    rows = list(zip(*columns, strict=True))
    tensors = partial(TENSORS[task.method], model, task)
    return Asked(task.method, task.arguments(rows), tensors, [text for row in rows for text in row], rows=len(rows))


def _of_ids(model: Model, task: Task, inputs: Arrays) -> Asked:
    if INPUT_IDS not in inputs:
        raise DataError(f"the inputs lack {INPUT_IDS}")
    ids, mask = inputs[INPUT_IDS], inputs.get(ATTENTION_MASK)
    for name, array in inputs.items():
        if array.dtype.kind not in "iu" or array.ndim != 2 or not array.size:
            raise DataError(f"{name} is {name_of(array)} of shape {list(array.shape)}, expected INT64 [rows, tokens]")
    if mask is not None and mask.shape != ids.shape:
        raise DataError(f"{ATTENTION_MASK} has shape {list(mask.shape)}, expected {list(ids.shape)} as {INPUT_IDS}")
    rows = [row.tolist() if mask is None else row[mask[place] != 0].tolist() for place, row in enumerate(ids)]
    return Asked("generate", {"inputs": rows}, partial(_generated, model, task), tokens=sum(map(len, rows)), rows=len(rows))


def options(given: Mapping[str, Any], known: Kinds) -> dict[str, Any]:
    """Parameters as options of the runtime. UsageError names one that is unknown or of another type."""
    found = {}
    for name, value in given.items():
        if name not in known:
            raise UsageError(f"parameter {name!r:.60} is unknown, expected {', '.join(known) or 'none'}")
        kinds = known[name]
        accepted = (*kinds, int) if float in kinds else kinds
        if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in kinds):
            raise UsageError(f"parameter {name} is {value!r:.60}, expected {' or '.join(kind.__name__ for kind in kinds)}")
        found[name] = value
    return found


def _generated(_: Model, __: Task, results: Sequence[Generation]) -> dict[str, np.ndarray]:
    longest = max((len(one.tokens) for one in results), default=0)
    tokens = np.zeros((len(results), longest), np.int64)
    for row, one in zip(tokens, results, strict=True):
        row[: len(one.tokens)] = one.tokens
    return {
        "text": of_texts([one.text or "" for one in results]),
        "tokens": tokens,
        "lengths": np.array([len(one.tokens) for one in results], np.int64),
        "score": np.array([one.score for one in results], np.float32),
        "finish_reason": of_texts([one.finish_reason for one in results]),
    }


def _vectors(_: Model, __: Task, results: np.ndarray) -> dict[str, np.ndarray]:
    return {"embedding": results}


def _labels(model: Model, _: Task, results: Sequence[Any]) -> dict[str, np.ndarray]:
    count = len(results[0].scores) if results else 0
    names = model.bundle.encoding.labels or tuple(f"LABEL_{place}" for place in range(count))
    scores = np.array([[one.scores[name] for name in names] for one in results], np.float32).reshape(len(results), len(names))
    return {"label": of_texts([one.label for one in results]), "scores": scores, "labels": of_texts(names)}


def _spans(_: Model, __: Task, results: Sequence[Any]) -> dict[str, np.ndarray]:
    return {
        "answer": of_texts([one.answer for one in results]),
        "start": np.array([one.start for one in results], np.int64),
        "end": np.array([one.end for one in results], np.int64),
        "score": np.array([one.score for one in results], np.float32),
    }


def _json(_: Model, task: Task, results: Sequence[Any]) -> dict[str, np.ndarray]:
    return {"json": of_texts([json.dumps(task.told(one), ensure_ascii=False) for one in results])}


TENSORS: dict[str, Callable[[Model, Task, Any], dict[str, np.ndarray]]] = {  # of each method's results
    "generate": _generated, "encode": _vectors, "classify": _labels, "answer": _spans, "entities": _json, "fill": _json
}  # fmt: skip
