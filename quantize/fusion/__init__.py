"""Fusion: a standard graph becomes one made of ONNX Runtime's own kernels, by an ordered list of rewrites per target."""

from __future__ import annotations

import onnx_ir as ir

from onnxport.graph.edit import remove_dead
from onnxport.graph.normalize import fold_constants, name_shapes
from onnxport.quantize.fusion.attention.group_query_attention import bound_cache
from onnxport.quantize.fusion.check import check_runs
from onnxport.quantize.fusion.decoder_inputs import drop_mask
from onnxport.quantize.fusion.reshaped import name_reshaped
from onnxport.quantize.fusion.rule import apply
from onnxport.quantize.fusion.targets import TARGETS, Target, find_target, min_onnxruntime

__all__ = ["TARGETS", "Target", "check_runs", "fuse", "min_onnxruntime"]


def fuse(model: ir.Model, role: str, target: str) -> tuple[ir.Model, dict[str, int]]:
    """A fused copy of a standard graph, and how often each rule was applied (rules that were applied at least once).

    `role` is the graph's name in the bundle (`encoder`, `decoder`, `model`), used in messages. `target` is a name of `TARGETS`. Raises
    `UsageError` for an unknown target, `FusionError` when only a part of a cached decoder's layers fuses, since one cache cannot be kept in
    two ways.
    """
    rules = find_target(target).all_rules
    fused = model.clone()
    graph = fused.graph
    name_shapes(fused)
    name_reshaped(fused)
    fold_constants(graph)
    outcome = apply(graph, rules)
    if outcome.counts.get("group_query_attention"):
        drop_mask(graph, role, outcome)
        bound_cache(graph)
    remove_dead(graph)
    graph.sort()
    return fused, {name: count for name, count in outcome.counts.items() if count}
