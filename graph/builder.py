"""A small ONNX graph written node by node."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

OPSET = 18
IR_VERSION = 10


class GraphBuilder:
    """A graph under construction; names are counted, so the same calls give the same bytes. Methods give the names of values."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, kind: int, shape: list[str | int] | None) -> str:
        """An input of a TensorProto type."""
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def optional(self, name: str, value: object, kind: type, shape: list[str | int]) -> str:
        """An input that has a value of NumPy type `kind` where a feed leaves it out."""
        self.input(name, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), shape)
        self.constants[name] = numpy_helper.from_array(np.asarray(value, dtype=kind), name)
        return name

    def output(self, name: str, value: str, kind: int, shape: list[str | int] | None) -> None:
        """An output that is `value`."""
        self.nodes.append(helper.make_node("Identity", [value], [name]))
        self.outputs.append(helper.make_tensor_value_info(name, kind, shape))

    def constant(self, value: object, kind: type) -> str:
        """A constant of a NumPy type; equal ones are one."""
        array: np.ndarray = np.asarray(value, dtype=kind)
        name = f"c_{array.dtype}_{'x'.join(map(str, array.shape))}_{array.tolist()}"
        self.constants.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> list[str]:
        """A node with so many outputs."""
        names = [f"{kind}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names

    def one(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output."""
        return self.op(kind, *inputs, **attributes)[0]

    def serialize(self) -> bytes:
        """The checked graph."""
        graph = helper.make_graph(self.nodes, self.name, self.inputs, self.outputs, list(self.constants.values()))
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="onnxport")
        onnx.checker.check_model(model, full_check=True)
        data: bytes = model.SerializeToString(deterministic=True)
        return data
