"""The weights that a graph's answers are too sensitive about, by the error that each one's scheme makes alone.

Errors of layers add up about as independent noise does: the square of a graph's error is near the sum of the squares that its layers
make one by one. So those that make most of it for their size go back to float32 until what is left is small enough, and the graph as it
would be is measured again. To try them all, one graph holds each product twice, with a switch between the two. (Mixed precision as in
HAWQ, Dong et al. 2019, with a measured error in place of curvature.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxport.graph.edit import constant, new_node
from onnxport.graph.normalize import PARAMETER, fold_constants
from onnxport.graph.session import answers, opened, real
from onnxport.quantize.plan import Plan
from onnxport.quantize.schemes.apply import quantize
from onnxport.quantize.schemes.linear import Linear, linears
from onnxport.runtime.arrays import relative_error

Feeds = Sequence[Mapping[str, np.ndarray]]
Answers = list[dict[str, np.ndarray]]
TWIN, SWITCHES = "@quantized", "switches"
ROLE = "encoder"


def to_keep(model: ir.Model, feeds: Feeds, plan: Plan, most: float) -> dict[str, str]:
    """PyTorch names of weights → "fp32": what `plan` has to leave as it is for a relative error of the answers of at most `most`.

    Empty where the plan's own graph is within `most`, which two runs of the feeds tell. model: float32, fused, of the role `encoder`;
    feeds: inputs by name. The error is the root mean square of the difference over that of the answers about their mean, of the worst
    output and feed; positions that an `attention_mask` leaves out do not count. Where nothing helps, every product is kept.
    """
    expected = answers(model, feeds)

    def whole(kept: dict[str, str]) -> float:
        quantized = quantize({ROLE: model}, Plan({**plan.schemes, **kept}))[0][ROLE]
        return _error(answers(quantized, feeds), expected, feeds)

    if whole({}) <= most:
        return {}
    twins, parameters, sizes = _twins(model, plan)
    with opened({ROLE: twins}) as runners:

        def error(on: np.ndarray) -> float:
            return _error(list(runners[ROLE].run({**feed, SWITCHES: on} for feed in feeds)), expected, feeds)

        alone = np.array([error(one) for one in np.eye(len(parameters), dtype=bool)])
        on, kept = np.ones(len(parameters), bool), {}
        for i in np.argsort(-(alone**2) / np.array(sizes), kind="stable"):
            on[i], kept[parameters[i]] = False, "fp32"
            if not on.any() or (error(on) <= most and whole(kept) <= most):
                break
    return kept


def _twins(model: ir.Model, plan: Plan) -> tuple[ir.Model, list[str], list[int]]:
    """A graph with an input `switches` bool [weights]: true where a product is the plan's; names and sizes of the weights."""
    both = model.clone()
    graph = both.graph
    fold_constants(graph)
    groups: dict[str, list[Linear]] = {}
    for linear in linears(graph):
        if plan.of(linear.parameter).kind != "fp32":
            groups.setdefault(linear.parameter, []).append(linear)
    switches = ir.Value(name=SWITCHES, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([len(groups)]))
    graph.inputs.append(switches)
    schemes = dict(plan.schemes)
    for i, (parameter, uses) in enumerate(groups.items()):
        schemes[parameter] = "fp32"
        schemes[parameter + TWIN] = plan.of(parameter).name
        for use, linear in enumerate(uses):
            _twin(graph, linear, switches, i, use)
    return quantize({ROLE: both}, Plan(schemes))[0][ROLE], list(groups), [uses[0].weight.size for uses in groups.values()]


def _twin(graph: ir.Graph, linear: Linear, switches: ir.Value, place: int, use: int) -> None:
    """Adds a product like `linear` with a weight of its own, and lets its switch choose between the two."""
    node, weight = linear.node, linear.node.inputs[1]
    assert weight is not None and weight.const_value is not None
    name = linear.parameter + TWIN
    label = f"{name}/{use}" if use else name
    copy = constant(graph, label, weight.const_value.numpy())
    copy.meta[PARAMETER] = name
    out = node.outputs[0]
    uses = list(out.uses())
    product = ir.Value(name=f"{label}/product", type=out.type, shape=out.shape)
    inputs = [node.inputs[0], copy, *node.inputs[2:]]
    twin = new_node(graph, node, node.op_type, inputs, dict(node.attributes), [product], domain="").outputs[0]
    at = constant(graph, f"switch/{place}", np.array(place, np.int64))
    choice = ir.Value(name=f"{label}/on", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
    on = new_node(graph, node, "Gather", [switches, at], {"axis": 0}, [choice], domain="").outputs[0]
    chosen = ir.Value(name=f"{label}/chosen", type=out.type, shape=out.shape)
    where = ir.Node("", "Where", [on, twin, out], outputs=[chosen])
    graph.insert_after(node, where)
    for reader, index in uses:
        reader.replace_input_with(index, chosen)


def _error(found: Answers, expected: Answers, feeds: Feeds) -> float:
    worst = 0.0
    for ours, theirs, feed in zip(found, expected, feeds, strict=True):
        for name, answer in theirs.items():
            golden, values = (real(array, feed).astype(np.float64) for array in (answer, ours[name]))
            worst = max(worst, relative_error(golden, values))
    return worst
