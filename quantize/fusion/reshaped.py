"""Shapes behind Reshapes whose targets are read from other values' shapes, as TorchScript's exporter writes them.

ONNX's inference knows of such a target only its constant entries. Heads are told by what is left: [batch, length, 64] as
[batch, length, -1, 16] has 4 of them.
"""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from onnxport.graph.edit import attribute, dims, is_op, source
from onnxport.graph.normalize import name_shapes
from onnxport.quantize.fusion.attention.softmax_attention import extents

PASSES = 3  # each tells what the next one needs: projections, what attention reads, its answer
UNKNOWN = "unk__"  # how ONNX's inference names sizes that it does not know


def name_reshaped(model: ir.Model) -> None:
    """Fill in the shapes of Reshapes' results as far as their targets tell, and what follows from them; edits `model`."""
    told: set[ir.Value] = set()
    for number in range(PASSES):
        changed = False
        for node in model.graph:
            value = node.outputs[0]
            if is_op(node, "Reshape") and value not in told and _open(dims(value)) and (shape := _reshaped(node)) is not None:
                # Inference counts its unknown sizes anew: those of this pass need names of their own, or they seemed equal to others.
                value.shape = ir.Shape([f"told{number}_{size}" if _is_unknown(size) else size for size in shape])
                told.add(value)
                changed = True
        if not changed:
            return
        for value in (value for node in model.graph for value in node.outputs):
            if value not in told and not value.is_graph_output() and _open(dims(value)):
                value.shape = None
        name_shapes(model)


def _open(shape: tuple[int | str, ...] | None) -> bool:
    return shape is None or any(map(_is_unknown, shape))


def _is_unknown(size: int | str) -> bool:
    return str(size).startswith(UNKNOWN)


def _reshaped(node: ir.Node) -> list[int | str] | None:
    """The sizes of a Reshape's result, numbers and names; None where they cannot be told."""
    before, target = dims(source(node)), extents(source(node, 1))
    if before is None or target is None or attribute(node, "allowzero", 0):
        return None
    shape: list[int | str] = []
    for axis, entry in enumerate(target):
        if isinstance(entry, int):
            shape.append(before[axis] if entry == 0 and axis < len(before) else entry)
        else:
            known = dims(entry[0])
            shape.append("?" if known is None else known[entry[1]])
    if -1 in shape:
        rest = _quotient(before, [size for size in shape if size != -1])
        if rest is None:
            return None
        shape[shape.index(-1)] = rest
    return None if "?" in shape else shape


def _quotient(whole: tuple[int | str, ...], parts: list[int | str]) -> int | str | None:
    """What `whole` is times, of sizes that are multiplied, where numbers alone or one name is left."""
    names = Counter(size for size in whole if isinstance(size, str))
    names.subtract(size for size in parts if isinstance(size, str))
    left = [name for name, count in names.items() for _ in range(abs(count))]
    numbers = [1, 1]
    for i, sizes in enumerate((whole, parts)):
        for size in sizes:
            numbers[i] *= size if isinstance(size, int) else 1
    if any(count < 0 for count in names.values()) or numbers[1] == 0 or numbers[0] % numbers[1]:
        return None
    if not left:
        return numbers[0] // numbers[1]
    return left[0] if len(left) == 1 and numbers[0] == numbers[1] else None
