"""Heads that go into a cached attention stay where their projection left them: no transpose there and back.

Queries, keys and values come as [batch, length, heads * size], become [batch, heads, length, size] for norms and rotary positions, and go
back. Both can be had of [batch, length, heads, size] and [batch, length, heads * size], to the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxport.graph.edit import MICROSOFT, Miss, attribute, constant, is_op, known_dims, new_node, produced_by, source
from onnxport.quantize.fusion.rule import Rule

PARTS = ("query", "key", "value")


@dataclass
class Path:
    """An input of the attention on its way: its place, what it was made from, and what is done to its heads, first to last."""

    place: int
    flat: ir.Value  # [batch, length, heads * size]
    steps: list[ir.Node]
    heads: int
    size: int


class HeadLayout(Rule):
    """The transposes around norms and rotary positions of a GroupQueryAttention's inputs go."""

    name = "head_layout"
    anchor = "GroupQueryAttention"
    domain = MICROSOFT
    kernel = ""

    def pattern(self, node: ir.Node) -> tuple[ir.Node, list[Path]]:
        """As `Rule`."""
        paths = []
        for place, what in enumerate(PARTS):
            try:
                paths.append(_path(node, place, what))
            except Miss as reason:
                last = reason
        if not paths:
            raise last
        return node, paths

    def rewrite(self, graph: ir.Graph, match: tuple[ir.Node, list[Path]]) -> None:
        """As `Rule`."""
        node, paths = match
        for path in paths:
            value = path.flat
            for step in path.steps:
                move = _norm if step.op_type == "RMSNormalization" else _turn
                value = move(graph, node, step, value, path)
            node.replace_input_with(path.place, value)


def _path(node: ir.Node, place: int, what: str) -> Path:
    merged = produced_by(source(node, place), "Reshape", what)
    back = produced_by(source(merged), "Transpose", what)
    value = source(back)
    steps: list[ir.Node] = []
    while (step := value.producer()) is not None and (is_op(step, "RMSNormalization") or is_op(step, "RotaryEmbedding")):
        if is_op(step, "RotaryEmbedding") and len(step.inputs) != 3:
            raise Miss(f"{what} is turned by tables of positions")
        if is_op(step, "RMSNormalization") and attribute(step, "axis", -1) not in (-1, 3):
            raise Miss(f"{what} is normed over more than a head")
        steps.insert(0, step)
        value = source(step)
    there = produced_by(value, "Transpose", what)
    if any(tuple(attribute(turn, "perm", ())) != (0, 2, 1, 3) for turn in (back, there)):
        raise Miss(f"{what} is transposed in another way")
    split = produced_by(source(there), "Reshape", what)
    batch, length, heads, size = known_dims(split.outputs[0], 4, what)
    flat = source(split)
    if not isinstance(heads, int) or not isinstance(size, int):
        raise Miss(f"the heads of {what} are not known")
    for whole in (flat, merged.outputs[0]):
        if known_dims(whole, 3, what) != (batch, length, heads * size):
            raise Miss(f"{what} is {known_dims(whole, 3, what)}, expected {(batch, length, heads * size)}")
    return Path(place, flat, steps, heads, size)


def _norm(graph: ir.Graph, before: ir.Node, step: ir.Node, flat: ir.Value, path: Path) -> ir.Value:
    if (made := _made(flat, f"{step.outputs[0].name}/heads")) is not None:
        return _after(made)
    batch, length, _ = known_dims(flat, 3, "heads")
    split = constant(graph, f"shape_0_0_{path.heads}_{path.size}", np.array([0, 0, path.heads, path.size], np.int64))
    merged = constant(graph, f"shape_0_0_{path.heads * path.size}", np.array([0, 0, path.heads * path.size], np.int64))
    four, three = [batch, length, path.heads, path.size], [batch, length, path.heads * path.size]
    name, kind = step.outputs[0].name, flat.type
    heads = new_node(graph, before, "Reshape", [flat, split], {}, [_like(f"{name}/heads", kind, four)], domain="").outputs[0]
    attributes = {key: found.value for key, found in step.attributes.items()} | {"axis": -1}
    normed = new_node(
        graph, before, "RMSNormalization", [heads, step.inputs[1]], attributes, [_like(f"{name}/normed", kind, four)], domain=""
    ).outputs[0]
    return new_node(graph, before, "Reshape", [normed, merged], {}, [_like(f"{name}/flat", kind, three)], domain="").outputs[0]


def _turn(graph: ir.Graph, before: ir.Node, step: ir.Node, flat: ir.Value, path: Path) -> ir.Value:
    if (made := _made(flat, f"{step.outputs[0].name}/flat")) is not None:
        return made
    like = _like(f"{step.outputs[0].name}/flat", flat.type, list(flat.shape or ()))
    attributes = {key: found.value for key, found in step.attributes.items()} | {"num_heads": path.heads}
    return new_node(graph, before, "RotaryEmbedding", [flat, *step.inputs[1:]], attributes, [like], domain="").outputs[0]


def _made(flat: ir.Value, name: str) -> ir.Value | None:
    """What another attention over the same keys or values has made of them already."""
    return next((use.node.outputs[0] for use in flat.uses() if use.node.outputs[0].name == name), None)


def _after(heads: ir.Value) -> ir.Value:
    """Norm and Reshape behind heads that were made already."""
    (norm,) = heads.uses()
    (flat,) = norm.node.outputs[0].uses()
    return flat.node.outputs[0]


def _like(name: str, kind: ir.TypeProtocol | None, shape: Sequence[int | str | ir.SymbolicDim]) -> ir.Value:
    return ir.Value(name=name, type=kind, shape=ir.Shape(shape))
