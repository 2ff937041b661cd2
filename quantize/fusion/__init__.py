"""Fusion: a standard graph becomes one made of ONNX Runtime's own kernels, by an ordered list of rewrites per target."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import onnx_ir as ir

from onnxport.graph.edit import remove_dead
from onnxport.graph.normalize import fold_constants, name_shapes
from onnxport.quantize.fusion.check import check_runs
from onnxport.quantize.fusion.decoder_inputs import drop_mask
from onnxport.quantize.fusion.group_query_attention import bound_cache
from onnxport.quantize.fusion.joined_products import JoinedProducts, shared_weights
from onnxport.quantize.fusion.reshaped import name_reshaped
from onnxport.quantize.fusion.rule import apply
from onnxport.quantize.fusion.targets import TARGETS, Target, find_target, min_onnxruntime

__all__ = ["TARGETS", "Target", "check_runs", "fuse", "join_products", "min_onnxruntime"]


def fuse(model: ir.Model, role: str, target: str) -> tuple[ir.Model, dict[str, int]]:
    """A fused copy of a standard graph, and how often each rule was applied (rules that were applied at least once).

    `role` is the graph's name in the bundle (`encoder`, `decoder`, `model`), used in messages. `target` is a name of `TARGETS`. Raises
    `UsageError` for an unknown target, `FusionError` when only a part of a cached decoder's layers fuses, since one cache cannot be kept in
    two ways.
    """
    rules = find_target(target).rules
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


def join_products(models: Mapping[str, ir.Model], target: str) -> tuple[dict[str, ir.Model], dict[str, int]]:
    """A variant's graphs (role -> graph) with joined products in its decoder, and how often that was done; what does not change is given
    back as it is. Raises `UsageError` for an unknown target.

    It comes after quantization: plans name each weight, and graphs in float32, which other variants are made from, stay as they are.
    """
    joined, counts = dict(models), Counter[str]()
    if find_target(target).joins and "decoder" in models:
        made = models["decoder"].clone()
        counts.update(apply(made.graph, [JoinedProducts(shared_weights(model.graph for model in models.values()))]).counts)
        if counts:
            joined["decoder"] = made
    return joined, dict(counts)
