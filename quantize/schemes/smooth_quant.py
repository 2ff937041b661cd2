"""SmoothQuant (Xiao et al. 2022): what is hard to quantize in activations is moved into weights, channel by channel.

A channel j of x is divided by s_j and row j of the weights that read x multiplied by it: the product stays the same, but no single channel
sets the scale of a whole row any more. s_j = sqrt(largest |x_j| / largest |w_j|), over some inputs that the graph is run on; which channels
stand out is a property of the model, so that a few inputs tell it. Which are small is not, so none counts as smaller than the usual one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxport.graph.edit import constant, new_node
from onnxport.quantize.activation_statistics import Peak, observe
from onnxport.quantize.schemes.linear import Linear, linears

SMALLEST = 1e-5
Feeds = Sequence[Mapping[str, np.ndarray]]


def smooth(model: ir.Model, feeds: Feeds) -> ir.Model:
    """A copy whose linear layers read smoothed activations. `feeds`: inputs by name, with `attention_mask` where the graph has one."""
    copy = model.clone()
    groups: dict[ir.Value, list[Linear]] = {}
    for linear in linears(copy.graph):
        groups.setdefault(linear.x, []).append(linear)
    peaks = {str(x.name): Peak() for x in groups}
    observe(copy, {name: [peak] for name, peak in peaks.items()}, feeds)
    for x, group in groups.items():
        weights = np.maximum(np.max([np.abs(linear.weight).max(1) for linear in group], 0), SMALLEST)
        scale = np.sqrt(_usual(np.asarray(peaks[str(x.name)].largest)) / weights)
        scale = (scale / np.exp(np.log(scale).mean())).astype(np.float32)
        _divide(copy.graph, x, group, scale)
    return copy


def _usual(largest: np.ndarray) -> np.ndarray:
    """The largest magnitude of each channel, at least that of half of those that were met at all.

    A unit behind a ReLU may be silent on all inputs that were run and speak on the next: it must not be made large by then.
    """
    met = largest[largest > 0]
    usual: np.ndarray = np.maximum(largest, max(float(np.median(met)) if met.size else 0.0, SMALLEST))
    return usual


def _divide(graph: ir.Graph, x: ir.Value, group: Sequence[Linear], scale: np.ndarray) -> None:
    like = ir.Value(name=f"{x.name}/smooth", type=x.type, shape=x.shape)
    factor = constant(graph, f"{x.name}/smoothing", 1 / scale)
    even = new_node(graph, group[0].node, "Mul", [x, factor], {}, [like], domain="").outputs[0]
    for linear in group:
        old = linear.node.inputs[1]
        assert old is not None
        weight = linear.weight * scale[:, None]
        new = constant(graph, f"{old.name}/smooth", np.ascontiguousarray(weight.T if linear.transposed else weight))
        new.metadata_props.update(old.metadata_props)
        new.meta.update(old.meta)
        linear.node.replace_input_with(0, even)
        linear.node.replace_input_with(1, new)
        if not old.uses():  # the name is how a plan calls it
            name = str(old.name)
            del graph.initializers[name]
            new.name = name
