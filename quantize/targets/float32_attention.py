"""Cached attention in float32 for CUDA, whose GroupQueryAttention takes 16 bits alone, of standard operators (opset 24).

New keys and values are written into the cache by TensorScatter, where the position of a row's first new id says, and Attention looks over
the whole buffer with a mask of positions. So it costs what the buffer is long, not what is in it: it is for answers to compare with.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onnxport.errors import NotApplicable
from onnxport.graph.edit import attribute, constant, new_node, optional, remove_dead, source, take_over
from onnxport.quantize.fusion.attention.group_query_attention import BIAS, GroupQueryAttention
from onnxport.quantize.fusion.attention.multi_head_attention import MASKED_SCORE
from onnxport.runtime.bundle.interface import POSITION_IDS

RULE = GroupQueryAttention.name  # whose work is undone
OPSET = 24
SINK = 11  # the place of the kernel's input head_sink
PREFIX = "float32/"


def written_out(model: ir.Model) -> ir.Model:
    """A copy without GroupQueryAttention. NotApplicable: attention has sinks, or a cache of integers."""
    copy = model.clone()
    graph = copy.graph
    nodes = [node for node in graph if node.op_type == GroupQueryAttention.kernel]
    if not nodes:
        return copy
    for node in nodes:
        if optional(node, SINK) is not None or attribute(node, "smooth_softmax", 0):
            raise NotApplicable("its attention has sinks, for which CUDA has no kernel in float32; use fp16")
    graph.opset_imports[""] = max(OPSET, graph.opset_imports.get("", OPSET))
    writer = _Writer(graph, nodes[0])
    for number, node in enumerate(nodes):
        writer.replace(node, f"{PREFIX}{number}/")
    remove_dead(graph)
    graph.sort()
    return copy


class _Writer:
    """Writes attention into one graph. first: the first of its nodes, before which stands what all of them read."""

    def __init__(self, graph: ir.Graph, first: ir.Node) -> None:
        self.graph, self.at = graph, first
        batch = None if source(first, 3).shape is None else source(first, 3).shape[0]
        self.positions = next((value for value in graph.inputs if value.name == POSITION_IDS), None)
        if self.positions is None:
            self.positions = ir.Value(name=POSITION_IDS, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([batch, "length"]))
            graph.inputs.append(self.positions)
        starts = self.one("Gather", [self.positions, self.number(0)], f"{PREFIX}starts", axis=1)
        self.starts = starts  # [rows], where new entries go
        capacity = self.one("Shape", [source(first, 3)], f"{PREFIX}capacity", start=2, end=3)
        self.capacity = self.one("Squeeze", [capacity, self.numbers(0)], f"{PREFIX}entries")
        self.keys = self.one("Range", [self.number(0), self.capacity, self.number(1)], f"{PREFIX}keys")
        self.rows = self.one("Unsqueeze", [self.positions, self.numbers(1, 3)], f"{PREFIX}queries")  # [rows, 1, length, 1]
        self.masks: dict[int, ir.Value] = {}

    def one(self, op_type: str, inputs: list[ir.Value | None], name: str, domain: str = "", **attributes: Any) -> ir.Value:
        """The result of a new node."""
        return new_node(self.graph, self.at, op_type, inputs, attributes, [ir.Value(name=name)], domain=domain).outputs[0]

    def number(self, value: int) -> ir.Value:
        """An int64 scalar."""
        return constant(self.graph, f"{PREFIX}number_{value}", np.array(value, np.int64))

    def numbers(self, *values: int) -> ir.Value:
        """int64 [n]."""
        return constant(self.graph, f"{PREFIX}numbers_{'_'.join(map(str, values))}", np.array(values, np.int64))

    def replace(self, node: ir.Node, name: str) -> None:
        """Puts standard operators in the place of one GroupQueryAttention."""
        self.at = node
        heads, kv_heads = attribute(node, "num_heads", 0), attribute(node, "kv_num_heads", 0)
        size = source(node, 3).shape[3]
        assert isinstance(size, int)
        flat = self._parts(node, name, heads * size, kv_heads * size)
        if attribute(node, "do_rotary", 0):
            flat = [
                *(
                    self._turned(node, value, count, f"{name}turned_{i}")
                    for i, (value, count) in enumerate(zip(flat, (heads, kv_heads), strict=False))
                ),
                flat[2],
            ]
        query, key, value = (
            self._split(x, count, size, f"{name}{i}") for i, (x, count) in enumerate(zip(flat, (heads, kv_heads, kv_heads), strict=True))
        )
        present = [
            self.one("TensorScatter", [source(node, 3 + i), new, self.starts], f"{name}present_{i}", axis=-2)
            for i, new in enumerate((key, value))
        ]
        attributes: dict[str, Any] = {key: float(node.attributes[key].value) for key in ("scale", "softcap") if key in node.attributes}
        answer = self.one("Attention", [query, *present, self._mask(node, name)], f"{name}answer", **attributes)
        behind = self.one("Transpose", [answer], f"{name}behind", perm=[0, 2, 1, 3])
        merged = self.one("Reshape", [behind, self.numbers(0, 0, heads * size)], f"{name}merged")
        for old, new in zip(node.outputs, (merged, *present), strict=False):
            new.type, new.shape = old.type, old.shape
            take_over(old, new)
        self.graph.remove(node, safe=True)

    def _parts(self, node: ir.Node, name: str, query: int, key: int) -> list[ir.Value]:
        """Queries, keys and values, [rows, length, heads * size]."""
        if optional(node, 1) is not None:
            return [source(node, i) for i in range(3)]
        likes = [ir.Value(name=f"{name}part_{i}") for i in range(3)]
        return list(
            new_node(self.graph, node, "Split", [source(node), self.numbers(query, key, key)], {"axis": 2}, likes, domain="").outputs
        )

    def _turned(self, node: ir.Node, value: ir.Value, heads: int, name: str) -> ir.Value:
        inputs = [value, self.positions, source(node, 7), source(node, 8)]
        more = {"interleaved": attribute(node, "rotary_interleaved", 0), "num_heads": heads}
        return self.one("RotaryEmbedding", inputs, name, "com.microsoft", **more)

    def _split(self, value: ir.Value, heads: int, size: int, name: str) -> ir.Value:
        split = self.one("Reshape", [value, self.numbers(0, 0, heads, size)], f"{name}/split")
        return self.one("Transpose", [split], f"{name}/heads", perm=[0, 2, 1, 3])

    def _mask(self, node: ir.Node, name: str) -> ir.Value:
        """What a row sees of the buffer, bool [rows, 1, length, capacity], or what is added to its scores."""
        window = attribute(node, "local_window_size", -1)
        if window not in self.masks:
            seen = self.one("LessOrEqual", [self.keys, self.rows], f"{name}past")
            if window > 0:
                first = self.one("Sub", [self.rows, self.number(window)], f"{name}before_window")
                seen = self.one("And", [seen, self.one("Greater", [self.keys, first], f"{name}inside")], f"{name}seen")
            self.masks[window] = seen
        bias = optional(node, BIAS)
        if bias is None:
            return self.masks[window]
        width = self.one("Shape", [bias], f"{name}bias_width", start=3, end=4)
        missing = self.one("Sub", [self.one("Unsqueeze", [self.capacity, self.numbers(0)], f"{name}room"), width], f"{name}missing")
        pads = self.one("Concat", [self.numbers(0, 0, 0, 0, 0, 0, 0), missing], f"{name}pads", axis=0)
        wide = self.one("Pad", [bias, pads], f"{name}wide_bias")
        return self.one(
            "Where", [self.masks[window], wide, constant(self.graph, "masked_score", np.float32(MASKED_SCORE))], f"{name}scores"
        )
