"""Questions about the values of an ONNX graph, and edits of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

MICROSOFT = "com.microsoft"


class Miss(Exception):
    """A rule does not apply to a node; its text says what was found there instead."""


def is_op(node: ir.Node | None, op_type: str, domain: str = "") -> bool:
    """Whether there is a node, and it is of this type."""
    return node is not None and node.op_type == op_type and node.domain == domain


def produced_by(value: ir.Value | None, op_type: str, what: str) -> ir.Node:
    """The node of type `op_type` that makes `value`, or a miss that names what was found."""
    node = None if value is None else value.producer()
    if node is None or not is_op(node, op_type):
        found = "nothing" if value is None else f"{node.op_type}" if node else f"input or weight '{value.name}'"
        raise Miss(f"{what} comes from {found}, not from {op_type}")
    return node


def source(node: ir.Node, index: int = 0) -> ir.Value:
    """An input of a node, or a miss where it has none at that place."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise Miss(f"{node.op_type} '{node.name}' has no input {index}")
    return value


def optional(node: ir.Node, index: int) -> ir.Value | None:
    """An input of a node, or None."""
    return node.inputs[index] if index < len(node.inputs) else None


def dims(value: ir.Value) -> tuple[int | str, ...] | None:
    """Dimensions as integers or symbol names; None if the rank is unknown. An unnamed dimension becomes '?', equal to nothing."""
    if value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else (d.value or "?") for d in value.shape)


def known_dims(value: ir.Value, rank: int, what: str) -> tuple[int | str, ...]:
    """`dims` of a value that has `rank` of them, or a miss that calls it `what`."""
    found = dims(value)
    if found is None or len(found) != rank:
        raise Miss(f"{what} '{value.name}' has shape {found}, expected {rank} dimensions")
    return found


def same_shape(a: Sequence[int | str] | None, b: Sequence[int | str] | None) -> bool:
    """Whether two shapes, as `dims` gives them, are known and equal."""
    return a is not None and b is not None and "?" not in a and tuple(a) == tuple(b)


def tensor_of(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The constant behind a value, which is not read for it, or None."""
    return None if value is None or value.is_graph_input() else ir.convenience.get_const_tensor(value)


def is_constant(value: ir.Value | None) -> bool:
    """Whether there is a constant behind a value."""
    return tensor_of(value) is not None


def array_of(value: ir.Value | None) -> np.ndarray | None:
    """The values of the constant behind a value, or None."""
    tensor = tensor_of(value)
    return None if tensor is None else tensor.numpy()


def sizes_of(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    """The shape of a constant, which is not read for it."""
    return tuple(int(size) for size in tensor.shape.numpy())


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """The value of a node's attribute, or `default`."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def only_use(value: ir.Value) -> bool:
    """Whether one node reads the value, at one place, and it is no output of the graph."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def constant(graph: ir.Graph, name: str, array: np.ndarray | np.generic | ir.TensorProtocol) -> ir.Value:
    """An initializer; one of that name that exists already is shared."""
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = ir.tensor(array, name=name) if isinstance(array, np.ndarray | np.generic) else array
    tensor.name = name
    value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype))
    graph.register_initializer(value)
    return value


def new_node(
    graph: ir.Graph,
    before: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: dict[str, Any],
    like: Sequence[ir.Value | None],
    domain: str = MICROSOFT,
) -> ir.Node:
    """A node placed before another, whose outputs take over the names, types and shapes of `like` (None: an output left out)."""
    name = next(v.name for v in like if v is not None)  # names of values are unique, so those of nodes are
    node = ir.node(op_type, inputs, attributes, domain=domain, num_outputs=len(like), name=f"{name}/{op_type}")
    for output, old in zip(node.outputs, like, strict=True):
        if old is None:
            output.name = ""
            continue
        output.name, output.type, output.shape = old.name, old.type, old.shape
    graph.insert_before(before, node)
    if domain:
        graph.opset_imports.setdefault(domain, 1)
    return node


def take_over(old: ir.Value, new: ir.Value) -> None:
    """Every use of `old`, as a graph output too, becomes one of `new`; the name goes with it, so that outputs keep theirs."""
    name = old.name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    old.name = f"{name}/replaced"
    new.name = name


def remove_dead(graph: ir.Graph) -> int:
    """Remove nodes nobody reads and initializers nobody reads, but defaults of inputs; returns how many nodes went."""
    removed = 0
    for node in reversed(list(graph)):
        if all(not v.uses() and not v.is_graph_output() for v in node.outputs):
            graph.remove(node, safe=True)
            removed += 1
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del graph.initializers[name]
    return removed


def remove_metadata(model: ir.Model) -> None:
    """Drop what would make bytes depend on where and how a graph was made: metadata and doc strings of the model and all in it."""
    ClearMetadataAndDocStringPass()(model)  # of nodes
    model.metadata_props.clear()
    model.doc_string = None
    graph = model.graph
    graph.metadata_props.clear()
    graph.doc_string = None
    values = [*graph.inputs, *graph.outputs, *graph.initializers.values(), *(v for node in graph.all_nodes() for v in node.outputs)]
    for value in values:
        value.metadata_props.clear()
        value.meta.clear()
        value.doc_string = None
