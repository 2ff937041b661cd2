"""A bundle in Triton's Python backend: this file stands beside the folder `bundle` in a model repository.

Triton calls it in a process of its own, where `pip install onnxport[cpu]` must have been.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from onnxport.errors import OnnxportError, Refused, UsageError, one_line
from onnxport.runtime import load
from onnxport.serve.kserve.interface import asked, interface, options


class TritonPythonModel:
    """What Triton makes one of for each instance, and hands batches of requests."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the bundle, as the model's parameters say."""
        config = json.loads(args["model_config"])
        given = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
        threads = given.get("threads")
        self.model = load(
            Path(__file__).parent / "bundle",
            precision=given["precision"],
            device=given["device"],
            threads=None if threads is None else int(threads),
            verify=True,
        )
        self.batched = int(config["max_batch_size"]) > 0
        self.outputs = [output["name"] for output in config["output"]]
        self.interface = interface(self.model)
        self.pool = ThreadPoolExecutor(max(1, int(config["max_batch_size"])), "requests")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """A response to each request; texts of all of them share the runtime's batches."""
        answers = list(self.pool.map(self._answer, [self._read(request) for request in requests]))
        return [self._response(request, answer) for request, answer in zip(requests, answers, strict=True)]

    def finalize(self) -> None:
        """Free the model."""
        self.pool.shutdown()
        self.model.close()

    def _read(self, request: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        found = {spec.name: pb_utils.get_input_tensor_by_name(request, spec.name) for spec in self.interface.inputs}
        inputs = {name: tensor.as_numpy() for name, tensor in found.items() if tensor is not None}
        return inputs, json.loads(request.parameters() or "{}")

    def _answer(self, request: tuple[dict[str, np.ndarray], dict[str, Any]]) -> dict[str, np.ndarray] | Exception:
        inputs, parameters = request
        try:
            search = options(parameters, self.interface.options)
            question = asked(self.model, inputs)
            return question.tensors(getattr(self.model, question.method)(**question.arguments, **search))
        except Exception as error:
            return error

    def _response(self, request: Any, answer: dict[str, np.ndarray] | Exception) -> Any:
        if isinstance(answer, Exception):
            theirs = isinstance(answer, Refused | UsageError)
            code = pb_utils.TritonError.INVALID_ARG if theirs else pb_utils.TritonError.INTERNAL
            told = one_line(answer) if isinstance(answer, OnnxportError) else f"internal error: {type(answer).__name__}: {one_line(answer)}"
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(told, code))
        wanted = set(request.requested_output_names()) or set(self.outputs)
        shaped = partial(np.expand_dims, axis=1)
        arrays = {name: shaped(array) if self.batched and array.ndim == 1 else array for name, array in answer.items() if name in wanted}
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(name, array) for name, array in arrays.items()])
