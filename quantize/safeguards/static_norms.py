"""Where one scale for all rows will do: inputs of products that a norm made.

A norm gives each row the same size, so that the largest values of rows are alike, whatever the text. A scale that calibration finds then
loses hardly more than one for each row, and saves the passes that find and use that. Answers still do not depend on who shares a batch.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxport.graph.normalize import fold_constants
from onnxport.quantize.plan import Plan
from onnxport.quantize.schemes.channel_scales import NORMS, ChannelScales
from onnxport.quantize.schemes.linear import Linear, linears

STATIC = "int8-static-minmax"  # nothing that was seen is cut
SMALL = 1.5e-4  # of a product's square, that it may lose in any case,
MORE = 0.25  # and of what all products lose by rows, that others may lose beside it


def settle(model: ir.Model, plan: Plan, scales: ChannelScales) -> Plan:
    """The plan with STATIC in the place of rows for weights whose inputs norms make: those that lose little, least first.

    model: a text encoder in float32, fused. scales: of the same model, on texts. Losses of products are squared errors relative to them,
    which add up about as independent noise does.
    """
    copy = model.clone()
    fold_constants(copy.graph)
    uses: dict[str, list[Linear]] = {}
    for linear in linears(copy.graph):
        uses.setdefault(linear.parameter, []).append(linear)
    wanted = {name: _static(plan, name) for name, some in uses.items() if plan.of(name).kind == "rows" and all(map(_after_a_norm, some))}
    rows, static = scales.losses(plan), scales.losses(Plan(plan.schemes | wanted))
    groups: dict[tuple[str, ...], list[str]] = {}  # inputs → weights that read them
    for name in wanted:
        groups.setdefault(tuple(sorted({str(linear.x.name) for linear in uses[name]})), []).append(name)
    more = {inputs: sum(static[x] - rows[x] for x in inputs) for inputs in groups if all(x in static for x in inputs)}
    left, chosen = MORE * sum(rows.values()), dict[str, str]()
    for inputs in sorted(more, key=more.__getitem__):
        if any(static[x] > SMALL for x in inputs) and (left := left - max(more[inputs], 0.0)) < 0:
            continue
        chosen |= {name: wanted[name] for name in groups[inputs]}
    return Plan(plan.schemes | chosen)


def after_norms(graph: ir.Graph) -> set[str]:
    """PyTorch names of the weights all of whose inputs norms make."""
    uses = [(linear.parameter, _after_a_norm(linear)) for linear in linears(graph)]
    return {name for name, _ in uses} - {name for name, after in uses if not after}


def _static(plan: Plan, parameter: str) -> str:
    return f"{STATIC}-reduced" if plan.of(parameter).reduced else STATIC


def _after_a_norm(linear: Linear) -> bool:
    maker = linear.x.producer()
    return maker is not None and maker.op_type in NORMS and maker.outputs[0] is linear.x
