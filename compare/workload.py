"""What a comparison asks of every side: which method, which inputs, with which options."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxport.compare.data import Dataset, read_data
from onnxport.errors import BundleError, DataError
from onnxport.runtime.arrays import read_npz
from onnxport.runtime.bundle import Bundle

METHODS = {"embedding": "encode", "classification": "run", "question-answering": "run", "tensor": "run"}  # others: generate
GOLDEN = "golden"  # the kind of inputs that come from the bundle itself
_TAKES = {
    "generate": ("pairs", "texts"),
    "encode": ("texts", "pairs", "labelled"),
    "run": (),
}
_TIMED_TOKENS = 32
_MOST_TOKENS = 128

_SENTENCES = (
    "How are you?",
    "The weather is nice today.",
    "I would like a cup of coffee, please.",
    "She lives in a small town near the sea.",
    "Can you tell me where the station is?",
    "We have been waiting for the bus for half an hour.",
    "My brother bought a new bicycle last week.",
    "If it rains tomorrow, we will stay at home.",
    "The children were playing in the garden when I arrived.",
    "He did not know what to say.",
    "This book was written more than a hundred years ago.",
    "Thank you very much for your help.",
)


@dataclass(frozen=True)
class Workload:
    """method: what the sides are asked for.  kind: as `data.Dataset`, or GOLDEN.  name: of the data, for the report.

    inputs: one an answer (for `run`, one dict of arrays a call).  references: as `data.Dataset`, or None.

    natural: options for answers as users get them.  fixed: options under which every side does the same amount of work.
    built_in: no data was given, so there is nothing to measure quality on.  lines: of the data file, one an input; None without a file.
    rows: of the whole data file: more than inputs where a source has several references, or with a limit; None without a file.
    """

    method: str
    kind: str
    name: str
    inputs: list[Any]
    references: list[Any] | None
    natural: dict[str, Any] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)
    built_in: bool = False
    lines: list[int] | None = None
    rows: int | None = None

    @property
    def generates(self) -> bool:
        """Whether outputs are generated answers, with tokens."""
        return self.method == "generate"

    @property
    def unit(self) -> str:
        """Of throughput. Arrays have no axis that is surely the batch, so a call of `run` counts as one."""
        return {"generate": "tokens/s", "run": "calls/s"}.get(self.method, "items/s")

    def batches(self, size: int, most: int) -> list[Any]:
        """Up to `most` timing batches of `size` inputs, spread over the data (inputs come again when there are too few)."""
        if self.method == "run":
            return self.inputs[:most]
        count = max(1, min(most, len(self.inputs) // size))
        # Strided, so that a file sorted by length gives batches of like make-up, spread over the whole file.
        stride = max(1, len(self.inputs) // (size * count))
        order = [i * stride % len(self.inputs) for i in range(size * count)]
        return [[self.inputs[i] for i in order[number::count]] for number in range(count)]

    def chunks(self, size: int) -> list[Any]:
        """All inputs in order."""
        if self.method == "run":
            return self.inputs
        return [self.inputs[start : start + size] for start in range(0, len(self.inputs), size)]


def workload(
    bundle: Bundle, data: str | Path | None, limit: int | None, beam: int | None = None, max_new_tokens: int | None = None
) -> Workload:
    """Reads `data`, or falls back to built-in sentences, or to the golden inputs of a bundle without tokenizer. DataError, BundleError.

    beam: of every side; None for as many as the model has of its own.
    """
    method = METHODS.get(bundle.task, "generate")
    natural, fixed = _options(bundle, beam, max_new_tokens) if method == "generate" else ({}, {})
    if data is None:
        if bundle.tokenizers and method != "run":
            return Workload(method, "texts", "built-in sentences", list(_SENTENCES), None, natural, fixed, True)
        method = "run" if method == "encode" else method  # arrays: without a tokenizer there is nothing to encode
        return Workload(method, GOLDEN, "golden inputs", _golden_inputs(bundle, method), None, natural, fixed, True)
    dataset = read_data(data)
    if dataset.kind not in _TAKES[method]:
        takes = " or ".join(_TAKES[method]) or "no data file: it is compared on its golden inputs"
        raise DataError(f"{data}: holds {dataset.kind}, but a bundle for {bundle.task} takes {takes}")
    if not bundle.tokenizers:
        raise DataError(f"{data}: the bundle has no tokenizer, so it takes no texts; compare without data, or export with a tokenizer")
    used: Dataset = dataset.grouped().limited(limit)
    return Workload(method, used.kind, dataset.name, used.inputs, used.references, natural, fixed, lines=used.lines, rows=len(dataset))


def _options(bundle: Bundle, beam: int | None, max_new_tokens: int | None) -> tuple[dict[str, Any], dict[str, Any]]:
    generation = bundle.generation
    if generation is None:
        raise BundleError(f"{bundle.path}: task {bundle.task} without generation settings in bundle.json; export the model again")
    room = generation.max_length or 4096
    if generation.kind == "causal":
        room //= 2  # the prompt takes positions too
    most = min(max_new_tokens or generation.max_new_tokens or _MOST_TOKENS, max(1, room - 1))
    beams = generation.search.beam if beam is None else beam  # a number, so that every side gets the same
    timed = min(_TIMED_TOKENS, most)
    return {"max_new_tokens": most, "beam": beams}, {"min_new_tokens": timed, "max_new_tokens": timed, "beam": beams}


def _golden_inputs(bundle: Bundle, method: str) -> list[Any]:
    if bundle.golden is None:
        raise BundleError(f"{bundle.path}: holds neither a tokenizer nor golden inputs to run; give data, or export the model again")
    cases: dict[str, dict[str, Any]] = {}
    arrays = read_npz(bundle.file(bundle.golden), BundleError, "export the model again")
    try:
        rows = [row for name, ids in sorted(arrays.items()) for row in _rows(name, ids, arrays)] if method == "generate" else []
    except (ValueError, TypeError, IndexError) as error:
        raise BundleError(f"{bundle.path}: {bundle.golden} holds inputs that do not fit ({error}); export the model again") from None
    for name, array in arrays.items():
        case, _, rest = name.partition("/in/")
        if rest:
            cases.setdefault(case, {})[rest] = array
    inputs: list[Any] = rows if method == "generate" else list(cases.values())
    if not inputs:
        raise BundleError(f"{bundle.path}: {bundle.golden} holds no inputs for {bundle.task}; export the model again")
    return inputs


def _rows(name: str, ids: Any, arrays: dict[str, Any]) -> list[list[int]]:
    """The unpadded rows of a golden case's source_ids or input_ids; [] for other arrays."""
    case, _, field_name = name.rpartition("/")
    if field_name not in ("source_ids", "input_ids"):
        return []
    lengths: Sequence[int] = [ids.shape[1]] * len(ids)
    if f"{case}/source_mask" in arrays:
        lengths = arrays[f"{case}/source_mask"].sum(axis=1)
    elif f"{case}/lengths" in arrays and field_name == "input_ids":
        lengths = arrays[f"{case}/lengths"]
    return [[int(i) for i in row[: int(length)]] for row, length in zip(ids, lengths, strict=True)]
