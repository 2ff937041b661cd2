"""INT8 with one scale per block of 16 to 128 weights of an output: for the steps of a decoder, where reading weights is what takes time.

A table of embeddings has the same form as the projection to the vocabulary, so tied weights are the same bytes, stored once.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxport.quantize.fusion.core import constant, new_node, take_over
from onnxport.quantize.linear import Linear, Lookup
from onnxport.quantize.plan import Scheme

BITS = 8
SIZES = (128, 64, 32, 16)
ACCURACY = 4  # activations are quantized to int8 in blocks too


def block_size(k: int) -> int:
    """The largest block that divides K; if none does, one that wastes little and leaves the last block padded."""
    return next((size for size in SIZES if k % size == 0), 32 if k >= 32 else 16)


def quantize_blocks(weight: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """weight float [N, K] -> uint8 [N, blocks, size] around 128, scale float [N, blocks]; symmetric, the padding of the last block is 0."""
    n, k = weight.shape
    blocks = -(-k // size)
    padded = np.zeros((n, blocks * size), np.float32)
    padded[:, :k] = weight
    padded = padded.reshape(n, blocks, size)
    largest = np.abs(padded).max(2)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return (np.rint(padded / scale[:, :, None]).clip(-127, 127) + 128).astype(np.uint8), scale


def replace_linear(graph: ir.Graph, linear: Linear, chosen: Scheme, hessian: np.ndarray | None = None) -> str:
    """Put a MatMulNBits in the place of a product; returns the scheme with its block size told. hessian: of x, for GPTQ."""
    k, n = linear.shape
    size = chosen.block or block_size(k)
    data, scale = quantize_blocks(linear.weight.T, size)
    name = linear.node.outputs[0].name
    inputs = [linear.x, constant(graph, f"{name}/uint8", data), constant(graph, f"{name}/block_scale", scale)]
    if linear.bias is not None:
        inputs += [None, None, linear.bias]  # no zero points (128), no order of groups
    attributes = {"K": k, "N": n, "bits": BITS, "block_size": size, "accuracy_level": ACCURACY}
    node = new_node(graph, linear.node, "MatMulNBits", inputs, attributes, [linear.output])
    take_over(linear.output, node.outputs[0])
    return _named(chosen, size)


def _named(chosen: Scheme, size: int) -> str:
    kind, _, rest = chosen.name.partition("-blocks")
    return f"{kind}-blocks{size}{rest.lstrip('0123456789')}"


def replace_lookup(graph: ir.Graph, lookup: Lookup, chosen: Scheme) -> str:
    """Put a GatherBlockQuantized in the place of a Gather; returns the scheme with its block size told."""
    k = lookup.table.shape[1]
    size = chosen.block or block_size(k)
    data, scale = quantize_blocks(lookup.table, size)
    out = lookup.node.outputs[0]
    name = out.name
    table = data.reshape(len(data), -1)
    inputs = [constant(graph, f"{name}/uint8", table), lookup.ids, constant(graph, f"{name}/block_scale", scale)]
    attributes = {"bits": BITS, "block_size": size, "gather_axis": 0, "quantize_axis": 1}
    whole = table.shape[1] == k
    wide = out if whole else ir.Value(name=f"{name}/padded", type=out.type)
    y = new_node(graph, lookup.node, "GatherBlockQuantized", inputs, attributes, [wide]).outputs[0]
    if not whole:
        ends = [constant(graph, f"slice_{i}", np.array([i], np.int64)) for i in (0, k, -1)]
        y = new_node(graph, lookup.node, "Slice", [y, *ends], {}, [out], domain="").outputs[0]
    take_over(out, y)
    return _named(chosen, size)
