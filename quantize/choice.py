"""The choice of the next token inside the decoder: one run gives logits and the best ids, and the workers of one session do both."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from onnxport.quantize.fusion.core import constant, dims, remove_dead
from onnxport.quantize.selection import best_graph

PREFIX = "choice/"


def add_choice(model: ir.Model) -> ir.Model:
    """A copy of a decoder with the inputs and outputs of the search graph `best` beside its `logits` float32 [batch, vocab]."""
    done = model.clone()
    graph = done.graph
    logits = next(value for value in graph.outputs if value.name == "logits")
    shape = dims(logits)
    assert shape is not None and isinstance(shape[-1], int)
    part = ir.from_proto(onnx.ModelProto.FromString(best_graph(shape[-1]))).graph
    here: dict[ir.Value | None, ir.Value | None] = {None: None, part.inputs[0]: logits}
    for given in part.inputs[1:]:
        here[given] = ir.Value(name=given.name, type=given.type, shape=given.shape)
        graph.inputs.append(here[given])
    for name, value in part.initializers.items():
        assert value.const_value is not None
        here[value] = constant(graph, PREFIX + name, value.const_value.numpy())
    outputs = {value: value.name for value in part.outputs}
    for node in part:
        inputs = [here[value] for value in node.inputs]
        new = ir.Node(node.domain, node.op_type, inputs, node.attributes.values(), num_outputs=len(node.outputs))
        for old, value in zip(node.outputs, new.outputs, strict=True):
            value.name = outputs.get(old, f"{PREFIX}{old.name}")
            value.type, value.shape = old.type, old.shape
            here[old] = value
        graph.append(new)
    graph.outputs.extend(here[value] for value in part.outputs)
    return done


def remove_choice(model: ir.Model) -> ir.Model:
    """A copy without what `add_choice` added."""
    done = model.clone()
    graph = done.graph
    for value in [v for v in graph.outputs if v.name in ("token", "logprob", "kept")]:
        graph.outputs.remove(value)
    remove_dead(graph)
    for value in [v for v in graph.inputs if v.name in ("candidates", "suppressed")]:
        graph.inputs.remove(value)
    return done
