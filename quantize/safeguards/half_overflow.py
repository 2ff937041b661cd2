"""Which layers of a model do not fit float16: found by running data through the graphs, and named for the plan.

Two things make a layer unfit. Its values come near 65,504, the greatest of float16, as the feed-forward and the residual stream of T5 do:
the float32 graph tells. Or it loses more than float16's rounding explains, such as a difference of large numbers: the half graph tells, in
which a layer's result is far from float32's while what it read is near.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest

import numpy as np
import onnx_ir as ir

from onnxport.errors import NotApplicable
from onnxport.graph.edit import constant, tensor_of
from onnxport.graph.lazy import derived
from onnxport.graph.pieces import Piece, walk
from onnxport.quantize.plan import Plan
from onnxport.quantize.schemes.blocks.rounding import PIECE
from onnxport.quantize.schemes.half import ATTENTION, FLOAT, LARGEST, MASKED, exact_nodes, halved, owners, prepared
from onnxport.runtime.bundle.interface import PRESENT

HALF = ir.DataType.FLOAT16
Feed = Mapping[str, np.ndarray]
MARGIN = 2.0  # other data may reach further than what was seen
TOO_MUCH = 0.05  # relative error of a value, where rounding explains about 0.001
GROWTH = 4.0  # over the error of what the node reads
ROUNDING = 2.0**-11
ROUNDS = 12
FEEDS, ROWS = 4, 2  # that are run value by value


def safe(models: Mapping[str, ir.Model], plan: Plan, feeds: Mapping[str, Sequence[Feed]]) -> Plan:
    """The plan with "fp32" for every layer that float16 does not hold, by what `feeds` (role -> inputs by name) show.

    NotApplicable: something without a layer's name does not fit, such as an attention's cache.
    """
    for role, model in models.items():
        given = list(feeds.get(role, ()))
        graph = prepared(model)
        plan = _by_weights(graph, plan)
        if not given:
            continue
        plan = _by_peaks(graph, plan, given)
        plan = _by_errors(graph, plan, [_few(feed) for feed in given[:: -(-len(given) // FEEDS)]])
    return plan


def _with(plan: Plan, name: str) -> Plan:
    return Plan({**plan.schemes, name: "fp32"})


def _by_weights(model: ir.Model, plan: Plan) -> Plan:
    """Names what computes in float32 whatever a plan says: layers whose weights are beyond float16."""
    exact = exact_nodes(model.graph, plan)
    for node, name in owners(model.graph).items():
        if node in exact and plan.of(name).kind != "fp32":
            plan = _with(plan, name)
    return plan


def _by_peaks(model: ir.Model, plan: Plan, feeds: Iterable[Feed]) -> Plan:
    peaks = _peaks(model, feeds)
    limit = LARGEST / MARGIN
    exact = exact_nodes(model.graph, plan)
    for node in model.graph:
        values = [v for v in [*node.inputs, *node.outputs] if v is not None and peaks.get(str(v.name), 0) > limit]
        if values and any(v.dtype == FLOAT for v in node.outputs) and node not in exact:
            what = f"reaches {max(peaks[str(v.name)] for v in values):g} on this data, and fp16 holds {LARGEST:g}"
            plan = _with(plan, _owner(model.graph, exact, node, peaks, what))
            exact = exact_nodes(model.graph, plan)
    return plan


def _owner(graph: ir.Graph, exact: set[ir.Node], node: ir.Node, sizes: Mapping[str, float], what: str) -> str:
    """The layer to keep so that `node` computes in float32: its own, or that of the largest thing it reads, as far back as need be.

    exact: what computes in float32 already.
    """
    named, first = owners(graph), node
    while node not in named:
        reads = [v for v in node.inputs if v is not None and v.dtype == FLOAT and v.producer() is not None and v.producer() not in exact]
        largest = max(reads, key=lambda v: sizes.get(str(v.name), 0), default=None)
        producer = None if largest is None else largest.producer()
        if producer is None or node.op_type in ATTENTION:
            raise NotApplicable(f"{first.op_type} '{first.outputs[0].name}' {what}; leave fp16 out of --precision, or use bf16 on a GPU")
        node = producer
    return named[node]


def _peaks(model: ir.Model, feeds: Iterable[Feed]) -> dict[str, float]:
    """The largest magnitude of every float value; what stands for infinity in masks does not count."""
    watched = model.clone()
    graph, names = watched.graph, {}
    zero, masked = constant(graph, "peak/zero", np.float32(0)), constant(graph, "peak/masked", np.float32(MASKED))
    for value in [v for v in [*graph.inputs, *(v for node in list(graph) for v in node.outputs)] if _whole(v)]:
        magnitude = _behind(graph, "Abs", [value], FLOAT)
        real = _behind(graph, "Less", [magnitude, masked], ir.DataType.BOOL)
        peak = _behind(graph, "ReduceMax", [_behind(graph, "Where", [real, magnitude, zero], FLOAT)], FLOAT, keepdims=0)
        peak.name, peak.shape = f"{value.name}/peak", ir.Shape([])
        names[peak.name] = str(value.name)
        graph.outputs.append(peak)
    found = dict.fromkeys(names.values(), 0.0)
    for piece in walk(watched, feeds, names):
        for values in piece.run(piece.names & names.keys()):
            for peak_name, value in values.items():
                found[names[peak_name]] = max(found[names[peak_name]], float(value))
    return found


def _whole(value: ir.Value) -> bool:
    """Whether a float value is all told by the inputs: a cache as wide as a window is not, behind what was read."""
    producer = value.producer()
    cache = producer is not None and producer.op_type in ATTENTION and str(value.name).startswith(PRESENT)
    return value.dtype == FLOAT and bool(value.name) and not cache


def _behind(graph: ir.Graph, op: str, inputs: list[ir.Value], kind: ir.DataType, **attributes: int) -> ir.Value:
    """A node right behind what makes its first input that is made; a large graph is cut between nodes."""
    node = ir.node(op, inputs, attributes)
    node.outputs[0].name, node.outputs[0].type = f"{inputs[-2 if op == 'Where' else 0].name}/{op}", ir.TensorType(kind)
    before = next((producer for value in inputs if (producer := value.producer()) is not None), None)
    if before is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(before, node)
    return node.outputs[0]


def _by_errors(model: ir.Model, plan: Plan, feeds: Sequence[Feed]) -> Plan:
    for _ in range(ROUNDS):
        worst = _errors(model, rounded(model, plan), feeds)
        exact = exact_nodes(model.graph, plan)
        unfit = _first_unfit(model.graph, exact, worst)
        if unfit is None:
            return plan
        error = max(worst.get(str(v.name), 0.0) for v in unfit.outputs)
        what = f"loses {error:.1%} in fp16" if np.isfinite(error) else "is not finite in fp16"
        sizes = {name: value for name, value in worst.items() if np.isfinite(value)}
        plan = _with(plan, _owner(model.graph, exact, unfit, sizes, what))
    return plan


def _first_unfit(graph: ir.Graph, exact: set[ir.Node], errors: Mapping[str, float]) -> ir.Node | None:
    for node in graph:
        own = max((errors.get(str(v.name), 0.0) for v in node.outputs), default=0.0)
        read = max((errors.get(str(v.name), 0.0) for v in node.inputs if v is not None), default=0.0)
        if node not in exact and own > TOO_MUCH and own > GROWTH * max(read, ROUNDING):
            return node
    return None


def rounded(model: ir.Model, plan: Plan) -> ir.Model:
    """A float32 graph whose values and weights are rounded to float16 wherever the half graph holds them so; names stay.

    ONNX Runtime's CPU has few kernels in half precision: around others it inserts casts and leaves out pairs of them, so that the half
    graph itself would show there less than is lost elsewhere. Casts that a graph holds are carried out.
    """
    copy = model.clone()
    graph = copy.graph
    exact = exact_nodes(graph, plan)
    for name, weight in [(name, v) for name, v in graph.initializers.items() if v.dtype == FLOAT]:
        tensor = tensor_of(weight)
        if tensor is not None and any(use.node not in exact for use in weight.uses()):
            own = constant(graph, f"{name}/rounded", derived(tensor, _rounded))
            for node, index in [use for use in weight.uses() if use.node not in exact]:
                node.replace_input_with(index, own)
    for value in [*graph.inputs, *(v for node in list(graph) for v in node.outputs)]:
        producer = value.producer()
        half = producer is not None and producer not in exact
        uses = [use for use in value.uses() if half or use.node not in exact]
        if value.dtype != FLOAT or not value.name or (not uses and not value.is_graph_output()):
            continue
        result = _round(graph, value)
        for node, index in uses:
            node.replace_input_with(index, result)
        if half:  # who asks for the value by its name is given what others read
            for i, output in enumerate(graph.outputs):
                if output is value:
                    graph.outputs[i] = result
            name, value.name = value.name, f"{value.name}/exact"
            result.name = name
    graph.sort()
    return copy


def _rounded(array: np.ndarray) -> np.ndarray:
    """A weight in float32 as float16 holds it, row by row: a table of tokens in one go would take memory three times."""
    if array.size <= PIECE or array.ndim < 2:
        return halved(array, HALF).astype(np.float32)
    found, step = np.empty_like(array, order="C"), max(1, PIECE * len(array) // array.size)
    for i in range(0, len(array), step):
        found[i : i + step] = halved(array[i : i + step], HALF)
    return found


def _round(graph: ir.Graph, value: ir.Value) -> ir.Value:
    for kind in (HALF, FLOAT):
        cast = ir.node("Cast", [value], {"to": int(kind)})
        cast.outputs[0].name, cast.outputs[0].type, cast.outputs[0].shape = f"{value.name}/{kind}", ir.TensorType(kind), value.shape
        graph.append(cast)
        value = cast.outputs[0]
    return value


def _errors(model: ir.Model, half: ir.Model, feeds: Sequence[Feed]) -> dict[str, float]:
    """Relative error (root mean square) of every float value of `half`; infinite where it is not finite and the model's own is."""
    worst = {str(v.name): 0.0 for node in model.graph for v in node.outputs if _whole(v)}
    alone: dict[tuple[str, int], np.ndarray] = {}  # values that the other graph has in another piece, by feed
    for plain, other in zip_longest(walk(model, feeds, worst), walk(half, feeds, worst)):
        for i, (expected, got) in enumerate(zip(_values(plain, worst, feeds), _values(other, worst, feeds), strict=True)):
            for name in expected.keys() | got.keys():
                values = [values[name] if name in values else alone.pop((name, i), None) for values in (expected, got)]
                if values[0] is None or values[1] is None:
                    alone[name, i] = next(value for value in values if value is not None)
                else:
                    worst[name] = max(worst[name], _error(values[0], values[1]))
    return worst


def _values(piece: Piece | None, names: Iterable[str], feeds: Sequence[Feed]) -> Iterable[Mapping[str, np.ndarray]]:
    """What of some values a piece has, by feed; nothing of no piece."""
    return [{} for _ in feeds] if piece is None else piece.run(piece.names & set(names))


def _error(expected: np.ndarray, got: np.ndarray) -> float:
    real = np.isfinite(expected) & (np.abs(expected) < LARGEST)
    if not np.isfinite(got[real]).all():
        return float("inf")
    power = np.square(expected[real], dtype=np.float64).sum()
    return float(np.sqrt(np.square(got[real].astype(np.float64) - expected[real]).sum() / power)) if power else 0.0


def _few(feed: Feed) -> Feed:
    """At most ROWS rows, where all inputs have as many: every value between is fetched, so a large batch would need much memory."""
    rows = {len(array) if array.ndim else 0 for array in feed.values()}
    return {name: array[:ROWS] for name, array in feed.items()} if len(rows) == 1 and rows != {0} else feed
