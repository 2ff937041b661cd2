"""INT8 with one scale per row of activations and one per column of weights: for encoders, prefill and plain modules.

A row's answer does not depend on the rows beside it, to the last bit: its scale is made of itself alone.
The kernel multiplies uint8 (zero point 128) by int8. Processors without VNNI may add pairs of products in 16 bits, which saturate at
extreme values; int8 activations would avoid that, but are many times slower where VNNI exists.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxport.quantize.fusion.core import constant, dims, new_node, take_over
from onnxport.quantize.linear import Linear

SMALLEST = 1e-30  # stands for the largest magnitude of a row of zeros, which would divide 0 by 0
Quantized = tuple[ir.Value, ir.Value]  # uint8 [..., K] and its scale float [..., 1]


def quantize_columns(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """weight float [K, N] -> int8 [K, N] in -127..127, scale float [N]; symmetric, a column of zeros has scale 1."""
    largest = np.abs(weight).max(0)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.rint(weight / scale).clip(-127, 127).astype(np.int8), scale


def quantize_rows(graph: ir.Graph, before: ir.Node, x: ir.Value) -> Quantized:
    """Nodes that turn x [..., K] into uint8 around 128 and a scale per row; to be shared by all products that read x."""
    shape = dims(x)
    row = ir.Shape([*x.shape[:-1], 1]) if shape is not None and x.shape is not None else None

    def step(op: str, inputs: list[ir.Value], suffix: str, **attributes: object) -> ir.Value:
        whole = suffix in ("magnitude", "ratio", "uint8")
        kind = ir.TensorType(ir.DataType.UINT8 if suffix == "uint8" else ir.DataType.FLOAT)
        like = ir.Value(name=f"{x.name}/rows/{suffix}", type=kind, shape=x.shape if whole else row)
        return new_node(graph, before, op, inputs, attributes, [like], domain="").outputs[0]

    largest = step(
        "ReduceMax", [step("Abs", [x], "magnitude"), constant(graph, "axis_last", np.array([-1], np.int64))], "largest", keepdims=1
    )
    largest = step("Max", [largest, constant(graph, "row_smallest", np.float32(SMALLEST))], "range")
    scale = step("Mul", [largest, constant(graph, "row_unit", np.float32(1 / 127))], "scale")
    one, zero = constant(graph, "row_one", np.float32(1)), constant(graph, "row_zero", np.uint8(128))
    return step("QuantizeLinear", [step("Div", [x, scale], "ratio"), one, zero], "uint8"), scale


def replace(graph: ir.Graph, linear: Linear, quantized: Quantized) -> None:
    weight, scale = quantize_columns(linear.weight)
    name = linear.node.outputs[0].name
    inputs = [
        quantized[0],
        constant(graph, f"{name}/int8", weight),
        constant(graph, "row_one", np.float32(1)),
        constant(graph, f"{name}/column_scale", scale),
        constant(graph, "row_zero", np.uint8(128)),
    ]
    out = linear.output
    kind = ir.TensorType(ir.DataType.FLOAT)
    product = ir.Value(name=f"{name}/product", type=kind, shape=out.shape)
    y = new_node(graph, linear.node, "MatMulIntegerToFloat", inputs, {}, [product]).outputs[0]
    scaled = out if linear.bias is None else ir.Value(name=f"{name}/scaled", type=kind, shape=out.shape)
    y = new_node(graph, linear.node, "Mul", [y, quantized[1]], {}, [scaled], domain="").outputs[0]
    if linear.bias is not None:
        y = new_node(graph, linear.node, "Add", [y, linear.bias], {}, [out], domain="").outputs[0]
    take_over(out, y)
