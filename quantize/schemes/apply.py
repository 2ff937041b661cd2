"""Plans are carried out: every product and every lookup of a graph gets the kernel of its weight's scheme."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxport.errors import NotApplicable, UsageError
from onnxport.graph.edit import remove_dead
from onnxport.graph.normalize import fold_constants
from onnxport.graph.pieces import walk
from onnxport.graph.store import collect
from onnxport.quantize.activation_statistics import Hessian, Range, observe, watch
from onnxport.quantize.plan import FP32, Plan, Scheme
from onnxport.quantize.schemes import experts, int8
from onnxport.quantize.schemes.blocks import blockwise
from onnxport.quantize.schemes.linear import Linear, Lookup, linears, lookups
from onnxport.quantize.schemes.mixtures import Mixture, parameters
from onnxport.quantize.schemes.rotation import Rotations, run_length

FEWEST_INPUTS = 16  # K: the smallest block
FEWEST_ROWS = 16  # rows of a table: smaller ones (types, languages) cost nothing as they are
WIDE = 2**26  # numbers of a weight: float32 of it is no small part of what an export takes
COSTS = ("hessian", "square")  # what schemes need to tell what an error costs
MOST_COSTS = 2**29  # bytes of Hessians that are held at once: those of more weights take further runs of the graph
QUANTIZED = {"MatMulNBits", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul", "DequantizeLinear", "QMoE"}
Feeds = Sequence[Mapping[str, np.ndarray]]


def chosen(plan: Plan, part: Linear | Lookup | Mixture) -> Scheme:
    """A weight's scheme, or a mixture's, or fp32 where kernels do not take it; the plan that was carried out says so."""
    if isinstance(part, Mixture):
        return experts.chosen(plan, part)
    found = plan.of(part.parameter)
    k = part.shape[1] if isinstance(part, Lookup) else part.shape[0]
    whole = not found.minimum or k % (found.block or FEWEST_INPUTS) == 0
    if found.rotated and run_length(k) is None:
        found = found.plain
    return found if changeable(part) and whole else FP32


def changeable(part: Linear | Lookup | Mixture) -> bool:
    """Whether kernels take a weight; one that they do not take stays in float32."""
    if isinstance(part, Mixture):
        return experts.changeable(part)
    if isinstance(part, Lookup):
        return part.shape[1] >= FEWEST_INPUTS and part.shape[0] >= FEWEST_ROWS
    return part.shape[0] >= FEWEST_INPUTS


def quantize(
    models: dict[str, ir.Model],
    plan: Plan,
    feeds: Mapping[str, Feeds] | None = None,
    weights: blockwise.Weights | None = None,
) -> tuple[dict[str, ir.Model], dict[str, str]]:
    """Quantized copies of the graphs of a variant (role -> graph, float32, fused or standard), and what each weight became.

    Weights of linear layers, token embeddings and experts change; biases, norms, positions and everything between stay float32, as do
    caches and logits. The second result maps the PyTorch name of each weight to its scheme, with the size of its blocks
    (`int8-blocks128`); it is a plan itself, which gives the same graphs again. feeds: inputs by name for each role, for schemes that are
    calibrated. weights: what is solved already, by the same feeds; what is solved here is added.

    UsageError: the plan names what the model has not, or calibration is needed and there are no `feeds`. NotApplicable: nothing changes.
    """
    weights = weights or blockwise.Weights()
    copies, products, tables = _prepared(models, plan)
    looked_up = [table for pairs in tables.values() for table, _ in pairs]
    known = [linear.parameter for pairs in products.values() for linear, _ in pairs] + [table.parameter for table in looked_up]
    plan.check(known + parameters(copies.values()))
    _solve(copies, products, looked_up, plan, feeds, weights)
    ranges = {role: _ranges(role, copies[role], products[role], feeds) for role in copies}
    became: dict[str, str] = {}
    for role, copy in copies.items():
        kernels = _Kernels(copy.graph, ranges[role], weights)
        for linear, scheme in products[role]:
            _note(became, linear.parameter, scheme, KINDS[scheme.kind][0](kernels, linear, scheme))
            _let_go(linear)
        for table, scheme in tables[role]:
            _note(became, table.parameter, scheme, KINDS[scheme.kind][1](kernels, table, scheme))
            _let_go(table)
        for parameter, scheme in experts.replace_mixtures(copy.graph, plan):
            _note(became, parameter, scheme, scheme.name)
        remove_dead(copy.graph)
        copy.graph.sort()
    _check_change(plan, became, copies)
    return copies, dict(sorted(became.items()))


def solve(models: Mapping[str, ir.Model], plan: Plan, feeds: Mapping[str, Feeds], weights: blockwise.Weights) -> None:
    """Add to `weights` what `plan` solves by inputs of products: all graphs that are made of these weights find it. UsageError."""
    copies, products, tables = _prepared(models, plan)
    _solve(copies, products, [table for pairs in tables.values() for table, _ in pairs], plan, feeds, weights)


def _prepared(
    models: Mapping[str, ir.Model], plan: Plan
) -> tuple[dict[str, ir.Model], dict[str, list[tuple[Linear, Scheme]]], dict[str, list[tuple[Lookup, Scheme]]]]:
    """Copies of the graphs whose channels are rotated as the plan wants it, and their products and lookups with the schemes of these."""
    copies = {role: model.clone() for role, model in models.items()}
    products: dict[str, list[tuple[Linear, Scheme]]] = {}
    tables: dict[str, list[tuple[Lookup, Scheme]]] = {}
    for role, copy in copies.items():
        fold_constants(copy.graph)
        _rotate(copy.graph, plan)
        products[role] = [(linear, chosen(plan, linear)) for linear in linears(copy.graph)]
        tables[role] = [(lookup, chosen(plan, lookup)) for lookup in lookups(copy.graph)]
    return copies, products, tables


def _rotate(graph: ir.Graph, plan: Plan) -> None:
    """Rotates what the plan's schemes want rotated, in float32: all that follows sees rotated channels."""
    rotations = Rotations(graph)
    for linear in linears(graph):
        if chosen(plan, linear).rotated:
            rotations.of_product(linear)
    for table in lookups(graph):
        if chosen(plan, table).rotated:
            rotations.of_lookup(table)


def _solve(
    copies: Mapping[str, ir.Model],
    products: Mapping[str, Sequence[tuple[Linear, Scheme]]],
    looked_up: Sequence[Lookup],
    plan: Plan,
    feeds: Mapping[str, Feeds] | None,
    weights: blockwise.Weights,
) -> None:
    """Solves the weights whose schemes look at inputs, before any graph is changed.

    Each is solved by all of its uses, which several graphs may have. What was solved before the export began is not solved again; the
    graphs give up the same values all the same, for those that they do not give up may be fused into others and be rounded otherwise.
    """
    for table in looked_up:
        if plan.of(table.parameter).needs == "hessian":
            weights.look_up(table.key)
    keys: dict[ir.Node, str] = {}
    wanted: dict[str, list[tuple[Linear, Scheme]]] = {}
    for role, pairs in products.items():
        calibrated = [pair for pair in pairs if pair[1].needs in COSTS]
        keys |= {linear.node: linear.key for linear, _ in calibrated}
        wanted[role] = [(linear, found) for linear, found in calibrated if not weights.has(keys[linear.node], found, _size(linear, found))]
    unsolved = {
        role: [(linear, found) for linear, found in pairs if not weights.take_over(keys[linear.node], found, _size(linear, found))]
        for role, pairs in wanted.items()
    }
    left = Counter(keys[linear.node] for pairs in unsolved.values() for linear, _ in pairs)
    for role, pairs in unsolved.items():
        inputs = [str(linear.x.name) for linear, _ in wanted[role]]
        for piece in walk(copies[role], _given(role, feeds), inputs) if pairs else ():
            for batch in _batches([pair for pair in pairs if pair[0].x.name in piece.names]):
                statistics = watch(piece, _needs(batch))
                for linear, found in batch:
                    key = keys[linear.node]
                    weights.see(key, getattr(statistics, str(found.needs))(linear.x))
                    left[key] -= 1
                    if not left[key]:
                        weights.solve(key, linear.rows, found, _size(linear, found))


def _needs(products: Sequence[tuple[Linear, Scheme]]) -> dict[str, set[str]]:
    """What schemes must know of values, by name."""
    needs: dict[str, set[str]] = {}
    for linear, scheme in products:
        needs.setdefault(str(linear.x.name), set()).add(str(scheme.needs))
    return needs


def _size(linear: Linear, scheme: Scheme) -> int:
    return blockwise.block_size(linear.shape[0], scheme.block)


def _batches(pairs: Sequence[tuple[Linear, Scheme]]) -> Iterator[list[tuple[Linear, Scheme]]]:
    """Products whose inputs are watched in one run of the graph, in its order: their Hessians take MOST_COSTS bytes at most."""
    batch, inputs, held = list[tuple[Linear, Scheme]](), set[ir.Value](), 0
    for linear, scheme in pairs:
        more = Hessian.bytes_of(linear.shape[0]) if scheme.needs == "hessian" and linear.x not in inputs else 0
        if batch and held + more > MOST_COSTS:
            yield batch
            batch, inputs, held = [], set(), 0
        batch.append((linear, scheme))
        inputs.add(linear.x)
        held += more
    if batch:
        yield batch


def _check_change(plan: Plan, became: dict[str, str], models: dict[str, ir.Model]) -> None:
    wanted = set(plan.schemes.values()) - {"fp32"}
    if wanted and set(became.values()) <= {"fp32"}:
        stored = sum(node.op_type in QUANTIZED for model in models.values() for node in model.graph)
        raise NotApplicable(
            f"no weight of this model can be {', '.join(sorted(wanted))}: it has no linear layer of at least {FEWEST_INPUTS} inputs in "
            f"float32 and no token embedding that the plan changes{f', {stored} of its nodes are quantized already' if stored else ''}; "
            "leave this precision out"
        )


def _ranges(role: str, model: ir.Model, products: Sequence[tuple[Linear, Scheme]], feeds: Mapping[str, Feeds] | None) -> dict[str, Range]:
    """Ranges of the inputs of layers whose schemes need them, by name. Names of values are the same in a graph and its clone."""
    found = {str(linear.x.name): Range() for linear, scheme in products if scheme.needs == "range"}
    if found:
        observe(model, {name: [seen] for name, seen in found.items()}, _given(role, feeds))
    return found


def _given(role: str, feeds: Mapping[str, Feeds] | None) -> Feeds:
    """What a graph is calibrated on. UsageError: there is nothing."""
    if feeds is None or not feeds.get(role):
        raise UsageError("this precision is calibrated on data, and there is none: give --calibrate FILE")
    return feeds[role]


class _Kernels:
    """Puts kernels into one graph; activations are quantized once for all products that read them. Methods give what a weight became."""

    def __init__(self, graph: ir.Graph, ranges: Mapping[str, Range], weights: blockwise.Weights) -> None:
        self.graph, self.ranges, self.weights = graph, ranges, weights
        self.by_rows: dict[ir.Value, int8.Quantized] = {}
        self.by_range: dict[tuple[ir.Value, str], int8.Activation] = {}

    def keep(self, part: Linear | Lookup, scheme: Scheme) -> str:
        return FP32.name

    def product_by_rows(self, linear: Linear, scheme: Scheme) -> str:
        x = linear.x
        if x not in self.by_rows:
            self.by_rows[x] = int8.quantize_rows(self.graph, linear.node, x)
        int8.replace_rows(self.graph, linear, self.by_rows[x], scheme)
        return scheme.name

    def product_by_range(self, linear: Linear, scheme: Scheme) -> str:
        x, method = linear.x, scheme.range
        if (x, method) not in self.by_range:
            self.by_range[x, method] = int8.quantize_activation(self.graph, linear.node, x, self.ranges[str(x.name)].limits(method), method)
        int8.replace_static(self.graph, linear, self.by_range[x, method], scheme)
        return scheme.name

    def product_in_blocks(self, linear: Linear, scheme: Scheme) -> str:
        return blockwise.replace_linear(self.graph, linear, scheme, self.weights)

    def lookup_by_rows(self, lookup: Lookup, scheme: Scheme) -> str:
        int8.replace_lookup(self.graph, lookup, scheme)
        return scheme.name

    def lookup_in_blocks(self, lookup: Lookup, scheme: Scheme) -> str:
        return blockwise.replace_lookup(self.graph, lookup, scheme, self.weights)


# Kind of a scheme → how a product gets its kernel, and how a lookup does.
KINDS: dict[str, tuple[Callable[[_Kernels, Linear, Scheme], str], Callable[[_Kernels, Lookup, Scheme], str]]] = {
    "fp32": (_Kernels.keep, _Kernels.keep),
    "rows": (_Kernels.product_by_rows, _Kernels.lookup_by_rows),
    "static": (_Kernels.product_by_range, _Kernels.lookup_by_rows),  # a table has no activations
    "blocks": (_Kernels.product_in_blocks, _Kernels.lookup_in_blocks),
}


def _let_go(part: Linear | Lookup) -> None:
    """Frees what was made of a large weight, before the next one is read."""
    if part.tensor.size >= WIDE:
        collect()


def _note(became: dict[str, str], parameter: str, scheme: Scheme, name: str) -> None:
    """What a weight became; where its uses have blocks of several sizes that is the plan's scheme, which gives each use its own again."""
    names = {name, *became.get(parameter, name).split("+")}
    schemes = names - {"fp32"}
    one = schemes.pop() if len(schemes) == 1 else scheme.name
    became[parameter] = f"{one}+fp32" if "fp32" in names and one != "fp32" else one
