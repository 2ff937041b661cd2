"""config.pbtxt, what Triton has to know of a model, in protobuf's text form.

Source: "Model Configuration" in Triton's documentation, and its model_config.proto.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnxport.serve.kserve.interface import Spec
from onnxport.serve.kserve.tensors import BYTES

BATCH = 32  # requests that Triton hands over together: as many texts as a batch of the runtime has


@dataclass(frozen=True)
class Config:
    """A model for Triton. batched: the first axis of every tensor counts texts, so that Triton may put requests together.

    labels: the file that names the columns of an output, by the output's name.
    """

    name: str
    backend: str
    inputs: Sequence[Spec]
    outputs: Sequence[Spec]
    batched: bool
    device: str
    parameters: Mapping[str, str]
    labels: Mapping[str, str]

    def text(self) -> str:
        """The file's content."""
        lines = [f"name: {_quoted(self.name)}", f"backend: {_quoted(self.backend)}", f"max_batch_size: {BATCH if self.batched else 0}"]
        if self.batched:
            lines.append("dynamic_batching { }")
        lines.append(f"instance_group [ {{ count: 1 kind: {'KIND_GPU' if self.device == 'cuda' else 'KIND_CPU'} }} ]")
        lines += self._tensors("input", self.inputs) + self._tensors("output", self.outputs)
        for key, value in self.parameters.items():
            lines.append(f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}")
        return "\n".join(lines) + "\n"

    def _tensors(self, kind: str, specs: Sequence[Spec]) -> list[str]:
        lines = []
        for one in specs:
            shape = one.shape[1:] or (1,) if self.batched else one.shape  # an axis at least: [texts] is [texts, 1]
            told = f"name: {_quoted(one.name)} data_type: {data_type(one)} dims: [ {', '.join(map(str, shape))} ]"
            if kind == "input" and one.optional:
                told += " optional: true"
            if kind == "input" and self.batched and self.backend == "python" and -1 in shape:
                told += " allow_ragged_batch: true"  # each request is read by itself
            if kind == "output" and one.name in self.labels:
                told += f" label_filename: {_quoted(self.labels[one.name])}"
            lines.append(f"{kind} [ {{ {told} }} ]")
        return lines


def data_type(spec: Spec) -> str:
    """Triton's name of a type in a configuration."""
    return "TYPE_STRING" if spec.datatype == BYTES else f"TYPE_{spec.datatype}"


def _quoted(text: str) -> str:
    return json.dumps(text)
