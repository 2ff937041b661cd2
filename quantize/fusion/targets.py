"""The targets that a graph can be fused for: what each of them runs on, the rewrites that suit it, and the kernels that it lacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from onnxport.errors import UsageError
from onnxport.graph.edit import optional
from onnxport.quantize.fusion.activations import Gelu, TanhGelu
from onnxport.quantize.fusion.attention.folded_heads import FoldedHeads
from onnxport.quantize.fusion.attention.group_query_attention import LENGTHS, GroupQueryAttention
from onnxport.quantize.fusion.attention.head_layout import HeadLayout
from onnxport.quantize.fusion.attention.multi_head_attention import MultiHeadAttention
from onnxport.quantize.fusion.attention.rotary import PartialRotary, Rotary
from onnxport.quantize.fusion.attention.sliced_positions import SlicedPositions
from onnxport.quantize.fusion.attention.softmax_attention import SoftmaxAttention
from onnxport.quantize.fusion.experts import Experts
from onnxport.quantize.fusion.norms.layer_norm import LayerNorm
from onnxport.quantize.fusion.norms.rms_norm import RmsNorm
from onnxport.quantize.fusion.norms.skip_layer_norm import SkipLayerNorm
from onnxport.quantize.fusion.rule import Rule
from onnxport.quantize.fusion.tidy import MaskBroadcast, ReshapeOfReshape, SameShape, SameType
from onnxport.runtime.sessions import CPU, CUDA

# Order matters: norms and rotary positions first, which the rules of attention look for, then attention, since its kernels give the
# Reshapes and sums behind it the shapes the later rules ask for.
_KERNELS = (
    Experts(),
    SameType(),
    LayerNorm(),
    RmsNorm(),
    Gelu(),
    TanhGelu(),
    Rotary(),
    PartialRotary(),
    HeadLayout(),
    GroupQueryAttention(),
    MultiHeadAttention(),
    FoldedHeads(),
    SoftmaxAttention(),
    ReshapeOfReshape(),
    SameShape(),
    MaskBroadcast(),
)
_INTEGER_PRODUCTS = frozenset({"MatMulIntegerToFloat", "DynamicQuantizeMatMul"})


@dataclass(frozen=True)
class Target:
    """Where a graph is to run.

    name: as `fuse` takes it. provider: the execution provider of ONNX Runtime, None for any runtime of ONNX. rules: the rewrites, in order.
    further: rewrites behind those of the CPU, whose graphs all others are made from.
    lacks: operators of ONNX Runtime for which the provider has no kernel, which no rule may make.
    min_onnxruntime: the oldest version known to run its graphs. newest: that of onnxruntime-gpu, or of onnxruntime-web and
    onnxruntime-node, which is all that its graphs may need.
    """

    name: str
    provider: str | None
    rules: tuple[Rule, ...]
    further: tuple[Rule, ...] = ()
    lacks: frozenset[str] = frozenset()
    min_onnxruntime: str = "1.30"
    newest: str | None = None

    @property
    def all_rules(self) -> tuple[Rule, ...]:
        """`rules`, then `further`."""
        return (*self.rules, *self.further)


TARGETS = {
    target.name: target
    for target in (
        Target("any", None, (MaskBroadcast(),)),  # standard operators alone
        # SkipLayerNormalization takes 4 to 5 times as long as Add and LayerNormalization on the CPU, from a few rows on.
        Target("cpu", CPU.provider, _KERNELS),
        Target("cuda", CUDA.provider, _KERNELS, (SkipLayerNorm(), SlicedPositions()), _INTEGER_PRODUCTS, "1.31", "1.31.1"),
        Target("web", "WebGpuExecutionProvider", _KERNELS, (), _INTEGER_PRODUCTS, newest="1.30.0"),
    )
}
# The oldest version that mixtures of experts were tried with, of graphs for the CPU; other targets' are tried with their own versions.
EXPERTS_SINCE = "1.32"
QUERY_SEQLENS_SINCE = "1.32"  # the first version whose GroupQueryAttention takes the input query_seqlens; older ones refuse the graph, as
# they do caches of 8 bits whose window alone is kept


def find_target(name: str) -> Target:
    """The target of a name. Raises `UsageError` for an unknown one."""
    if name not in TARGETS:
        raise UsageError(f"fusion target '{name}' is not known, expected one of {sorted(TARGETS)}; choose one of them")
    return TARGETS[name]


def min_onnxruntime(models: Mapping[str, ir.Model], fusion_target: str) -> str | None:
    """The oldest version of ONNX Runtime that is known to run all graphs (role -> graph), such as "1.32", fused for `fusion_target`.

    It follows from the operators in the graphs and their inputs. Raises `UsageError` for an unknown target.
    """
    oldest = find_target(fusion_target).min_onnxruntime
    nodes = [node for model in models.values() for node in model.graph]
    if any(node.op_type == GroupQueryAttention.kernel and optional(node, LENGTHS) is not None for node in nodes):
        oldest = max(oldest, QUERY_SEQLENS_SINCE, key=_version)
    experts = find_target(fusion_target).newest is None and any(node.op_type in ("MoE", "QMoE") for node in nodes)
    return max(oldest, EXPERTS_SINCE, key=_version) if experts else oldest


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))
