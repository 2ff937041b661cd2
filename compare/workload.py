"""The work that a comparison gives to every side: a method, inputs and options."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onnxport.compare.data import Dataset, read_data
from onnxport.compare.sample_texts import QUESTIONS, SENTENCES
from onnxport.errors import BundleError, DataError
from onnxport.runtime.bundle import golden
from onnxport.runtime.bundle.reader import Bundle

METHODS = {  # of tasks; others generate
    "embedding": "encode",
    "classification": "classify",
    "token-classification": "entities",
    "fill-mask": "fill",
    "multiple-choice": "choose",
    "question-answering": "answer",
    "tensor": "run",
}
GOLDEN = "golden"  # the kind of inputs that come from the bundle itself
_LABELS = {"labelled": "labelled texts", "tags": "tagged words"}  # of kinds of data, where it is not the kind itself
_BY_KIND = {  # of data → by task the method that it takes in place of the task's own
    "rankings": {"classification": "rerank"},
    "choices": {"classification": "choose"},
    "tags": {"token-classification": "tags"},
}
_ACCEPTED = {  # method -> kinds of data
    "generate": ("pairs", "texts"),
    "encode": ("texts", "pairs", "labelled", "questions"),
    "classify": ("labelled", "texts"),
    "choose": ("choices", "labelled"),
    "rerank": ("rankings",),
    "entities": ("entities", "texts"),
    "tags": ("tags",),
    "fill": ("labelled", "texts"),
    "answer": ("questions",),
    "run": (),
}
_TIMED_TOKENS = 32  # new tokens of a timed answer
_MOST_TOKENS = 128  # new tokens of an answer where neither the caller nor the model sets a limit
_PROMPTS = 200  # texts that a language model continues, at most; its perplexity is measured on all of them
_PROMPT_TOKENS = 256  # of a beginning that is continued, at most, and half the model's positions
_WINDOW = 1024  # tokens over which perplexity is measured, at most
_WORD = re.compile(r"[^\W\d_]{2,}")


@dataclass(frozen=True)
class SideRequest:
    """Inputs for a method of every side.

    size: inputs of one call; of `run`, each input is a call.  name, lines: of the data file, for messages.
    """

    method: str
    inputs: list[Any]
    options: dict[str, Any]
    size: int
    name: str = ""
    lines: list[int] | None = None

    def chunks(self) -> list[Any]:
        """The inputs of each call, in order."""
        if self.method == "run":
            return self.inputs
        return [self.inputs[start : start + self.size] for start in range(0, len(self.inputs), self.size)]


@dataclass(frozen=True)
class Workload:
    """Inputs, reference answers and options, the same for every side.

    method: of METHODS.  kind: as `data.Dataset`, or GOLDEN.  name: of the data, for the report.
    inputs: one an answer (for `run`, one dict of arrays a call).  references: as `data.Dataset`, or None.
    natural: options for answers as users get them.  fixed: options under which every side does the same amount of work.
    built_in: no data was given, so there is nothing to measure quality on.  lines: of the data file, one an input; None without a file.
    rows: of the whole data file: more than inputs where a source has several references, or with a limit; None without a file.
    extra_request: sent besides the inputs, for quality alone: texts whose likelihood is measured, or the passages of a retrieval.
    passage_of: of a retrieval: each question's own passage, by its place in extra_request.
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
    extra_request: SideRequest | None = None
    passage_of: list[int] | None = None

    @property
    def count(self) -> int:
        """Inputs that quality is measured on."""
        return len(self.inputs if self.scored is None else self.scored.inputs)

    @property
    def scored(self) -> SideRequest | None:
        """The texts whose likelihood is measured; None where quality is measured otherwise."""
        return self.extra_request if self.passage_of is None else None

    @property
    def passages(self) -> SideRequest | None:
        """The passages in which a retrieval looks for its questions' own; None where nothing is retrieved."""
        return self.extra_request if self.passage_of is not None else None

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

    @property
    def request(self) -> SideRequest:
        """The inputs, one a call, to be answered as users get them."""
        return SideRequest(self.method, self.inputs, self.natural, 1, self.name, self.lines)


def workload(
    bundle: Bundle,
    data: str | Path | None,
    limit: int | None,
    beam: int | None = None,
    max_new_tokens: int | None = None,
    others: Sequence[Bundle] = (),
) -> Workload:
    """Reads `data`, or falls back to built-in texts, or to the golden inputs of a bundle that takes no texts. DataError, BundleError.

    beam: of every side; None for as many as the model has of its own. others: bundles that get the same work, which must fit them too.
    """
    if data is None:
        return _built_in(bundle, beam, max_new_tokens, others)
    dataset = read_data(data)
    method = _method(bundle, dataset)
    natural, fixed = _options([bundle, *others], beam, max_new_tokens) if method == "generate" else ({}, {})
    takes = _ACCEPTED[method]
    if dataset.kind not in takes:
        named = " or ".join(_LABELS.get(kind, kind) for kind in _taken(bundle, takes))
        takes_text = named or "no data file: it is compared on its golden inputs"
        raise DataError(f"{data}: holds {_LABELS.get(dataset.kind, dataset.kind)}, but a bundle for {bundle.task} takes {takes_text}")
    if not bundle.tokenizers:
        raise DataError(f"{data}: the bundle has no tokenizer, so it takes no texts; compare without data, or export with a tokenizer")
    used: Dataset = dataset.grouped().limited(limit)
    work = Workload(method, used.kind, dataset.name, used.inputs, used.references, natural, fixed, lines=used.lines, rows=len(dataset))
    if method in ("classify", "choose") and used.kind == "labelled":
        return _labelled(work, bundle, dataset, data)
    if method == "fill":
        return _masked(work, bundle, data)
    if method == "encode" and used.kind == "questions":
        return _retrieval(work, dataset)
    if method == "answer" and any(not any(group) for group in used.references or ()):
        return replace(work, natural={"no_answer": True}, fixed={"no_answer": True})
    if used.kind == "texts" and bundle.task == "text-generation":
        return _language(work, bundle, others)
    return work


def _method(bundle: Bundle, dataset: Dataset | None) -> str:
    """The method that a bundle is compared by, on its own inputs where there is no data."""
    method = METHODS.get(bundle.task, "generate")
    if dataset is not None and (other := _BY_KIND.get(dataset.kind, {}).get(bundle.task)) is not None:
        return other
    regression = method == "classify" and bundle.encoding.problem == "regression"
    return "run" if regression else method  # values, not labels


def _taken(bundle: Bundle, kinds: Sequence[str]) -> list[str]:
    """The kinds of data that a bundle takes: `kinds`, and those that have a method of their own, as far as its labels go with them."""
    labels = bundle.encoding.labels
    fits = {"rankings": len(labels) <= 1, "choices": _entails(labels)}
    others = [kind for kind, methods in _BY_KIND.items() if bundle.task in methods and fits.get(kind, True)]
    return [*kinds, *(kind for kind in others if kind not in kinds)]


def _entails(labels: Iterable[str]) -> bool:
    """Whether one of the labels is entailment."""
    return any(label.lower().startswith("entail") for label in labels)


def _built_in(bundle: Bundle, beam: int | None, max_new_tokens: int | None, others: Sequence[Bundle]) -> Workload:
    """Built-in texts, or the golden inputs of a bundle that takes no texts."""
    method = _method(bundle, None)
    natural, fixed = _options([bundle, *others], beam, max_new_tokens) if method == "generate" else ({}, {})
    if not bundle.tokenizers or method == "run":
        method = method if method == "generate" else "run"  # arrays: without a tokenizer there is nothing to read texts with
        return Workload(method, GOLDEN, "golden inputs", golden_inputs(bundle, method), None, natural, fixed, True)
    kind, name = ("questions", "questions") if method == "answer" else ("texts", "sentences")
    inputs: list[Any] = list(QUESTIONS if method == "answer" else SENTENCES)
    if method == "choose":
        kind, inputs = "choices", [{"text": text, "candidates": list(SENTENCES[:4])} for text in SENTENCES]
    work = Workload(method, kind, f"built-in {name}", inputs, None, natural, fixed, True)
    return replace(_masked(work, bundle, "built-in sentences"), references=None) if method == "fill" else work


def _labelled(work: Workload, bundle: Bundle, dataset: Dataset, data: str | Path) -> Workload:
    """Labels of the model's own, or for a model of entailment any others: all labels of the data are its candidates. DataError."""
    known, found = set(bundle.encoding.labels), dict.fromkeys(dataset.references or ())
    if work.method == "classify" and (not known or not known.isdisjoint(found)):
        return work
    if bundle.task == "classification" and not _entails(known):
        theirs, ours = (", ".join(sorted(names)[:3]) for names in (found, known))
        raise DataError(f"{data}: none of its labels ({theirs}, ...) is one of the model's ({ours}, ...); name them as the model does")
    if not all(isinstance(text, str) for text in work.inputs):
        raise DataError(f"{data}: holds pairs of texts with labels that are not the model's; expected single texts to be judged by them")
    inputs = [{"text": text, "candidates": list(found)} for text in work.inputs]
    return replace(work, method="choose", kind="choices", inputs=inputs)


def _masked(work: Workload, bundle: Bundle, data: str | Path) -> Workload:
    """Texts with a mask and the word that is expected there; of texts without one the middle word is masked and expected. DataError."""
    from onnxport.runtime.tokenizer import TextTokenizer

    mask = bundle.encoding.mask_id
    name = None
    if mask is not None:
        name = TextTokenizer(bundle.file(bundle.tokenizers.get("source") or bundle.tokenizers["target"])).token(mask)
    if name is None:
        raise DataError(f"{data}: {bundle.path} does not say which token is its mask; export the model again, with its tokenizer's files")
    if work.kind == "labelled":
        bare = [i for i, text in enumerate(work.inputs) if not isinstance(text, str) or name not in text]
        if bare:
            line = work.lines[bare[0]] if work.lines else 0
            raise DataError(f"{data}: line {line}: the text has no {name}; expected one where the label is missing")
        return replace(work, kind="words")
    texts, words = [], []
    for text in work.inputs:
        found = [match for match in _WORD.finditer(text) if name not in text]
        if found:
            middle = found[len(found) // 2]
            texts.append(text[: middle.start()] + name + text[middle.end() :])
            words.append(middle.group())
    if not texts:
        raise DataError(f"{data}: no text has a word that can be masked; expected sentences without {name}, or texts with label")
    return replace(work, kind="words", inputs=texts, references=words, lines=None)


def _retrieval(work: Workload, dataset: Dataset) -> Workload:
    """Questions as texts, to be found in all passages of the data."""
    passages = {context: i for i, context in enumerate(dict.fromkeys(one["context"] for one in dataset.inputs))}
    passage_of = [passages[one["context"]] for one in work.inputs]
    request = SideRequest("encode", list(passages), {}, 256)
    questions = [one["question"] for one in work.inputs]
    return replace(work, inputs=questions, references=None, extra_request=request, passage_of=passage_of)


def _language(work: Workload, bundle: Bundle, others: Sequence[Bundle]) -> Workload:
    """Texts whose perplexity is measured; the beginnings of some are continued, for speed and agreement."""
    from onnxport.runtime.tokenizer import TextTokenizer

    room = min(_room(one) for one in (bundle, *others))
    window = min(_WINDOW, room)
    options = {"window": window, "stride": max(1, window // 2)}
    request = SideRequest("likelihoods", work.inputs, options, 64, work.name, work.lines)
    count = min(_PROMPTS, len(work.inputs))
    rows = [i * len(work.inputs) // count for i in range(count)]
    tokenizer = TextTokenizer(bundle.file(bundle.tokenizers.get("source") or bundle.tokenizers["target"]))
    most = max(1, min(_PROMPT_TOKENS, room // 2 - 8))  # some for special tokens
    prompts = [_beginning(work.inputs[i], tokenizer.ends(work.inputs[i][: 16 * most]), most) for i in rows]
    return replace(work, inputs=prompts, lines=[work.lines[i] for i in rows] if work.lines else None, extra_request=request)


def _beginning(text: str, ends: Sequence[int], most: int) -> str:
    return text if len(ends) <= most and (not ends or ends[-1] >= len(text.rstrip())) else text[: ends[min(most, len(ends)) - 1]]


def _room(bundle: Bundle) -> int:
    """The positions of a model that generates. BundleError where the bundle has no generation settings."""
    if bundle.generation is None:
        raise BundleError(f"{bundle.path}: task {bundle.task} without generation settings in bundle.json; export the model again")
    return bundle.generation.source_length or 4096


def _options(bundles: Sequence[Bundle], beam: int | None, max_new_tokens: int | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """natural and fixed options of a Workload, within the positions of every bundle; what the first wishes holds for all."""
    room, generation = min(map(_room, bundles)), bundles[0].generation
    assert generation is not None  # _room would have refused it
    if generation.kind == "causal":
        room //= 2  # the prompt takes positions too
    most = min(max_new_tokens or generation.max_new_tokens or _MOST_TOKENS, max(1, room - 1))
    beams = generation.search.beam if beam is None else beam  # a number, so that every side gets the same
    timed = min(_TIMED_TOKENS, most)
    return {"max_new_tokens": most, "beam": beams}, {"min_new_tokens": timed, "max_new_tokens": timed, "beam": beams}


def golden_inputs(bundle: Bundle, method: str) -> list[Any]:
    """Rows of ids for `generate`, else a dict of arrays a case. BundleError where there are none."""
    if bundle.golden is None:
        raise BundleError(f"{bundle.path}: holds neither a tokenizer nor golden inputs to run; give data, or export the model again")
    cases = golden.read(bundle.file(bundle.golden)).values()
    inputs: list[Any]
    try:
        if method == "generate":
            inputs = [row for case in cases for row in golden.prompts(case)]
        else:
            inputs = [arrays for case in cases if (arrays := golden.inputs(case))]
    except (ValueError, TypeError, IndexError) as error:
        raise BundleError(f"{bundle.path}: {bundle.golden} holds inputs that do not fit ({error}); export the model again") from None
    if not inputs:
        raise BundleError(f"{bundle.path}: {bundle.golden} holds no inputs for {bundle.task}; export the model again")
    return inputs
