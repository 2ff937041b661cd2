"""INT8 weights with a scale per column, and activations with a scale per row or one that calibration gives.

By rows, a row's answer does not depend on the rows beside it, to the last bit: its scale is made of itself alone.
The kernel multiplies uint8 (zero point 128) by int8. Processors without VNNI may add pairs of products in 16 bits, which saturate at
extreme values: 2 * 255 * 127 > 32767. Int8 activations would avoid that, but are many times slower where VNNI exists; weights of a
reduced range, -64..64, avoid it everywhere, for 2 * 255 * 64 = 32640.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxport.graph.edit import constant, dims, new_node, take_over
from onnxport.graph.lazy import mapped
from onnxport.quantize.plan import Scheme
from onnxport.quantize.schemes.blocks.rounding import PIECE, stored_step
from onnxport.quantize.schemes.linear import Linear, Lookup

FULL, REDUCED = 127, 64  # the largest magnitude of a weight
UNIT = np.float32(1 / 127)  # of an activation once its row is divided by its largest magnitude
Quantized = tuple[ir.Value, ir.Value]  # uint8 [..., K] and the largest magnitude of each row, float [..., 1]


def quantize_columns(weight: np.ndarray, chosen: Scheme) -> tuple[np.ndarray, np.ndarray]:
    """weight float [K, N] -> int8 [K, N] in -127..127 (reduced: -64..64), scale float [N]; symmetric, a column of zeros has scale 1.

    A scheme that is not per channel has the same scale in all columns. Columns that are multiples of one number already, as those of a
    model that was stored in 8 bit are, stay just that.
    """
    if not chosen.per_channel or weight.size <= PIECE:
        return _quantize_columns(weight, chosen)
    codes, scale = np.empty_like(weight, np.int8), np.empty(weight.shape[1], np.float32)
    step = max(1, PIECE // weight.shape[0])
    for i in range(0, weight.shape[1], step):
        codes[:, i : i + step], scale[i : i + step] = _quantize_columns(weight[:, i : i + step], chosen)
    return codes, scale


def _quantize_columns(weight: np.ndarray, chosen: Scheme) -> tuple[np.ndarray, np.ndarray]:
    levels = REDUCED if chosen.reduced else FULL
    largest = np.abs(weight).max(0)
    largest = largest if chosen.per_channel else np.full_like(largest, largest.max(initial=0))
    scale = np.where(largest > 0, largest / levels, 1).astype(np.float32)
    if chosen.per_channel:
        scale = np.where(np.isnan(step := stored_step(weight, levels)), scale, step)
    return np.rint(weight / scale).clip(-levels, levels).astype(np.int8), scale


def stored(graph: ir.Graph, linear: Linear, weight: np.ndarray) -> ir.Value:
    """int8 [K, N] as a value; a weight stored as [N, K], as tied embeddings are, stays so stored and is turned when it is loaded."""
    name = linear.node.outputs[0].name
    if not linear.transposed:
        return constant(graph, f"{name}/int8", mapped(weight))
    table = constant(graph, f"{name}/int8", mapped(weight.T))
    turned = ir.Value(name=f"{name}/transposed", type=ir.TensorType(ir.DataType.INT8), shape=ir.Shape(weight.shape))
    return new_node(graph, linear.node, "Transpose", [table], {"perm": [1, 0]}, [turned], domain="").outputs[0]


def quantize_rows(graph: ir.Graph, before: ir.Node, x: ir.Value) -> Quantized:
    """Nodes that turn x [..., K] into uint8 around 128 and its largest magnitude per row; to be shared by all products that read x.

    A row of zeros divides 0 by 0; whatever integers come of that, its scale 0 makes the product 0 again.
    """
    shape = dims(x)
    row = ir.Shape([*x.shape[:-1], 1]) if shape is not None and x.shape is not None else None

    def step(op: str, inputs: list[ir.Value], suffix: str, **attributes: object) -> ir.Value:
        kind = ir.TensorType(ir.DataType.UINT8 if suffix == "uint8" else ir.DataType.FLOAT)
        like = ir.Value(name=f"{x.name}/rows/{suffix}", type=kind, shape=row if suffix == "largest" else x.shape)
        return new_node(graph, before, op, inputs, attributes, [like], domain="").outputs[0]

    last = constant(graph, "axis_last", np.array([-1], np.int64))
    largest = step("ReduceMax", [step("Abs", [x], "magnitude"), last], "largest", keepdims=1)
    unit, zero = constant(graph, "row_unit", UNIT), constant(graph, "row_zero", np.uint8(128))
    return step("QuantizeLinear", [step("Div", [x, largest], "ratio"), unit, zero], "uint8"), largest


def replace_rows(graph: ir.Graph, linear: Linear, quantized: Quantized, chosen: Scheme) -> None:
    """Put a product of integers in the place of a product."""
    weight, scale = quantize_columns(linear.weight, chosen)
    name = linear.node.outputs[0].name
    inputs = [
        quantized[0],
        stored(graph, linear, weight),
        constant(graph, "row_unit", UNIT),
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


def replace_lookup(graph: ir.Graph, lookup: Lookup, chosen: Scheme) -> None:
    """Gather integers and their rows' scales; the same bytes as those of a tied projection."""
    weight, scale = quantize_columns(lookup.rows.T, chosen)
    out = lookup.node.outputs[0]
    name, kind = out.name, ir.TensorType(ir.DataType.FLOAT)
    shape = dims(lookup.ids)
    row = None if shape is None or lookup.ids.shape is None else ir.Shape([*lookup.ids.shape, 1])

    def step(op: str, inputs: list[ir.Value], suffix: str, of: ir.Shape | None, type_: ir.TensorType = kind, **given: object) -> ir.Value:
        like = ir.Value(name=f"{name}/{suffix}", type=type_, shape=of)
        return new_node(graph, lookup.node, op, inputs, given, [like], domain="").outputs[0]

    table = constant(graph, f"{name}/table", mapped(weight.T))
    rows = step("Gather", [table, lookup.ids], "int8", out.shape, ir.TensorType(ir.DataType.INT8), axis=0)
    scales = step("Gather", [constant(graph, f"{name}/row_scale", scale[:, None]), lookup.ids], "scale", row, axis=0)
    y = new_node(graph, lookup.node, "Mul", [step("Cast", [rows], "float", out.shape, to=ir.DataType.FLOAT), scales], {}, [out], domain="")
    take_over(out, y.outputs[0])


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


def replace_static(graph: ir.Graph, linear: Linear, x: ir.Value, chosen: Scheme) -> None:
    """Put a product of what was quantized in the place of a product."""
    weight, scale = quantize_columns(linear.weight, chosen)
    name = linear.node.outputs[0].name
    scales = constant(graph, f"{name}/column_scale", scale if chosen.per_channel else scale[0])
    back = ir.Value(name=f"{name}/weight", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(weight.shape))
    # Zero points are told: where ONNX Runtime makes weights uint8 (see onnxport.runtime.processor) it would add one for all columns.
    zeros = constant(graph, f"{name}/column_zero", np.zeros_like(scales.const_value.numpy(), np.int8))
    inputs, attributes = [stored(graph, linear, weight), scales, zeros], {"axis": 1} if chosen.per_channel else {}
    w = new_node(graph, linear.node, "DequantizeLinear", inputs, attributes, [back], domain="").outputs[0]
    out = linear.output
    like = out if linear.bias is None else ir.Value(name=f"{name}/product", type=ir.TensorType(ir.DataType.FLOAT), shape=out.shape)
    y = new_node(graph, linear.node, "MatMul", [x, w], {}, [like], domain="").outputs[0]
    if linear.bias is not None:
        y = new_node(graph, linear.node, "Add", [y, linear.bias], {}, [out], domain="").outputs[0]
    take_over(out, y)
