"""Which positions a decoder gives the logits of: as traced of one position a row, of any positions of any rows in a bundle, or of all."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxport.errors import NotApplicable
from onnxport.graph.edit import constant, dims, new_node, remove_dead, take_over
from onnxport.runtime.bundle.interface import LOGITS, LOGITS_INDEX, LOGITS_ROWS

PICKED = "picked"  # the axis of what `logits_index` and `logits_rows` name
PREFIX = "picked/"


def pick_rows(decoder: ir.Model) -> ir.Model:
    """A copy that also reads `logits_rows` int64 [picked], the row of each position in `logits_index`: a row may have several, or none.

    The input has a default, no rows at all, which stands for each row once: a feed that leaves it out means what it meant before. A graph
    that does not take positions by GatherND, as the kit's own do, stays as it is, as does one that reads the rows already.
    """
    copy = decoder.clone()
    graph = copy.graph
    gathers = _gathers(graph)
    index = next((value for value in graph.inputs if value.name == LOGITS_INDEX), None)
    if len(gathers) != 1 or index is None or any(value.name == LOGITS_ROWS for value in graph.inputs):
        return copy
    (gather,) = gathers
    rows = constant(graph, LOGITS_ROWS, np.zeros(0, np.int64))
    rows.shape = ir.Shape([f"{PICKED}_rows"])
    graph.inputs.append(rows)
    index.shape = ir.Shape([PICKED])

    def op(op_type: str, inputs: list[ir.Value], name: str, shape: list[int | str], **attributes: int) -> ir.Value:
        like = ir.Value(name=PREFIX + name, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(shape))
        return new_node(graph, gather, op_type, inputs, attributes, [like], domain="").outputs[0]

    def number(value: int) -> ir.Value:
        return constant(graph, f"{PREFIX}{value}", np.array(value, np.int64))

    axis = constant(graph, f"{PREFIX}axis", np.array([1], np.int64))
    given, wanted = (op("Squeeze", [op("Shape", [v], f"shape_{i}", [1])], f"count_{i}", []) for i, v in enumerate((rows, index)))
    others = op("Range", [given, wanted, number(1)], "others", ["others"])  # all rows where none is given, else none
    every = op("Concat", [rows, others], "rows", [PICKED], axis=0)
    columns = [op("Unsqueeze", [value, axis], name, [PICKED, 1]) for value, name in ((every, "row"), (index, "position"))]
    places = op("Concat", columns, "places", [PICKED, 2], axis=1)
    logits = next(value for value in graph.outputs if value.name == LOGITS)
    taken = gather.outputs[0]
    like = ir.Value(name=f"{PREFIX}hidden", type=taken.type or logits.type)
    take_over(taken, new_node(graph, gather, "GatherND", [gather.inputs[0], places], {}, [like], domain="").outputs[0])
    remove_dead(graph)
    logits.shape = ir.Shape([PICKED, *(dims(logits) or ())[1:]])
    return copy


def every_position(decoder: ir.Model) -> ir.Model:
    """A copy whose `logits` are float32 [rows * length, vocabulary], row by row; it reads neither `logits_index` nor `logits_rows`.

    NotApplicable: the graph does not take one position's hidden state by GatherND, as the kit's own graphs do.
    """
    copy = decoder.clone()
    graph = copy.graph
    gathers = _gathers(graph)
    if len(gathers) != 1 or gathers[0].inputs[0] is None:
        raise NotApplicable("the decoder does not tell where it takes the logits' position; export the model again")
    (gather,) = gathers
    hidden, taken = gather.inputs[0], gather.outputs[0]
    like = ir.Value(name=f"{taken.name}/every_position", type=taken.type, shape=taken.shape)
    rows = new_node(graph, gather, "Flatten", [hidden], {"axis": -1}, [like], domain="").outputs[0]
    ir.convenience.replace_all_uses_with(taken, rows)
    remove_dead(graph)
    for value in [v for v in graph.inputs if v.name in (LOGITS_INDEX, LOGITS_ROWS) and not v.uses()]:
        graph.inputs.remove(value)
    return copy


def _gathers(graph: ir.Graph) -> list[ir.Node]:
    """What takes the hidden states of positions; one node in the kit's own graphs."""
    return [node for node in graph if node.op_type == "GatherND" and _reads_index(node)]


def _reads_index(node: ir.Node) -> bool:
    """Whether a node's indices come from `logits_index`."""
    left, seen = [node.inputs[1]], set[ir.Value]()
    while left:
        value = left.pop()
        if value is None or value in seen:
            continue
        seen.add(value)
        if value.name == LOGITS_INDEX:
            return True
        producer = value.producer()
        left += list(producer.inputs) if producer is not None else []
    return False
