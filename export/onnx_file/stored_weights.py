"""Weights that a file stores in small integers: those that it multiplies as floats become float32 with the same values.

Products of integers (MatMulInteger, MatMulNBits and their like), and tables whose rows are looked up as integers, stay as they came.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxport.graph.edit import array_of, constant, is_op, remove_dead
from onnxport.graph.normalize import evaluated

SMALL = {
    ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT8, ir.DataType.UINT8,
    ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E4M3FNUZ, ir.DataType.FLOAT8E5M2, ir.DataType.FLOAT8E5M2FNUZ,
}  # fmt: skip
STEPS = {"Cast", "Sub", "Add", "Mul", "Div", "DequantizeLinear", "Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze"}


def to_float(graph: ir.Graph) -> int:
    """Replaces arithmetic between a stored weight and its product by a float32 initializer; edits `graph`, returns how many there are.

    Where activations are quantized too, DequantizeLinear stays: ONNX Runtime makes products of integers of such pairs.
    """
    small = {value for value in graph.initializers.values() if value.dtype in SMALL}
    made: set[ir.Value] = set()
    for node in list(graph):
        if node.domain or node.op_type not in STEPS or not any(value in small for value in node.inputs):
            continue
        if any(value is None or array_of(value) is None for value in node.inputs) or node.outputs[0].is_graph_output():
            continue
        if is_op(node, "DequantizeLinear") and any(_of_integers(use.node) for use in node.outputs[0].uses()):
            continue
        (tensor,) = evaluated(node)
        old = node.outputs[0]
        name = str(old.name)
        ir.convenience.replace_all_uses_with(old, new := constant(graph, f"{name}/stored", tensor))
        graph.remove(node, safe=True)
        if new.name != name and name not in graph.initializers:  # the name is how a plan calls it
            del graph.initializers[str(new.name)]
            new.name = name
            graph.register_initializer(new)
        made.discard(node.inputs[0])
        small.add(new)
        if new.dtype not in SMALL:
            made.add(new)
    remove_dead(graph)
    return sum(bool(value.uses()) for value in made)


def _of_integers(node: ir.Node) -> bool:
    """Whether a product reads two things that were quantized."""
    return sum(value is not None and is_op(value.producer(), "DequantizeLinear") for value in node.inputs) > 1
