"""Attention that stays: ONNX lets its mask broadcast over the queries, ONNX Runtime's CPU kernel does not, so the mask is expanded."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxport.quantize.fusion.core import Miss, Rule, constant, dims, new_node, optional, source


class MaskBroadcast(Rule):
    name = "mask_broadcast"
    anchor = "Attention"
    kernel = ""

    def pattern(self, node: ir.Node) -> tuple[ir.Node, ir.Value]:
        mask = optional(node, 3)
        if mask is None:
            raise Miss("there is no mask")
        return node, mask

    def check(self, graph: ir.Graph, match: tuple[ir.Node, ir.Value]) -> None:
        node, mask = match
        shape, query = dims(mask), dims(source(node))
        if shape is None or len(shape) < 2 or shape[-2] != 1:
            raise Miss(f"the mask {shape} does not broadcast over the queries")
        if query is None or len(query) != 4 or query[2] == 1:
            raise Miss(f"the query {query} has not several positions")

    def rewrite(self, graph: ir.Graph, match: tuple[ir.Node, ir.Value]) -> None:
        node, mask = match
        int64 = ir.TensorType(ir.DataType.INT64)
        length = ir.Value(name=f"{node.outputs[0].name}/length", type=int64, shape=ir.Shape([1]))
        shape = ir.Value(name=f"{node.outputs[0].name}/mask_shape", type=int64, shape=ir.Shape([2]))
        query = source(node)
        assert mask.shape is not None and query.shape is not None
        wide = ir.Value(
            name=f"{node.outputs[0].name}/mask", type=mask.type, shape=ir.Shape([*mask.shape[:-2], query.shape[2], mask.shape[-1]])
        )
        count = new_node(graph, node, "Shape", [query], {"start": 2, "end": 3}, [length], domain="").outputs[0]
        one = constant(graph, "dim_1", np.array([1], np.int64))
        target = new_node(graph, node, "Concat", [count, one], {"axis": 0}, [shape], domain="").outputs[0]
        node.replace_input_with(3, new_node(graph, node, "Expand", [mask, target], {}, [wide], domain="").outputs[0])
