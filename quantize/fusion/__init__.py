"""Fusion: a standard graph becomes one made of ONNX Runtime's own kernels, by an ordered list of rewrites per target."""

from __future__ import annotations

import onnx_ir as ir

from onnxport.errors import UsageError
from onnxport.graph.edit import remove_dead
from onnxport.graph.normalize import fold_constants, name_shapes
from onnxport.quantize.fusion.check import check_runs
from onnxport.quantize.fusion.decoder_inputs import drop_mask
from onnxport.quantize.fusion.group_query_attention import GroupQueryAttention, bound_cache
from onnxport.quantize.fusion.multi_head_attention import MultiHeadAttention
from onnxport.quantize.fusion.rule import Outcome, Rule, apply
from onnxport.quantize.fusion.skip_layer_norm import SkipLayerNorm
from onnxport.quantize.fusion.softmax_attention import SoftmaxAttention
from onnxport.quantize.fusion.tidy import MaskBroadcast, ReshapeOfReshape, SameShape

__all__ = ["RULES", "check_runs", "fuse", "name_shapes"]

# Order matters: attention first, since its kernels give the Reshapes and sums behind it the shapes the later rules ask for.
_EVERYWHERE: list[Rule] = [GroupQueryAttention(), MultiHeadAttention(), SoftmaxAttention(), ReshapeOfReshape(), SameShape()]
RULES: dict[str, list[Rule]] = {
    # SkipLayerNormalization takes 4 to 5 times as long as Add and LayerNormalization on the CPU, from a few rows on.
    "cpu": [*_EVERYWHERE, MaskBroadcast()],
    "cuda": [*_EVERYWHERE, SkipLayerNorm(), MaskBroadcast()],
    "any": [MaskBroadcast()],
}


def fuse(model: ir.Model, role: str, target: str = "cpu") -> tuple[ir.Model, dict[str, int]]:
    """A fused copy of a standard graph, and how often each rule was applied (rules that were applied at least once).

    `role` is the graph's name in the bundle (`encoder`, `decoder`, `model`), used in messages. Raises `UsageError` for an unknown target,
    `FusionError` when only a part of a cached decoder's layers fuses, since one cache cannot be kept in two ways.
    """
    if target not in RULES:
        raise UsageError(f"fusion target '{target}' is not known, expected one of {sorted(RULES)}; choose one of them")
    fused = model.clone()
    graph = fused.graph
    name_shapes(fused)
    fold_constants(graph)
    outcome: Outcome = apply(graph, RULES[target])
    if outcome.counts.get("group_query_attention"):
        drop_mask(graph, role, outcome)
        bound_cache(graph)
    remove_dead(graph)
    graph.sort()
    return fused, {name: count for name, count in outcome.counts.items() if count}
