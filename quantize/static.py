"""INT8 with scales of activations from calibration, in the QDQ form that ONNX Runtime fuses into integer products."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxport.quantize.fusion.core import constant, new_node, take_over
from onnxport.quantize.linear import Linear
from onnxport.quantize.plan import Scheme
from onnxport.quantize.rows import quantize_columns, stored


def grid(limits: tuple[float, float]) -> tuple[np.float32, np.uint8]:
    """The step and the zero point of 8 bits that hold `limits` and 0."""
    low, high = min(limits[0], 0.0), max(limits[1], 0.0)
    step = np.float32((high - low) / 255 or 1)
    return step, np.uint8(np.clip(np.rint(-low / step), 0, 255))


def quantize_activation(graph: ir.Graph, before: ir.Node, x: ir.Value, limits: tuple[float, float], method: str) -> ir.Value:
    """x as uint8 and back, with one scale and zero point for `limits`; to be shared by all products that read x by this method."""
    step, zero = grid(limits)
    name = f"{x.name}/{method}"
    scale, point = constant(graph, f"{name}/scale", step), constant(graph, f"{name}/zero", zero)
    small = ir.Value(name=f"{name}/uint8", type=ir.TensorType(ir.DataType.UINT8), shape=x.shape)
    y = new_node(graph, before, "QuantizeLinear", [x, scale, point], {}, [small], domain="").outputs[0]
    back = ir.Value(name=f"{name}/float", type=ir.TensorType(ir.DataType.FLOAT), shape=x.shape)
    return new_node(graph, before, "DequantizeLinear", [y, scale, point], {}, [back], domain="").outputs[0]


def replace(graph: ir.Graph, linear: Linear, x: ir.Value, chosen: Scheme) -> None:
    """Put a product of what was quantized in the place of a product."""
    weight, scale = quantize_columns(linear.weight, chosen)
    name = linear.node.outputs[0].name
    scales = constant(graph, f"{name}/column_scale", scale if chosen.per_channel else scale[0])
    back = ir.Value(name=f"{name}/weight", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(weight.shape))
    # Zero points are told: where ONNX Runtime makes weights uint8 (see onnxport.runtime.products) it would add one for all columns.
    zeros = constant(graph, f"{name}/column_zero", np.zeros_like(scales.const_value.numpy(), np.int8))
    inputs, attributes = [stored(graph, linear, weight), scales, zeros], {"axis": 1} if chosen.per_channel else {}
    w = new_node(graph, linear.node, "DequantizeLinear", inputs, attributes, [back], domain="").outputs[0]
    out = linear.output
    like = out if linear.bias is None else ir.Value(name=f"{name}/product", type=ir.TensorType(ir.DataType.FLOAT), shape=out.shape)
    y = new_node(graph, linear.node, "MatMul", [x, w], {}, [like], domain="").outputs[0]
    if linear.bias is not None:
        y = new_node(graph, linear.node, "Add", [y, linear.bias], {}, [out], domain="").outputs[0]
    take_over(out, y)
