"""INT8 weights with a scale per column, and activations with a scale per row or one that calibration gives.

By rows, a row's answer does not depend on the rows beside it, to the last bit: its scale is made of itself alone. What an activation
function made is nowhere far below zero, so that nearly all codes are for values above it: see `Sides`.
The kernel multiplies uint8 by int8. Processors without VNNI may add pairs of products in 16 bits, which saturate at
extreme values: 2 * 255 * 127 > 32767. Int8 activations would avoid that, but are many times slower where VNNI exists; weights of a
reduced range, -64..64, avoid it everywhere, for 2 * 255 * 64 = 32640.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxport.graph.edit import array_of, attribute, constant, dims, new_node, take_over
from onnxport.graph.lazy import mapped
from onnxport.quantize.plan import Scheme
from onnxport.quantize.schemes.blocks.rounding import PIECE, stored_step
from onnxport.quantize.schemes.linear import Linear, Lookup

FULL, REDUCED = 127, 64  # the largest magnitude of a weight
BELOW_ZERO = 64  # codes below zero, where an activation function leaves little there: fewer would cost rows of small values too much
SILU = 0.2785  # how far below zero x times its sigmoid can be
# The same of other activation functions.
LOWEST = {"Relu": 0.0, "Sigmoid": 0.0, "Softmax": 0.0, "Gelu": 0.1701, "FastGelu": 0.1701, "BiasGelu": 0.1701}


@dataclass(frozen=True)
class Sides:
    """How uint8 holds a row that was divided by its largest value: `zero` codes are below zero, and all others above.

    least: how far below zero a value can be; None where there is no such bound, and the largest value is the largest magnitude.
    """

    least: float | None = None

    @property
    def zero(self) -> int:
        """The code of zero."""
        return 128 if self.least is None else BELOW_ZERO if self.least else 0

    @property
    def steps(self) -> int:
        """Codes from zero to the largest value."""
        return 255 - self.zero

    @property
    def floor(self) -> float:
        """What the largest value of a row counts as at least, so that what is below zero has codes too."""
        return self.least * self.steps / self.zero if self.least else 0.0

    def scaled_by(self, factor: float) -> Sides:
        """Those of values that are multiplied by positive numbers up to `factor`."""
        return self if self.least is None else Sides(self.least * factor)

    def rounded(self, x: np.ndarray) -> np.ndarray:
        """x [..., K] as it is after rounding, float32."""
        largest = np.abs(x).max(-1, keepdims=True) if self.least is None else np.maximum(x.max(-1, keepdims=True), self.floor)
        step = np.maximum(largest, np.float32(1e-30)) / self.steps
        found: np.ndarray = (np.rint(x / step).clip(-self.zero, 255 - self.zero) * step).astype(np.float32)
        return found


@dataclass(frozen=True)
class Quantized:
    """An activation in 8 bits: uint8 [..., K], and the largest value of each row, float [..., 1]."""

    codes: ir.Value
    largest: ir.Value
    sides: Sides


def sides_of(x: ir.Value) -> Sides:
    """By what makes x: an activation function, perhaps with its channels multiplied by positive constants."""
    node = x.producer()
    if node is None:
        return Sides()
    if node.op_type in LOWEST:
        return Sides(LOWEST[node.op_type])
    if node.op_type == "QuickGelu":  # x times the sigmoid of alpha times x
        return Sides(SILU / float(attribute(node, "alpha", 1.702)))
    if node.op_type != "Mul":
        return Sides()
    given = [value for value in node.inputs if value is not None]
    for value, other in (given, given[::-1]):
        factor, gate = array_of(other), other.producer()
        if gate is not None and gate.op_type == "Sigmoid" and gate.inputs[0] is value:
            return Sides(SILU)
        if factor is not None and (factor > 0).all():
            return sides_of(value).scaled_by(float(factor.max()))
    return Sides()


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
    """Nodes that turn x [..., K] into uint8 and the largest value of each row; to be shared by all products that read x.

    A row of zeros may divide 0 by 0; whatever integers come of that, its scale 0 makes the product 0 again.
    """
    shape, sides = dims(x), sides_of(x)
    row = ir.Shape([*x.shape[:-1], 1]) if shape is not None and x.shape is not None else None

    def step(op: str, inputs: list[ir.Value], suffix: str, like: ir.Shape | None, **attributes: object) -> ir.Value:
        kind = ir.TensorType(ir.DataType.UINT8 if suffix == "uint8" else ir.DataType.FLOAT)
        value = ir.Value(name=f"{x.name}/rows/{suffix}", type=kind, shape=like)
        return new_node(graph, before, op, inputs, attributes, [value], domain="").outputs[0]

    last = constant(graph, "axis_last", np.array([-1], np.int64))
    sized = x if sides.least is not None else step("Abs", [x], "magnitude", x.shape)
    largest = step("ReduceMax", [sized, last], "largest", row, keepdims=1)
    if sides.floor:
        floor = constant(graph, f"{x.name}/rows/floor", np.float32(sides.floor))
        largest = step("Max", [largest, floor], "at_least", row)
    unit, zero = _unit(graph, sides)
    return Quantized(step("QuantizeLinear", [step("Div", [x, largest], "ratio", x.shape), unit, zero], "uint8", x.shape), largest, sides)


def _unit(graph: ir.Graph, sides: Sides) -> tuple[ir.Value, ir.Value]:
    """Scale and zero point of a row that was divided by its largest value."""
    unit, zero = constant(graph, f"row_unit/{sides.steps}", np.float32(1 / sides.steps)), np.uint8(sides.zero)
    return unit, constant(graph, f"row_zero/{sides.zero}", zero)


def replace_rows(graph: ir.Graph, linear: Linear, quantized: Quantized, chosen: Scheme) -> None:
    """Put a product of integers in the place of a product."""
    weight, scale = quantize_columns(linear.weight, chosen)
    name = linear.node.outputs[0].name
    unit, zero = _unit(graph, quantized.sides)
    columns = constant(graph, f"{name}/column_scale", scale)
    inputs = [quantized.codes, stored(graph, linear, weight), unit, columns, zero]
    out = linear.output
    kind = ir.TensorType(ir.DataType.FLOAT)
    product = ir.Value(name=f"{name}/product", type=kind, shape=out.shape)
    y = new_node(graph, linear.node, "MatMulIntegerToFloat", inputs, {}, [product]).outputs[0]
    scaled = out if linear.bias is None else ir.Value(name=f"{name}/scaled", type=kind, shape=out.shape)
    y = new_node(graph, linear.node, "Mul", [y, quantized.largest], {}, [scaled], domain="").outputs[0]
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


@dataclass(frozen=True)
class Activation:
    """An activation in 8 bits by one scale: uint8 [..., K], its scale and its zero point."""

    codes: ir.Value
    scale: ir.Value
    zero: ir.Value


def grid(limits: tuple[float, float]) -> tuple[np.float32, np.uint8]:
    """The step and the zero point of 8 bits that hold `limits` and 0."""
    low, high = min(limits[0], 0.0), max(limits[1], 0.0)
    step = np.float32((high - low) / 255 or 1)
    return step, np.uint8(np.clip(np.rint(-low / step), 0, 255))


def rounded(x: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """x as it is after rounding to the codes that hold `limits`, float32."""
    step, zero = grid(limits)
    found: np.ndarray = ((np.rint(x / step) + np.float32(zero)).clip(0, 255) - np.float32(zero)) * step
    return found


def quantize_activation(graph: ir.Graph, before: ir.Node, x: ir.Value, limits: tuple[float, float], method: str) -> Activation:
    """x as uint8, with one scale and zero point for `limits`; to be shared by all products that read x by this method."""
    step, zero = grid(limits)
    name = f"{x.name}/{method}"
    scale, point = constant(graph, f"{name}/scale", step), constant(graph, f"{name}/zero", zero)
    codes = ir.Value(name=f"{name}/uint8", type=ir.TensorType(ir.DataType.UINT8), shape=x.shape)
    return Activation(new_node(graph, before, "QuantizeLinear", [x, scale, point], {}, [codes], domain="").outputs[0], scale, point)


def replace_static(graph: ir.Graph, linear: Linear, x: Activation, chosen: Scheme) -> None:
    """Put a product of what was quantized in the place of a product; the kernel adds the bias as it writes the result."""
    weight, scale = quantize_columns(linear.weight, chosen)
    name = linear.node.outputs[0].name
    scales = constant(graph, f"{name}/column_scale", scale if chosen.per_channel else scale[0])
    # Zero points are told: where ONNX Runtime makes weights uint8 (see onnxport.runtime.processor) it would add one for all columns.
    zeros = constant(graph, f"{name}/column_zero", np.zeros_like(scale if chosen.per_channel else scale[0], np.int8))
    inputs: list[ir.Value | None] = [x.codes, stored(graph, linear, weight), x.scale, scales, x.zero, zeros]
    out = linear.output
    product = ir.Value(name=f"{name}/product", type=ir.TensorType(ir.DataType.FLOAT), shape=out.shape)
    bias = [] if linear.bias is None else [linear.bias]
    take_over(out, new_node(graph, linear.node, "MatMulIntegerToFloat", [*inputs, *bias], {}, [product]).outputs[0])
