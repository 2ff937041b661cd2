"""Scales of blocks are stored in float16 where it holds them exactly, with a cast that ONNX Runtime computes once, as it loads the graph.

A scale in float32 for each 32 weights of 4 bits is a fifth of their bytes. The kernels read the same numbers in the same type as before.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxport.graph.edit import array_of, constant, new_node

PLACES: Mapping[str, tuple[int, ...]] = {"MatMulNBits": (2,), "GatherBlockQuantized": (2,), "QMoE": (3, 6, 9)}  # op → its inputs of scales


def store(graph: ir.Graph) -> None:
    """Put float16 constants and casts in the place of the graph's float32 scales, each once; those that would lose digits stay."""
    for node in list(graph):
        for place in PLACES.get(node.op_type, ()):
            scale = node.inputs[place] if place < len(node.inputs) else None
            array = array_of(scale)
            if scale is None or array is None or array.dtype != np.float32 or not array.size:
                continue
            with np.errstate(over="ignore"):
                half = array.astype(np.float16)
            if np.array_equal(half.astype(np.float32), array):
                _cast(graph, node, scale, half)


def _cast(graph: ir.Graph, node: ir.Node, scale: ir.Value, half: np.ndarray) -> None:
    stored = constant(graph, f"{scale.name}/half", half)
    like = ir.Value(name=f"{scale.name}/float", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(half.shape))
    wide = new_node(graph, node, "Cast", [stored], {"to": ir.DataType.FLOAT.value}, [like], domain="").outputs[0]
    ir.convenience.replace_all_uses_with(scale, wide)
    graph.initializers.pop(str(scale.name))
