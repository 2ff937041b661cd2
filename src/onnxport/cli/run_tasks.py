"""The tasks of the `run` command: a line becomes a model's input, and an answer becomes JSON fields and a line."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from onnxport.errors import TextError, UsageError
from onnxport.runtime import Model

Fields = dict[str, Any]
GENERATING = frozenset(("translation", "summarization", "text2text", "text-generation"))
GENERATED = ("text", "tokens", "score", "finish_reason")


@dataclass(frozen=True)
class Task:
    """How lines of a task are answered.

    parse: a line that is not blank → an input; TextError. answer: inputs → the fields of their answers. format: fields → a line. blank: the
    fields of a blank line's answer. options: names of what `answer` takes; None for all.
    """

    parse: Callable[[str], Any]
    answer: Callable[[Model, list[Any], Fields], list[Fields]]
    format: Callable[[Fields], str]
    blank: Fields
    options: frozenset[str] | None


def task_of(model: Model, chat: bool) -> Task:
    """How the model's task is answered; chat: lines are conversations.

    Raises:
        UsageError: a chat with a bundle that generates no text.
    """
    if model.task in GENERATING:
        return CHATTING if chat else WRITING
    if chat:
        raise UsageError(f"--chat: the task of this bundle is {model.task}, which generates no text")
    return OTHERS[model.task]


def generated(result: Any, long: bool = False, n_best: int = 1) -> Fields:
    """JSON fields of a Generation. long: with its segments; n_best: above 1 with its alternatives."""
    fields = {name: getattr(result, name) for name in GENERATED}
    if n_best > 1:
        fields["alternatives"] = [generated(one) for one in result.alternatives]
    if result.top_logprobs:
        fields["top_logprobs"] = [[list(one) for one in best] for best in result.top_logprobs]
    return fields | ({"segments": result.segments} if long else {})


def conversation(line: str) -> list[Fields]:
    """The messages of a line: a JSON list of them, an object with `messages`, or a text that a user says. TextError."""
    if line.lstrip()[:1] in ("[", "{"):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None  # a text that begins with a bracket
        messages = value.get("messages") if isinstance(value, dict) else value
        if isinstance(messages, list):
            return messages
        if value is not None:
            raise TextError('found a JSON object without "messages", expected {"messages": [{"role": ..., "content": ...}]}')
    return [{"role": "user", "content": line}]


def _object(line: str) -> Fields | None:
    try:
        value = json.loads(line) if line.lstrip().startswith("{") else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _texts_of(fields: Fields, required: Sequence[str], optional: Sequence[str] = ()) -> list[str]:
    """The texts of an object's fields, in order, as far as they are there. TextError: one is missing, unknown or no text."""
    expected = ", ".join((*required, *optional))
    for name in fields:
        if name not in required and name not in optional:
            raise TextError(f"the JSON object has {name!r}, expected {expected}")
    for name in required:
        if name not in fields:
            raise TextError(f"the JSON object has no {name!r}, expected {expected}")
    for name, value in fields.items():
        if not isinstance(value, str):
            raise TextError(f"{name} is {type(value).__name__}, expected text")
    return [fields[name] for name in (*required, *optional) if name in fields]


@dataclass(frozen=True)
class Choice:
    """A text with the candidates that it is to be judged by."""

    text: str
    candidates: tuple[str, ...]


@dataclass(frozen=True)
class Query:
    """A query with the documents that are to be put in order."""

    query: str
    documents: tuple[str, ...]


def _pairs(line: str) -> str | tuple[str, ...] | Choice | Query:
    """A text, a pair of texts, a text with candidates, or a query with documents."""
    fields = _object(line)
    if fields is None:
        return line
    if "documents" in fields:
        documents = _list_of(fields, "documents")
        (query,) = _texts_of(fields, ("query",))
        return Query(query, documents)
    if "candidates" in fields:
        candidates = _list_of(fields, "candidates")
        (text,) = _texts_of(fields, ("text",))
        return Choice(text, candidates)
    texts = _texts_of(fields, ("text",), ("pair",))
    return texts[0] if len(texts) == 1 else tuple(texts)


def _list_of(fields: Fields, name: str) -> tuple[str, ...]:
    """The texts of a field, which is taken out of the object. TextError: it is no list of texts, or empty."""
    values = fields.pop(name)
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        raise TextError(f"{name} is {values!r:.60}, expected a list of texts")
    return tuple(values)


def _question(line: str) -> tuple[str, str]:
    fields = _object(line)
    if fields is None:
        raise TextError(f'{line!r:.60} is no JSON object, expected {{"question": ..., "context": ...}}')
    question, context = _texts_of(fields, ("question", "context"))
    return question, context


def _generate(model: Model, inputs: list[Any], options: Fields) -> list[Fields]:
    long, n_best = options.get("long") is not None, options.get("n_best", 1)
    return [generated(result, long, n_best) for result in model.generate(inputs, **options)]


def _chat(model: Model, inputs: list[Any], options: Fields) -> list[Fields]:
    return [generated(result, n_best=options.get("n_best", 1)) for result in model.chat(inputs, **options)]


def _encode(model: Model, inputs: list[Any], options: Fields) -> list[Fields]:
    return [{"embedding": vector.tolist()} for vector in model.encode(inputs, **options)]


def _classify(model: Model, inputs: list[Any], options: Fields) -> list[Fields]:
    """Inputs of one kind together; each answer is in its input's place."""
    answers: list[Fields] = [{}] * len(inputs)
    candidates = options.get("candidates")
    if candidates is not None:
        inputs = [Choice(one, _split(candidates)) if isinstance(one, str) else one for one in inputs]
    for places, answer in (
        ([i for i, one in enumerate(inputs) if isinstance(one, Choice)], _choose),
        ([i for i, one in enumerate(inputs) if isinstance(one, Query)], _rerank),
        ([i for i, one in enumerate(inputs) if not isinstance(one, Choice | Query)], _label),
    ):
        if places:
            for i, fields in zip(places, answer(model, [inputs[i] for i in places], options), strict=True):
                answers[i] = fields
    return answers


def _split(candidates: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in candidates.split(",") if part.strip())


def _only(options: Fields, *names: str) -> Fields:
    return {name: value for name, value in options.items() if name in names}


def _label(model: Model, inputs: list[Any], options: Fields) -> list[Fields]:
    several = model.bundle.encoding.problem == "multi"
    answers = model.classify(inputs, **_only(options, "stride"))
    return [{"label": one.label, "scores": one.scores} | ({"labels": list(one.labels)} if several else {}) for one in answers]


def _choose(model: Model, inputs: list[Choice], options: Fields) -> list[Fields]:
    """Texts with the same candidates together."""
    several, named = options.get("multi_label", False), _only(options, "stride", "hypothesis_template", "multi_label")
    answers: list[Fields] = [{}] * len(inputs)
    for candidates in dict.fromkeys(one.candidates for one in inputs):
        places = [i for i, one in enumerate(inputs) if one.candidates == candidates]
        found = model.classify([inputs[i].text for i in places], candidates=candidates, **named)
        for i, one in zip(places, found, strict=True):
            answers[i] = {"label": one.label, "scores": one.scores} | ({"labels": list(one.labels)} if several else {})
    return answers


def _rerank(model: Model, inputs: list[Query], options: Fields) -> list[Fields]:
    named = _only(options, "stride", "top_k")
    return [{"ranking": [asdict(ranked) for ranked in model.rerank(one.query, one.documents, **named)]} for one in inputs]


def _entities(model: Model, inputs: list[Any], options: Fields) -> list[Fields]:
    return [{"entities": [asdict(entity) for entity in found]} for found in model.entities(inputs, **options)]


def _fill(model: Model, inputs: list[Any], options: Fields) -> list[Fields]:
    return [{"fills": [asdict(one) for one in fills]} for fills in model.fill(inputs, **options)]


def _answer(model: Model, inputs: list[Any], options: Fields) -> list[Fields]:
    spans = model.answer(question=[question for question, _ in inputs], context=[context for _, context in inputs], **options)
    answers = [asdict(span) for span in spans]
    for fields in answers:
        alternatives = [{name: value for name, value in one.items() if name != "alternatives"} for one in fields.pop("alternatives")]
        if options.get("n_best", 1) > 1:
            fields["alternatives"] = alternatives
    return answers


def _line(text: str) -> str:
    return " ".join(text.splitlines())


def _labels(fields: Fields) -> str:
    if "ranking" in fields:
        return "\t".join(f"{one['index']}\t{one['score']:.4f}" for one in fields["ranking"])
    labels = fields.get("labels", [fields["label"]] if fields["label"] is not None else [])
    return "\t".join(f"{label}\t{fields['scores'][label]:.4f}" for label in labels)


def _spans(fields: Fields) -> str:
    return "\t".join(f"{one['label']}\t{one['score']:.4f}\t{_line(one['text'])}" for one in fields["entities"])


def _fills(fields: Fields) -> str:
    return "\t".join(f"{_line(one['token']).strip()}\t{one['score']:.4f}" for one in fields["fills"])


NOTHING = {"text": "", "tokens": [], "score": 0.0, "finish_reason": "empty"}
WRITING = Task(str, _generate, lambda fields: _line(fields["text"]), NOTHING, None)
CHATTING = Task(conversation, _chat, lambda fields: _line(fields["text"]), NOTHING, None)
CLASSIFYING = Task(
    _pairs,
    _classify,
    _labels,
    {"label": None, "scores": {}},
    frozenset({"stride", "candidates", "hypothesis_template", "multi_label", "top_k"}),
)
OTHERS = {
    "embedding": Task(
        str,
        _encode,
        lambda fields: " ".join(f"{x:.6g}" for x in fields["embedding"]),
        {"embedding": []},
        frozenset({"stride", "prompt", "prompt_name", "normalize_embeddings", "truncate_dim"}),
    ),
    "classification": CLASSIFYING,
    "multiple-choice": replace(CLASSIFYING, options=frozenset({"stride", "candidates"})),
    "token-classification": Task(str, _entities, _spans, {"entities": []}, frozenset({"stride", "aggregation"})),
    "fill-mask": Task(str, _fill, _fills, {"fills": []}, frozenset({"stride", "top_k", "targets"})),
    "question-answering": Task(
        _question,
        _answer,
        lambda fields: _line(fields["answer"]),
        {"answer": "", "start": 0, "end": 0, "score": 0.0, "no_answer_score": 0.0},
        frozenset({"stride", "n_best", "no_answer", "max_answer_tokens"}),
    ),
}
OTHER_OPTIONS = frozenset().union(*(task.options or () for task in OTHERS.values())) - {"n_best", "top_k"}  # that generating does not take
