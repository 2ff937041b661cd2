"""How a variant's error grows through the layers: the residual stream behind each layer against that of the float32 graph.

Both graphs run on the same inputs with what each layer hands on as further outputs. A layer is told by the module names in its values'
names (`encoder.layers.0/Add_2_output_0`), which every scheme leaves as they are.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxport.graph.lazy import mapped
from onnxport.graph.pieces import walk
from onnxport.graph.session import real
from onnxport.quantize.calibration_inputs import window
from onnxport.runtime.bundle import golden, interface

Feed = Mapping[str, np.ndarray]
Graphs = Mapping[str, ir.Model]

# What ends a layer: the sum with its input, or the norm after that sum.
_ENDS = {
    "Add", "LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization",
    "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
}  # fmt: skip
_LAYER = re.compile(r"(?:^|.*?\.)[A-Za-z_]\w*\.\d+(?=\.|$)")  # encoder.layers.0, h.11, decoder.block.3
_FOREIGN = re.compile(r".*?(?:layer|block)s?[._]{1,3}\d+(?=\.|$)")  # encoder.layer_._0, as TensorFlow's exporter writes it


def growth(reference: Graphs, variant: Graphs, goldens: str | Path) -> list[dict[str, Any]]:
    """`layer_errors` of all graphs of a variant (role -> graph) on the inputs of a bundle's golden answers, encoder before decoder.

    A decoder reads what its own encoder made, so that the error goes on from one to the other. [] where the graphs name no layers.
    """
    cases = golden.read(Path(goldens))
    for name in (golden.GREEDY, golden.TEXT):
        cases.pop(name, None)
    if "decoder" not in reference:
        feeds = [golden.inputs(case) for case in cases.values()]
        return [entry for role in reference for entry in layer_errors(reference[role], variant[role], feeds)]
    found: list[dict[str, Any]] = []
    crosses: list[list[Feed]] = [[{} for _ in cases] for _ in range(2)]
    if "encoder" in reference:
        sources = [interface.source(case["source_ids"], case["source_mask"]) for case in cases.values()]
        found = layer_errors(reference["encoder"], variant["encoder"], sources)
        for cross, graphs in zip(crosses, (reference, variant), strict=True):
            names = [str(v.name) for v in graphs["encoder"].graph.outputs if str(v.name).startswith(interface.CROSS)]
            made = _run(graphs["encoder"], names, sources)
            cross[:] = [values | {interface.SOURCE_MASK: given[interface.SOURCE_MASK]} for values, given in zip(made, sources, strict=True)]
    begun = [interface.prefill(*golden.targets(case)) for case in cases.values()]
    feeds, others = ([feed | dict(one) for feed, one in zip(begun, cross, strict=True)] for cross in crosses)
    return found + layer_errors(reference["decoder"], variant["decoder"], feeds, others)


def layer_errors(
    reference: ir.Model, variant: ir.Model, feeds: Sequence[Feed], others: Sequence[Feed] | None = None
) -> list[dict[str, Any]]:
    """[{"name": layer, "relative_error": float}] in the order of the layers, over all feeds together.

    relative_error is rms(difference) / rms(reference - its mean over the last axis), as in the parity of a bundle; inf where the variant is
    not finite. Padding does not count: what `attention_mask`, `source_mask` or, of a decoder, `seqlens_k` leaves out.

    reference, variant: graphs of one role; they stay as they are.  feeds: inputs by name, more than the graphs ask for are allowed; caches
    begin empty.  others: what the variant reads instead, case by case.
    A layer is left out where the variant has no value of that name any more.
    """
    theirs = _values(variant.graph)
    ends = {layer: name for layer, name in layer_ends(reference.graph).items() if name in theirs}
    if not ends:
        return []
    names = list(ends.values())
    wrong, whole = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    right = list(_run(reference, names, feeds))  # one graph after the other, each of which is in memory
    wrongs = _run(variant, names, feeds if others is None else others)
    for feed, expected, found in zip(feeds, right, wrongs, strict=True):
        for name in names:
            a, b = (_rows(side[name], feed).astype(np.float64) for side in (expected, found))
            wrong[name] += float(np.square(a - b).sum()) if np.isfinite(b).all() else float("inf")
            whole[name] += float(np.square(a - a.mean(-1, keepdims=True)).sum())
    return [{"name": layer, "relative_error": float(np.sqrt(wrong[name] / (whole[name] or 1.0)))} for layer, name in ends.items()]


def layer_ends(graph: ir.Graph) -> dict[str, str]:
    """Layer -> name of the value that it hands on: its last sum or norm that something outside reads. In graph order."""
    layers = {node: _layer(node) for node in graph}
    found: dict[str, str] = {}
    for node in graph:
        layer = layers[node] or _inherited(node, layers)
        if layer is None or node.op_type not in _ENDS:
            continue
        for value in node.outputs:
            outside = any(layers.get(use.node) != layer for use in value.uses())
            if value.name and (outside or value.is_graph_output()):
                found.pop(layer, None)
                found[layer] = value.name
    return found


def _layer(node: ir.Node) -> str | None:
    """The layer that a node belongs to, by what the exporter noted or by the name of what it gives; None outside of layers."""
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
    if scopes:
        paths = [part for part in ast.literal_eval(scopes)[:-1] if part]
        return _layer_of(paths[-1]) if paths else None
    name = next((v.name for v in node.outputs if v.name), "")
    return _layer_of(name.rpartition("/")[0]) if "/" in name else None


def _layer_of(path: str) -> str | None:
    dotted = path.strip("/").replace("/", ".")
    match = _LAYER.match(dotted) or _FOREIGN.match(dotted)
    return match[0] if match else None


def _inherited(node: ir.Node, layers: Mapping[ir.Node, str | None]) -> str | None:
    """The layer of a node whose value is an output of the graph, and is named as such: that of its weights, or the last it reads."""
    if not any(v.is_graph_output() for v in node.outputs):
        return None
    weights = [_layer_of(str(v.name)) for v in node.inputs if v is not None and v.is_initializer()]
    if weights:
        return weights[0]
    read = {layers[producer] for v in node.inputs if v is not None and (producer := v.producer()) is not None}
    return next((layer for layer in reversed(list(layers.values())) if layer is not None and layer in read), None)


def _values(graph: ir.Graph) -> set[str]:
    return {str(v.name) for node in graph for v in node.outputs}


def _run(model: ir.Model, names: Sequence[str], feeds: Sequence[Feed]) -> Iterator[dict[str, np.ndarray]]:
    """The named values on each feed. Those of a graph of several pieces lie in files until they are read."""
    room = window(model)
    given = [dict(_inputs(model.graph, feed, room)) for feed in feeds]
    found: list[dict[str, np.ndarray]] = [{} for _ in feeds]
    for piece in walk(model, given, names):
        for values, more in zip(found, piece.run(piece.names & set(names)), strict=True):
            values |= {name: mapped(array) for name, array in more.items()}
    yield from found


def _inputs(graph: ir.Graph, feed: Feed, room: int | None) -> Iterator[tuple[str, np.ndarray]]:
    """What a graph's inputs read: from the feed, in the graph's own float type, or an empty cache with `room`, else as long as the ids.

    An input that nothing here fills is one that the values of layers do not need.
    """
    for value in graph.inputs:
        name, kind = str(value.name), np.dtype(np.float32 if value.dtype is None else value.dtype.numpy())
        if name in feed:
            array = feed[name]
            yield name, array.astype(kind) if kind.kind == "f" and array.dtype != kind else array
        elif name.startswith(interface.PAST):
            assert value.shape is not None
            _, heads, _, size = value.shape
            rows, length = feed[interface.INPUT_IDS].shape
            yield name, np.zeros((rows, int(heads), room or length, int(size)), kind)


def _rows(array: np.ndarray, feed: Feed) -> np.ndarray:
    """A value [batch, positions, ..., width] as [rows, width], padding left out."""
    return real(array, feed).reshape(-1, array.shape[-1])
