"""A decoder that gives the logits of every position of a run, where one of a bundle gives those of one position a row."""

from __future__ import annotations

import onnx_ir as ir

from onnxport.errors import NotApplicable
from onnxport.graph.edit import new_node, remove_dead
from onnxport.runtime.bundle.interface import LOGITS_INDEX


def every_position(decoder: ir.Model) -> ir.Model:
    """A copy whose `logits` are float32 [rows * length, vocabulary], row by row; it reads no `logits_index`.

    NotApplicable: the graph does not take one position's hidden state by GatherND, as the kit's own graphs do.
    """
    copy = decoder.clone()
    graph = copy.graph
    gathers = [node for node in graph if node.op_type == "GatherND" and _reads_index(node)]
    if len(gathers) != 1 or gathers[0].inputs[0] is None:
        raise NotApplicable("the decoder does not tell where it takes the logits' position; export the model again")
    (gather,) = gathers
    hidden, taken = gather.inputs[0], gather.outputs[0]
    like = ir.Value(name=f"{taken.name}/every_position", type=taken.type, shape=taken.shape)
    rows = new_node(graph, gather, "Flatten", [hidden], {"axis": -1}, [like], domain="").outputs[0]
    ir.convenience.replace_all_uses_with(taken, rows)
    remove_dead(graph)
    for value in [v for v in graph.inputs if v.name == LOGITS_INDEX and not v.uses()]:
        graph.inputs.remove(value)
    return copy


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
