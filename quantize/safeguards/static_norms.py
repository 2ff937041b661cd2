"""Inputs of products that norms make get one scale for all rows, where products hardly lose by it.

A norm gives each row the same size, so that the largest values of rows are alike, whatever the text. A scale that calibration finds then
loses hardly more than one for each row, and saves the passes that find and use that. Answers still do not depend on who shares a batch.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxport.graph.normalize import fold_constants
from onnxport.quantize.plan import Plan
from onnxport.quantize.schemes.channel_scales import ChannelScales, made_by_norm
from onnxport.quantize.schemes.linear import Linear, linears

STATIC = "int8-static-minmax"  # nothing that was seen is cut
ROWS = "int8-rows"
SMALL = 1.5e-4  # of its square, that a product may lose in any case,
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
    by_rows = {name for name in after_norms(copy.graph) if plan.of(name).kind == "rows"}
    wanted = {name: _static(plan, name) for name in uses if name in by_rows}
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


def instead(scheme: str) -> str:
    """The scheme of weights whose inputs no norm makes, where a module has a scheme: a module's STATIC is ROWS for them."""
    return ROWS if scheme == STATIC else scheme


def after_norms(graph: ir.Graph) -> set[str]:
    """PyTorch names of the weights all of whose inputs norms make."""
    uses = [(linear.parameter, made_by_norm(linear.x)) for linear in linears(graph)]
    return {name for name, _ in uses} - {name for name, after in uses if not after}


def _static(plan: Plan, parameter: str) -> str:
    return f"{STATIC}-reduced" if plan.of(parameter).reduced else STATIC
