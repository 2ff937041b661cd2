"""Small repairs: Casts and Reshapes that change nothing, chains of Reshapes of which only the last counts, masks that do not broadcast."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxport.graph.edit import Miss, array_of, attribute, constant, dims, new_node, optional, produced_by, same_shape, source, take_over
from onnxport.quantize.fusion.rule import Rule


class SameType(Rule):
    """Cast to the type the value has already, as TorchScript's exporter leaves them behind Softmax."""

    name = "cast_to_itself"
    anchor = "Cast"
    kernel = ""

    def pattern(self, node: ir.Node) -> ir.Node:
        """As `Rule`."""
        if source(node).dtype is None or source(node).dtype != attribute(node, "to", None):
            raise Miss("the types differ or are not known")
        return _removable(node)

    def rewrite(self, graph: ir.Graph, match: ir.Node) -> None:
        """As `Rule`."""
        _remove(graph, match)


class SameShape(Rule):
    """Reshape to the shape the value has already."""

    name = "reshape_to_itself"
    anchor = "Reshape"
    kernel = ""

    def pattern(self, node: ir.Node) -> ir.Node:
        """As `Rule`."""
        if not same_shape(dims(source(node)), dims(node.outputs[0])):
            raise Miss("the shapes differ or are not known")
        return _removable(node)

    def rewrite(self, graph: ir.Graph, match: ir.Node) -> None:
        """As `Rule`."""
        _remove(graph, match)


def _removable(node: ir.Node) -> ir.Node:
    if node.outputs[0].is_graph_output() and (source(node).is_graph_input() or source(node).is_graph_output()):
        raise Miss("a graph output needs a node of its own")
    return node


def _remove(graph: ir.Graph, node: ir.Node) -> None:
    """Takes out a node that gives what it reads."""
    if node.outputs[0].is_graph_output():
        take_over(node.outputs[0], source(node))
    else:
        ir.convenience.replace_all_uses_with(node.outputs[0], source(node))
    graph.remove(node, safe=True)


class ReshapeOfReshape(Rule):
    """Reshape(Reshape(x, a), b) is Reshape(x, b), unless b copies dimensions of a."""

    name = "reshape_of_reshape"
    anchor = "Reshape"
    kernel = ""

    def pattern(self, node: ir.Node) -> tuple[ir.Node, ir.Node]:
        """As `Rule`."""
        inner = produced_by(source(node), "Reshape", "the input")
        shape = source(node, 1)
        if attribute(node, "allowzero", 0) == 0:
            parts = array_of(shape)
            if parts is None and (concat := shape.producer()) is not None and concat.op_type == "Concat":
                # Only constant parts can hold a 0 that copies: a part computed at run time is a dimension, which is never 0 here.
                found = [array_of(v) for v in concat.inputs]
                if any(a is not None and (a == 0).any() for a in found):
                    raise Miss("the shape copies dimensions")
            elif parts is None or (parts == 0).any():
                raise Miss("the shape copies dimensions")
        return node, inner

    def rewrite(self, graph: ir.Graph, match: tuple[ir.Node, ir.Node]) -> None:
        """As `Rule`."""
        node, inner = match
        node.replace_input_with(0, source(inner))


class MaskBroadcast(Rule):
    """A mask that is the same for all queries is spread over them: kernels of Attention do not broadcast it."""

    name = "mask_broadcast"
    anchor = "Attention"
    kernel = ""

    def pattern(self, node: ir.Node) -> tuple[ir.Node, ir.Value]:
        """As `Rule`."""
        mask = optional(node, 3)
        if mask is None:
            raise Miss("there is no mask")
        return node, mask

    def check(self, graph: ir.Graph, match: tuple[ir.Node, ir.Value]) -> None:
        """As `Rule`."""
        node, mask = match
        shape, query = dims(mask), dims(source(node))
        if shape is None or len(shape) < 2 or shape[-2] != 1:
            raise Miss(f"the mask {shape} does not broadcast over the queries")
        if query is None or len(query) != 4 or query[2] == 1:
            raise Miss(f"the query {query} has not several positions")

    def rewrite(self, graph: ir.Graph, match: tuple[ir.Node, ir.Value]) -> None:
        """As `Rule`."""
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
