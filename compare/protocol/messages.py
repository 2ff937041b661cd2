"""Arrays in JSON: `{"dtype", "shape", "base64"}`. NumPy is imported only when an array passes."""

import base64
import sys
import traceback
from dataclasses import asdict
from typing import Any, Protocol

from onnxport.errors import OnnxportError

_KEYS = {"dtype", "shape", "base64"}


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
        if value.keys() == _KEYS:
            import numpy

            data = numpy.frombuffer(base64.b64decode(value["base64"]), dtype=numpy.dtype(value["dtype"]))
            return data.reshape(value["shape"]).copy()
        return {key: unpack(item) for key, item in value.items()}
    if isinstance(value, list):
        return [unpack(item) for item in value]
    return value


METHODS = ("generate", "encode", "classify", "answer", "likelihoods", "score", "run")


class Side(Protocol):
    """What a measured class looks like. Constructing it is cheap; `load` is what load_ms measures.

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


def describe_error(error: BaseException) -> dict[str, Any]:
    """The JSON form of an error; exit_code is 1 for those that are not onnxport's."""
    lines = str(error).splitlines() or [""]
    name = type(error).__name__
    if isinstance(error, OnnxportError):
        name = next(c.__name__ for c in type(error).__mro__ if c.__module__ == OnnxportError.__module__)
    return {
        "class": name,
        "message": lines[0] if isinstance(error, OnnxportError) else " ".join(line.strip() for line in lines)[:500],
        "exit_code": getattr(error, "exit_code", 1),
        "traceback": "".join(traceback.format_exception(error)),
    }


class Answering:
    """What both sides do alike with `model`, which has the methods of a Model for its task."""

    model: Any = None

    def encode(self, inputs: list[Any], **options: Any) -> Any:
        """Texts -> float32 [texts, hidden]."""
        return self.model.encode(_texts(inputs), **options)

    def classify(self, inputs: list[Any], **options: Any) -> list[dict[str, Any]]:
        """Texts, or lists of two -> {"label", "labels" (all that hold), "score" (the label's probability)}."""
        found = self.model.classify(_texts(inputs), **options)
        return [{"label": one.label, "labels": list(one.labels), "score": one.scores[one.label]} for one in found]

    def answer(self, inputs: list[Any], **options: Any) -> list[dict[str, Any]]:
        """{"question", "context"} -> {"answer", "start", "end", "score"}."""
        asked = {name: [one[name] for one in inputs] for name in ("question", "context")}
        found = self.model.answer(**asked, **options)
        return [{name: getattr(one, name) for name in ("answer", "start", "end", "score")} for one in found]

    def likelihoods(self, inputs: list[Any], **options: Any) -> list[dict[str, Any]]:
        """Texts or lists of ids -> {"negative_log", "tokens"}; options: window, stride."""
        return [asdict(one) for one in self.model.likelihoods(inputs, **options)]

    def score(self, inputs: list[Any], **options: Any) -> list[dict[str, Any]]:
        """Lists of [input, target], texts or ids -> the fields of a `Scored`; options: top."""
        found = self.model.score([given for given, _ in inputs], [target for _, target in inputs], **options)
        return [asdict(one) for one in found]

    def run(self, inputs: dict[str, Any], **options: Any) -> dict[str, Any]:
        """Arrays by name in, arrays by name out."""
        outputs: dict[str, Any] = self.model.run(inputs, **options)
        return outputs


def _texts(inputs: list[Any]) -> list[Any]:
    """Pairs, which JSON made lists, as tuples again."""
    return [tuple(one) if isinstance(one, list) else one for one in inputs]


def _result(result: Any) -> dict[str, Any]:
    """text, tokens and score of one generated answer, whether it is a dict or an object."""
    fields: dict[str, Any]
    if isinstance(result, dict):
        fields = {name: result.get(name) for name in ("text", "tokens", "score")}
    else:
        fields = {name: getattr(result, name, None) for name in ("text", "tokens", "score")}
    fields["tokens"] = [int(token) for token in fields["tokens"]]
    return fields
