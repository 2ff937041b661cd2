"""Mixtures of experts of 8 or 4 bit: ONNX Runtime's QMoE reads the weights of chosen experts alone, in blocks as MatMulNBits has them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from onnxport.graph.edit import constant, new_node, optional, source, take_over
from onnxport.quantize.plan import FP32, Plan, Scheme, scheme
from onnxport.quantize.schemes.blocks.blockwise import ACCURACY, SIZES, named, rounded
from onnxport.quantize.schemes.mixtures import DOWN, UP, Mixture, mixtures

EIGHT_BITS = scheme("int8-blocks")  # of experts, in the place of rows: the kernel knows blocks alone


def chosen(plan: Plan, mixture: Mixture) -> Scheme:
    """The scheme of a mixture, see `fitting`."""
    return fitting([plan.of(parameter) for parameter in mixture.parameters], mixture.widths)


def changeable(mixture: Mixture) -> bool:
    """Whether the kernel takes a mixture: one that it does not take stays in float32."""
    return not any(width % SIZES[-1] for width in mixture.widths)


def fitting(schemes: Sequence[Scheme], widths: Collection[int]) -> Scheme:
    """What the kernel has for the schemes of weights, with its block size: of all the finest; fp32 where one is, or no block fits.

    widths: numbers of inputs, which blocks divide. Blocks are the smallest ones, and have zero points where one of the weights has: what
    lies on the grid of its own scheme lies on this. No scheme looks at inputs here: what would be solved by them is rounded to nearest.
    """
    if any(one.kind == "fp32" for one in schemes):
        return FP32
    blocks = [one if one.kind == "blocks" else EIGHT_BITS for one in schemes]
    most = min(one.block or SIZES[0] for one in blocks)
    size = next((size for size in SIZES if size <= most and not any(width % size for width in widths)), None)
    if size is None:
        return FP32
    finest = max(blocks, key=lambda one: (one.bits, not one.symmetric))
    name = finest.plain.name.replace("-min", "-asym").replace("-sorted", "")
    return scheme(named(scheme(name if finest.needs is None else name.removesuffix(f"-{finest.solver}")), size))


def replace_mixtures(graph: ir.Graph, plan: Plan) -> Iterator[tuple[str, Scheme]]:
    """Give every mixture the kernel of its scheme; gives the name of each weight and what it became."""
    for mixture in mixtures(graph):
        found = chosen(plan, mixture)
        if found.kind != "fp32":
            _replace(graph, mixture, found)
        for parameter in mixture.parameters:
            yield parameter, found


def _replace(graph: ir.Graph, mixture: Mixture, found: Scheme) -> None:
    """Put a QMoE in the place of a MoE. found: of blocks, with their size."""
    assert found.block is not None
    node, name = mixture.node, mixture.node.outputs[0].name
    inputs: list[ir.Value | None] = [source(node, 0), source(node, 1)]
    zeros: list[ir.Value | None] = []
    for part, place, tensor in zip(("up", "down"), (UP, DOWN), mixture.tensors, strict=True):
        codes, scales, points = zip(*(_packed(expert, found) for expert in tensor.numpy()), strict=True)
        inputs += [
            constant(graph, f"{name}/{part}/uint{found.bits}", np.stack(codes)),
            constant(graph, f"{name}/{part}/block_scale", np.stack(scales)),
            optional(node, place + 1),
        ]
        zeros.append(None if points[0] is None else constant(graph, f"{name}/{part}/block_zero", np.stack(points)))
    if any(zero is not None for zero in zeros):
        inputs += [None, None, None, *zeros]  # no third product
    attributes = {key: value.value for key, value in node.attributes.items()}
    attributes |= {"expert_weight_bits": found.bits, "block_size": found.block, "accuracy_level": ACCURACY}
    made = new_node(graph, node, "QMoE", inputs, attributes, [node.outputs[0]])
    take_over(node.outputs[0], made.outputs[0])


def _packed(expert: np.ndarray, found: Scheme) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """float [N, K] → codes uint8 [N, K * bits / 8], scales float32 [N, blocks], and zero points or None."""
    assert found.block is not None
    blocks = rounded(expert, found, found.block)
    return blocks.packed().reshape(len(expert), -1), blocks.grid.scale, blocks.grid.packed_zero()
