"""The messages between a comparison and its sides: methods, the shape of a side and of its answers, arrays and errors in JSON.

An array is `{"dtype", "shape", "base64"}` in JSON. NumPy is imported only when an array passes: a side's memory is its own.
"""

import base64
import sys
import traceback
from dataclasses import asdict
from typing import Any, Protocol

from onnxport.errors import OnnxportError, one_line

METHODS = (
    *("generate", "encode", "classify", "choose", "rerank", "entities", "tags", "fill", "answer"),
    *("likelihoods", "score", "run"),
)


class Side(Protocol):
    """A class that can be measured; it has those of METHODS that it can offer. Constructing it is cheap, `load` is what load_ms measures.

    imports: modules to import before `load`; their time is import_ms.
    about: optional method, a dict that may hold "versions", "device" and "size_bytes"; called after load.
    parity: optional method, differences from the golden answers.
    """

    imports: tuple[str, ...]

    def load(self) -> None:
        """Makes the side ready to answer."""
        ...

    def generate(self, inputs: list[Any], **options: Any) -> list[dict[str, Any]]:
        """Texts or lists of token ids in; a dict an input out: "tokens" (new ids, list of int) and "text" (None without a tokenizer)."""
        ...

    def encode(self, inputs: list[Any], **options: Any) -> list[list[float]]:
        """Texts in, a vector an input out."""
        ...

    def run(self, inputs: dict[str, Any], **options: Any) -> dict[str, Any]:
        """Arrays by name in, arrays by name out."""
        ...


class AnsweringSide:
    """Base of the sides with a `model` that has the methods of a `Model` for its task."""

    model: Any = None

    def encode(self, inputs: list[Any], **options: Any) -> Any:
        """Texts -> float32 [texts, hidden]."""
        return self.model.encode(_texts(inputs), **options)

    def classify(self, inputs: list[Any], **options: Any) -> list[dict[str, Any]]:
        """Texts, or lists of two -> {"label", "labels" (all that hold), "score" (the label's probability)}."""
        results = self.model.classify(_texts(inputs), **options)
        return [{"label": one.label, "labels": list(one.labels), "score": one.scores[one.label]} for one in results]

    def choose(self, inputs: list[Any], **options: Any) -> list[dict[str, Any]]:
        """{"text", "candidates"} -> {"label", "score"}: the best candidate; inputs with the same candidates together."""
        answers: list[dict[str, Any]] = [{}] * len(inputs)
        for candidates in dict.fromkeys(tuple(one["candidates"]) for one in inputs):
            places = [i for i, one in enumerate(inputs) if tuple(one["candidates"]) == candidates]
            found = self.model.classify([inputs[i]["text"] for i in places], candidates=candidates, **options)
            for i, one in zip(places, found, strict=True):
                answers[i] = {"label": one.label, "score": one.scores[one.label]}
        return answers

    def rerank(self, inputs: list[Any], **options: Any) -> list[dict[str, Any]]:
        """{"query", "documents"} -> {"ranking": places of the documents, best first, "scores": of the documents as they stood}."""
        answers = []
        for one in inputs:
            ranked = self.model.rerank(one["query"], one["documents"], **options)
            answers.append({"ranking": [r.index for r in ranked], "scores": [r.score for r in sorted(ranked, key=lambda r: r.index)]})
        return answers

    def entities(self, inputs: list[Any], **options: Any) -> list[dict[str, Any]]:
        """Texts -> {"entities": [[label, start, end], ...]}, whole words by their first token."""
        found = self.model.entities(inputs, aggregation="first", **options)
        return [{"entities": [[one.label, one.start, one.end] for one in entities]} for entities in found]

    def tags(self, inputs: list[Any], **options: Any) -> list[dict[str, Any]]:
        """Lists of words -> {"tags": one a word}."""
        return [{"tags": tags} for tags in self.model.tags(inputs, **options)]

    def fill(self, inputs: list[Any], **options: Any) -> list[dict[str, Any]]:
        """Texts with a mask -> {"label": the best token, without space around it, "score"}; of several masks the first."""
        found = self.model.fill(inputs, top_k=1, **options)
        return [{"label": fills[0].token.strip(), "score": fills[0].score} for fills in found]

    def answer(self, inputs: list[Any], **options: Any) -> list[dict[str, Any]]:
        """{"question", "context"} -> {"answer", "start", "end", "score"}."""
        fields = {name: [one[name] for one in inputs] for name in ("question", "context")}
        answers = self.model.answer(**fields, **options)
        return [{name: getattr(one, name) for name in ("answer", "start", "end", "score")} for one in answers]

    def likelihoods(self, inputs: list[Any], **options: Any) -> list[dict[str, Any]]:
        """Texts or lists of ids -> {"negative_log", "tokens"}; options: window, stride."""
        return [asdict(one) for one in self.model.likelihoods(inputs, **options)]

    def score(self, inputs: list[Any], **options: Any) -> list[dict[str, Any]]:
        """Lists of [input, target], texts or ids -> the fields of a `Scored`; options: top."""
        scores = self.model.score([source for source, _ in inputs], [target for _, target in inputs], **options)
        return [asdict(one) for one in scores]

    def run(self, inputs: dict[str, Any], **options: Any) -> dict[str, Any]:
        """Arrays by name in, arrays by name out."""
        outputs: dict[str, Any] = self.model.run(inputs, **options)
        return outputs


def generated_answer(result: Any) -> dict[str, Any]:
    """One generated answer as {"text", "tokens", "score"}, whether `result` is a dict or an object."""
    fields: dict[str, Any]
    if isinstance(result, dict):
        fields = {name: result.get(name) for name in ("text", "tokens", "score")}
    else:
        fields = {name: getattr(result, name, None) for name in ("text", "tokens", "score")}
    fields["tokens"] = [int(token) for token in fields["tokens"]]
    return fields


def _texts(inputs: list[Any]) -> list[Any]:
    """Pairs, which JSON made lists, as tuples again."""
    return [tuple(one) if isinstance(one, list) else one for one in inputs]


_ARRAY_KEYS = {"dtype", "shape", "base64"}


def pack(value: Any) -> Any:
    """`value` with every array and NumPy scalar in it made ready for JSON."""
    if isinstance(value, dict):
        return {str(key): pack(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [pack(item) for item in value]
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray):
        data = base64.b64encode(numpy.ascontiguousarray(value).tobytes()).decode("ascii")
        return {"dtype": value.dtype.str, "shape": list(value.shape), "base64": data}
    if numpy is not None and isinstance(value, numpy.generic):
        return value.item()
    return value


def unpack(value: Any) -> Any:
    """The inverse of `pack` for containers and arrays. Arrays that are there already stay as they are."""
    if isinstance(value, dict):
        if value.keys() == _ARRAY_KEYS:
            import numpy

            data = numpy.frombuffer(base64.b64decode(value["base64"]), dtype=numpy.dtype(value["dtype"]))
            return data.reshape(value["shape"]).copy()
        return {key: unpack(item) for key, item in value.items()}
    if isinstance(value, list):
        return [unpack(item) for item in value]
    return value


def describe_error(error: BaseException) -> dict[str, Any]:
    """The JSON form of an error; exit_code is 1 for those that are not onnxport's."""
    name = type(error).__name__
    if isinstance(error, OnnxportError):
        name = next(c.__name__ for c in type(error).__mro__ if c.__module__ == OnnxportError.__module__)
    return {
        "class": name,
        "message": one_line(error, longest=500),
        "exit_code": getattr(error, "exit_code", 1),
        "traceback": "".join(traceback.format_exception(error)),
    }
