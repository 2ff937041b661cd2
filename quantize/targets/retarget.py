"""Graphs that were fused for the CPU become those of another target: kernels as its ONNX Runtime has them, and its own rewrites."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from onnxport.graph.edit import attribute, remove_dead
from onnxport.graph.normalize import fold_constants, name_shapes
from onnxport.quantize.fusion.attention.group_query_attention import LENGTHS, GroupQueryAttention
from onnxport.quantize.fusion.rule import apply
from onnxport.quantize.fusion.targets import find_target
from onnxport.runtime.bundle.interface import QUERY_LENGTHS

Graphs = dict[str, Any]  # role → onnx_ir.Model
ACCURACY = "accuracy_level"  # attribute of products with weights of few bits
MOVING = "sliding_window_cache"  # attribute of the kernel: its buffers hold a window alone, and entries move up


def retargeted(graphs: Mapping[str, ir.Model], target: str) -> tuple[Graphs, dict[str, int]]:
    """Copies of float32 graphs (role → graph, fused for the CPU) as a target runs them, and how often each further rule was applied."""
    copies, counts = {role: model.clone() for role, model in graphs.items()}, Counter[str]()
    for model in copies.values():
        graph = model.graph
        _without_query_lengths(graph)
        name_shapes(model)
        fold_constants(graph)
        counts.update(apply(graph, find_target(target).further).counts)
        remove_dead(graph)
        graph.sort()
    return copies, {name: count for name, count in counts.items() if count}


def settled(model: ir.Model, target: str) -> ir.Model:
    """A finished graph of a variant without what its target does not do, or does not know; others as they are.

    accuracy_level lets the CPU round activations to 8 bits. CUDA never does, so that a check on the CPU must not either; ONNX Runtime of
    the web does not know the attribute for experts.
    """
    exact = {"cuda": ("MatMulNBits", "QMoE"), "web": ("QMoE",)}.get(target, ())
    if not any(node.op_type in exact and ACCURACY in node.attributes for node in model.graph):
        return model
    copy = model.clone()
    for node in copy.graph:
        if node.op_type in exact:
            node.attributes.pop(ACCURACY, None)
    return copy


def keeps_windows_alone(graphs: Mapping[str, ir.Model]) -> bool:
    """Whether caches of graphs for the CPU hold no more than a window: other targets keep every position."""
    return any(attribute(node, MOVING, 0) for model in graphs.values() for node in model.graph)


def _without_query_lengths(graph: ir.Graph) -> None:
    """Attention as ONNX Runtime 1.30 has it: it reads no lengths of queries, and moves no entries up.

    Prompts of several rows are run whole then, each from its first position, and behind a past only a single row takes several ids.
    """
    for node in graph:
        if node.op_type == GroupQueryAttention.kernel:
            node.attributes.pop(MOVING, None)
            if len(node.inputs) > LENGTHS:
                inputs = list(node.inputs)[:LENGTHS]
                while inputs[-1] is None:
                    inputs.pop()
                node.replace_input_with(LENGTHS, None)
                node.resize_inputs(len(inputs))
    for value in [value for value in graph.inputs if value.name == QUERY_LENGTHS and not value.uses()]:
        graph.inputs.remove(value)
