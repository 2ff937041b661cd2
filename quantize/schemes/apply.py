"""Carrying out a plan: every product and every lookup of a graph gets the kernel of its weight's scheme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxport.errors import CheckpointError, UsageError
from onnxport.graph.edit import remove_dead
from onnxport.graph.normalize import fold_constants
from onnxport.quantize.activation_statistics import Statistics, watch
from onnxport.quantize.plan import FP32, Plan, Scheme
from onnxport.quantize.schemes import blockwise, int8
from onnxport.quantize.schemes.linear import Linear, Lookup, linears, lookups

FEWEST_INPUTS = 16  # K: the smallest block
FEWEST_ROWS = 16  # rows of a table: smaller ones (types, languages) cost nothing as they are
Feeds = Sequence[Mapping[str, np.ndarray]]


def changeable(part: Linear | Lookup) -> bool:
    """Whether kernels take a weight; one that they do not take stays in float32, and the plan that was carried out says so."""
    if isinstance(part, Lookup):
        return part.table.shape[1] >= FEWEST_INPUTS and len(part.table) >= FEWEST_ROWS
    return part.shape[0] >= FEWEST_INPUTS


def quantize(
    models: dict[str, ir.Model], plan: Plan, feeds: Mapping[str, Feeds] | None = None
) -> tuple[dict[str, ir.Model], dict[str, str]]:
    """Quantized copies of the graphs of a variant (role -> graph, float32, fused or standard), and what each weight became.

    Weights of linear layers and token embeddings change; biases, norms, positions and everything between stay float32, as do caches and
    logits. The second result maps the PyTorch name of each weight to its scheme, a block's size told (`int8-blocks128`); it is a plan
    itself, which gives the same graphs again. feeds: inputs by name for each role, for schemes that are calibrated.

    UsageError: the plan names what the model has not, or calibration is needed and there are no `feeds`. CheckpointError: nothing changes.
    """
    done = {role: model.clone() for role, model in models.items()}
    found = {}
    for role, copy in done.items():
        fold_constants(copy.graph)
        found[role] = (list(linears(copy.graph)), list(lookups(copy.graph)))
    plan.check(part.parameter for groups in found.values() for group in groups for part in group)
    became: dict[str, str] = {}
    weights = blockwise.Weights()
    schemes = {
        role: [(linear, plan.of(linear.parameter) if changeable(linear) else FP32) for linear in products]
        for role, (products, _) in found.items()
    }
    seen = {role: _statistics(role, models[role], products, feeds) for role, products in schemes.items()}
    for role, products in schemes.items():  # all graphs before any is changed: a weight may have uses in several
        for linear, chosen in products:
            if chosen.needs == "hessian":
                weights.see(linear.weight.T, seen[role].hessian(linear.x))
        for table in found[role][1]:
            if plan.of(table.parameter).needs == "hessian":
                weights.look_up(table.table)
    for role, copy in done.items():
        tables = found[role][1]
        _products(copy.graph, schemes[role], seen[role], weights, became)
        for table in tables:
            chosen = plan.of(table.parameter) if changeable(table) else FP32
            _note(became, table.parameter, chosen, _lookup(copy.graph, table, chosen, weights))
        remove_dead(copy.graph)
        copy.graph.sort()
    if set(plan.schemes.values()) != {"fp32"} and set(became.values()) <= {"fp32"}:
        raise CheckpointError(
            f"no weight of this model can be {', '.join(sorted(set(plan.schemes.values()) - {'fp32'}))}: it has no linear layer of at "
            f"least {FEWEST_INPUTS} inputs and no token embedding that the plan changes; leave this precision out"
        )
    return done, dict(sorted(became.items()))


def _statistics(role: str, model: ir.Model, products: Sequence[tuple[Linear, Scheme]], feeds: Mapping[str, Feeds] | None) -> Statistics:
    """What calibrated schemes must know of the inputs of their layers. Names of values are the same in a graph and its clone."""
    needs: dict[str, set[str]] = {}
    for linear, chosen in products:
        if chosen.needs is not None:
            needs.setdefault(str(linear.x.name), set()).add(chosen.needs)
    if not needs:
        return Statistics({}, {})
    if feeds is None or not feeds.get(role):
        raise UsageError("this precision is calibrated on data, and there is none: give --calibrate FILE")
    return watch(model, needs, feeds[role])


def _products(
    graph: ir.Graph, products: Sequence[tuple[Linear, Scheme]], seen: Statistics, weights: blockwise.Weights, became: dict[str, str]
) -> None:
    by_rows: dict[ir.Value, int8.Quantized] = {}  # activations that were quantized once for all products that read them
    by_range: dict[tuple[ir.Value, str], ir.Value] = {}
    for linear, chosen in products:
        x = linear.x
        if chosen.kind == "fp32":
            _note(became, linear.parameter, chosen, "fp32")
        elif chosen.kind == "rows":
            if x not in by_rows:
                by_rows[x] = int8.quantize_rows(graph, linear.node, x)
            int8.replace_rows(graph, linear, by_rows[x], chosen)
            _note(became, linear.parameter, chosen, chosen.name)
        elif chosen.kind == "static":
            if (x, chosen.range) not in by_range:
                by_range[x, chosen.range] = int8.quantize_activation(graph, linear.node, x, seen.range(x, chosen.range), chosen.range)
            int8.replace_static(graph, linear, by_range[x, chosen.range], chosen)
            _note(became, linear.parameter, chosen, chosen.name)
        else:
            _note(became, linear.parameter, chosen, blockwise.replace_linear(graph, linear, chosen, weights))


def _lookup(graph: ir.Graph, lookup: Lookup, chosen: Scheme, weights: blockwise.Weights) -> str:
    """A table has no activations: what is static elsewhere is, here too, 8 bit with a scale for each of its rows."""
    if chosen.kind == "fp32":
        return "fp32"
    if chosen.kind == "blocks":
        return blockwise.replace_lookup(graph, lookup, chosen, weights)
    int8.replace_lookup(graph, lookup, chosen)
    return chosen.name


def _note(became: dict[str, str], parameter: str, chosen: Scheme, told: str) -> None:
    """What a weight became; where its uses have blocks of several sizes that is what was chosen, which tells each use its own again."""
    names = {told, *became.get(parameter, told).split("+")}
    schemes = names - {"fp32"}
    one = schemes.pop() if len(schemes) == 1 else chosen.name
    became[parameter] = f"{one}+fp32" if "fp32" in names and one != "fp32" else one
