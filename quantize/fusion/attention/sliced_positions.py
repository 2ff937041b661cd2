"""The first rows of a table of positions, by Gather over a Range, become a Slice.

ONNX Runtime does so itself where it can, but on CUDA its way leads the number of rows to the device and back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxport.graph.edit import Miss, array_of, attribute, constant, new_node, produced_by, source, take_over
from onnxport.quantize.fusion.rule import Rule


@dataclass
class Match:
    """gather: rows of a table. count: how many, int64 [1], in host memory."""

    gather: ir.Node
    count: ir.Value


class SlicedPositions(Rule):
    """Gather of the rows 0, 1, ... becomes Slice."""

    name = "sliced_positions"
    anchor = "Gather"
    kernel = "Slice"

    def pattern(self, node: ir.Node) -> Match:
        """As `Rule`."""
        steps = produced_by(source(node, 1), "Range", "the rows")
        for i, wanted in ((0, 0), (2, 1)):
            found = array_of(source(steps, i))
            if found is None or found.size != 1 or found.item() != wanted:
                raise Miss(f"the rows begin or go on otherwise than 0, 1, ...: {found}")
        return Match(node, source(produced_by(source(steps, 1), "Squeeze", "the number of rows")))

    def check(self, graph: ir.Graph, match: Match) -> None:
        """As `Rule`."""
        if attribute(match.gather, "axis", 0) != 0 or array_of(source(match.gather)) is None:
            raise Miss("no rows of a constant table are read")
        produced_by(match.count, "Shape", "the number of rows")

    def rewrite(self, graph: ir.Graph, match: Match) -> None:
        """As `Rule`."""
        zero = constant(graph, "axis_0", np.array([0], np.int64))
        out = match.gather.outputs[0]
        node = new_node(graph, match.gather, self.kernel, [source(match.gather), zero, match.count, zero], {}, [out], domain="")
        take_over(out, node.outputs[0])
