"""Requests of KServe's open inference protocol over HTTP: metadata, and inference with tensors as JSON values or as bytes behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxport import __version__
from onnxport.serve.errors import ApiError, refused
from onnxport.serve.fields import Fields
from onnxport.serve.kserve.interface import Interface, Spec, asked, interface, options
from onnxport.serve.kserve.tensors import from_bytes, from_json, name_of, to_bytes
from onnxport.serve.kserve.tensors import to_json as values
from onnxport.serve.models import VERSION, Served
from onnxport.serve.sending import Reply, encoded, to_json
from onnxport.serve.service import Call

HEADER = "inference-header-content-length"
EXTENSIONS = ["binary_tensor_data"]
TENSORS, DIMENSIONS = 64, 16


async def server(call: Call) -> Reply:
    """The server's metadata."""
    return to_json({"name": "onnxport", "version": __version__, "extensions": EXTENSIONS})


async def live(call: Call) -> Reply:
    """Whether the server is there."""
    return to_json({"live": True})


async def ready(call: Call) -> Reply:
    """Whether it answers: it listens once all models are loaded."""
    return to_json({"ready": True})


async def model_ready(call: Call) -> Reply:
    """Whether a model is there."""
    return to_json({"name": _served(call).name, "ready": True})


async def metadata(call: Call) -> Reply:
    """A model's tensors."""
    served = _served(call)
    found = interface(served.model)
    told = {"inputs": _specs(found.inputs), "outputs": _specs(found.outputs)}
    return to_json({"name": served.name, "versions": [VERSION], "platform": "onnxport", **told})


async def infer(call: Call) -> Reply:
    """Answer tensors with tensors."""
    served = _served(call)
    head, rest = _split(call)
    fields = Fields.parse(head)
    identifier = fields.take("id", str, default="")
    given = fields.take("parameters", dict, default={})
    inputs = _inputs(fields.required("inputs", list), rest)
    wanted, binary = _outputs(fields.take("outputs", list), given)
    fields.finish()
    found = interface(served.model)
    search = options({name: value for name, value in given.items() if name != "binary_data_output"}, found.options)
    question = asked(served.model, inputs)
    call.limits.check_rows(question.rows, "rows", "inputs")
    new = question.rows * served.new_tokens(search.get("max_new_tokens"))
    await call.charge(served, question.texts, "inputs", question.tokens + new)
    results = await getattr(served.model, f"a{question.method}")(**question.arguments, **search)
    arrays = _chosen(question.tensors(results), wanted, found)
    return _reply(served, identifier, arrays, binary)


def _served(call: Call) -> Served:
    served = call.model(call.path["model"])
    if (version := call.path.get("version", VERSION)) != VERSION:
        raise ApiError(404, f"{served.name} has version {VERSION}, found {version!r:.30}")
    return served


def _specs(specs: Sequence[Spec]) -> list[dict[str, Any]]:
    return [{"name": one.name, "datatype": one.datatype, "shape": list(one.shape)} for one in specs]


def _split(call: Call) -> tuple[bytes, bytes]:
    """The JSON of a request and the bytes of tensors behind it. ApiError."""
    told = call.headers.get(HEADER)
    if told is None:
        return call.body, b""
    if not told.isdecimal() or int(told) > len(call.body):
        raise refused(f"{HEADER} is {told[:30]!r}, expected a number up to the body's {len(call.body)} bytes")
    return call.body[: int(told)], call.body[int(told) :]


def _inputs(items: list[object], rest: bytes) -> dict[str, np.ndarray]:
    """Tensors by name; those whose bytes are behind the JSON take them in their order. ApiError, DataError."""
    if len(items) > TENSORS:
        raise refused(f"found {len(items)} inputs, expected at most {TENSORS}", "inputs")
    found: dict[str, np.ndarray] = {}
    at = 0
    for place, item in enumerate(items):
        fields = Fields(item, f"inputs[{place}]")
        name, datatype = fields.required("name", str), fields.required("datatype", str)
        shape = fields.required("shape", list)
        if len(shape) > DIMENSIONS or not all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in shape):
            raise refused(f"the shape of {name!r:.60} is {shape!r:.60}, expected whole numbers", "inputs")
        if name in found:
            raise refused(f"inputs has {name!r:.60} twice", "inputs")
        parameters = Fields(fields.take("parameters", dict, default={}), "parameters")
        size = parameters.whole("binary_data_size", 0)
        parameters.finish()
        if size is None:
            found[name] = from_json(name, datatype, shape, fields.required("data", list))
        else:
            if at + size > len(rest):
                raise refused(f"{name!r:.60} has {size} bytes, but {len(rest) - at} are left behind the JSON", "inputs")
            found[name] = from_bytes(name, datatype, shape, rest[at : at + size])
            at += size
        fields.finish()
    if at != len(rest):
        raise refused(f"{len(rest) - at} bytes behind the JSON belong to no input")
    return found


def _outputs(items: list[object] | None, given: Mapping[str, Any]) -> tuple[list[str] | None, dict[str | None, bool]]:
    """Names of the outputs that are wanted, None for all, and which of them as bytes; under None what holds for all."""
    usual = given.get("binary_data_output", False)
    if not isinstance(usual, bool):
        raise refused(f"binary_data_output is {usual!r:.30}, expected true or false", "parameters")
    binary: dict[str | None, bool] = {None: usual}
    if not items:
        return None, binary
    names = []
    for place, item in enumerate(items):
        fields = Fields(item, f"outputs[{place}]")
        name = fields.required("name", str)
        parameters = Fields(fields.take("parameters", dict, default={}), "parameters")
        binary[name] = parameters.take("binary_data", bool, default=usual)
        parameters.finish()
        fields.finish()
        names.append(name)
    return names, binary


def _chosen(arrays: dict[str, np.ndarray], wanted: list[str] | None, found: Interface) -> dict[str, np.ndarray]:
    if wanted is None:
        return arrays
    for name in wanted:
        if name not in arrays:
            known = "gives it for other inputs" if name in {spec.name for spec in found.outputs} else "has no such output"
            raise refused(f"outputs names {name!r:.60}, the model {known}; expected {', '.join(arrays)}", "outputs")
    return {name: arrays[name] for name in wanted}


def _reply(served: Served, identifier: str, arrays: Mapping[str, np.ndarray], binary: Mapping[str | None, bool]) -> Reply:
    outputs, behind = [], []
    for name, array in arrays.items():
        told: dict[str, Any] = {"name": name, "datatype": name_of(array), "shape": list(array.shape)}
        if binary.get(name, binary[None]):
            behind.append(to_bytes(array))
            told["parameters"] = {"binary_data_size": len(behind[-1])}
        else:
            told["data"] = values(array)
        outputs.append(told)
    answer = {"model_name": served.name, "model_version": VERSION, **({"id": identifier} if identifier else {}), "outputs": outputs}
    head = encoded(answer)
    if not behind:
        return Reply(head)
    return Reply(b"".join([head, *behind]), "application/octet-stream", headers={HEADER: str(len(head))})
