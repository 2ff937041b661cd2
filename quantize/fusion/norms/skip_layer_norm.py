"""Residual Add + LayerNormalization become SkipLayerNormalization, with the bias of the projection before it as the kernel's own bias.

Where the sum goes on (norm before the sub-layer), it is the kernel's fourth output.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnxport.graph.edit import (
    Miss,
    array_of,
    attribute,
    dims,
    is_op,
    new_node,
    only_use,
    optional,
    produced_by,
    same_shape,
    source,
    take_over,
)
from onnxport.quantize.fusion.rule import Rule


@dataclass
class Match:
    """A residual sum with the norm behind it. bias: of the projection that is one of the terms."""

    norm: ir.Node
    add: ir.Node
    terms: tuple[ir.Value, ir.Value]
    bias: ir.Value | None


def _with_bias(value: ir.Value, width: object) -> tuple[ir.Value, ir.Value] | None:
    """(projection, bias) if `value` is Add(projection, bias of one dimension) and nobody else reads it."""
    add = value.producer()
    if not is_op(add, "Add") or not only_use(value):
        return None
    for product, bias in (add.inputs, reversed(add.inputs)):
        if (
            product is not None
            and bias is not None
            and array_of(bias) is not None
            and dims(bias) == (width,)
            and dims(product) == dims(value)
        ):
            return product, bias
    return None


class SkipLayerNorm(Rule):
    """Add and LayerNormalization become one kernel."""

    name = "skip_layer_norm"
    anchor = "LayerNormalization"
    kernel = "SkipLayerNormalization"

    def pattern(self, node: ir.Node) -> Match:
        """As `Rule`."""
        add = produced_by(source(node), "Add", "the input of the norm")
        terms = [source(add, 0), source(add, 1)]
        shape = dims(add.outputs[0])
        width = shape[-1] if shape else None
        for i in (1, 0):
            folded = _with_bias(terms[i], width)
            if folded is not None:
                other = terms[1 - i]
                return Match(node, add, (other, folded[0]), folded[1])
        return Match(node, add, (terms[0], terms[1]), None)

    def check(self, graph: ir.Graph, match: Match) -> None:
        """As `Rule`."""
        a, b = (dims(v) for v in match.terms)
        if not same_shape(a, b):
            raise Miss(f"the terms of the sum have shapes {a} and {b}, expected equal ones")
        assert a is not None
        if len(a) not in (2, 3):
            raise Miss(f"the sum has {len(a)} dimensions, expected 2 or 3")
        if attribute(match.norm, "axis", -1) not in (-1, len(a) - 1):
            raise Miss("the norm is not over the last axis")
        if attribute(match.norm, "stash_type", 1) != 1:
            raise Miss("the norm does not compute in float32")
        if dims(source(match.norm, 1)) != (a[-1],):
            raise Miss(f"the norm's weight has shape {dims(source(match.norm, 1))}, expected ({a[-1]},)")
        if any(v.uses() or v.is_graph_output() for v in match.norm.outputs[1:]):
            raise Miss("mean or deviation of the norm are used")

    def rewrite(self, graph: ir.Graph, match: Match) -> None:
        """As `Rule`."""
        total = match.add.outputs[0]
        goes_on = len(total.uses()) > 1 or total.is_graph_output()
        out = match.norm.outputs[0]
        inputs = [*match.terms, source(match.norm, 1), optional(match.norm, 2), match.bias]
        while inputs[-1] is None:
            inputs.pop()
        like = [out, None, None, total] if goes_on else [out]
        node = new_node(graph, match.norm, self.kernel, inputs, {"epsilon": float(attribute(match.norm, "epsilon", 1e-5))}, like)
        take_over(out, node.outputs[0])
        graph.remove(match.norm, safe=True)
        if goes_on:
            # Readers of the sum may stand before the norm in the list; the caller sorts the graph.
            take_over(total, node.outputs[3])
