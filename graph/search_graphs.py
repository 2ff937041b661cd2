"""Search graphs: the choice of the next token as small ONNX graphs, so that logits never leave the device.

`process`      logits float [B, V], history int64 [B, L], penalty float [], suppressed int64 [S], banned int64 [N, 2] (row, id),
               normalize float [] (1: log-softmax first, 0: not); optional: biased int64 [M, 2] (row, id), bias float [M] (added to
               their logits), mask float [B or 1, V or 1] (added last: 0, or -inf) -> processed float [B, V], kept float [B]: the log
               of the share of the whole distribution, after a bias and a penalty on logits but before those on log-softmax, that the
               rows still have
`mask`         logits, mask -> processed, kept: what `process` gives where a mask is the only rule, in half its time
`best`         logits, candidates int64 [1] (C), suppressed -> token int64 [B, C] (the best of all, suppressed or not, best first),
               logprob float [B, C], kept float [B]
`sample`       logits, temperature float [], top_k int64 [1], top_p float [], uniform float [B] -> token, logprob
`sample_full`  logits, temperature, uniform -> token, logprob (no filter, therefore no sort)
`reorder`      in_0.. [B, ...], row int64 [B'] -> out_0.. = in_i[row]; `reorder_float16` for caches of that type

Every `logprob` is the log-softmax of the logits as given: untempered and unfiltered. `kept` is the log of the share of the distribution
that suppressed ids leave: subtracted from a log-probability it renormalizes it. `best` is part of every decoder too (see `add_choice`).
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto

from onnxport.graph.builder import GraphBuilder
from onnxport.graph.edit import constant, dims, remove_dead
from onnxport.runtime.bundle.interface import BEST, BIAS, BIASED, CANDIDATES, LOGITS, MASK, SUPPRESSED

CACHE_TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}
PREFIX = "choice/"


def _mass(g: GraphBuilder, logits: str, largest: str) -> str:
    """Sum of exp(logits - largest) over rows, [B, 1]; the maximum is taken out before any rounding, as torch.log_softmax does."""
    return g.one("ReduceSum", g.one("Exp", g.one("Sub", logits, largest)), g.constant([1], np.int64), keepdims=1)


def _log_softmax(g: GraphBuilder, largest: str, mass: str, chosen: str) -> str:
    """Log-softmax of `chosen` [B, N], values from rows with maxima and masses [B, 1]: only chosen ones are formed."""
    return g.one("Sub", g.one("Sub", chosen, largest), g.one("Log", mass))


def _log_kept(g: GraphBuilder, logprobs: str, suppressed: str) -> str:
    """Log of the share of each row that the ids `suppressed` [S] leave, [B, 1]; -inf where rounding leaves nothing."""
    taken = g.one("ReduceSum", g.one("Exp", g.one("Gather", logprobs, suppressed, axis=1)), g.constant([1], np.int64), keepdims=1)
    return g.one("Log", g.one("Max", g.one("Sub", g.constant(1, np.float32), taken), g.constant(0, np.float32)))


def _block_width(vocab: int) -> int:
    """Of the blocks a row is searched by: near 128, a divisor of the vocabulary if there is one."""
    divisors = [width for width in range(32, 513) if vocab % width == 0]
    return min(divisors, key=lambda width: abs(np.log(width / 128))) if divisors else 128


def _blocks(g: GraphBuilder, logits: str, vocab: int) -> tuple[str, str]:
    """[B, blocks, width] of logits [B, V], and the largest of each block [B, blocks]: reading a row once is all that a search for its best
    has to do, and a maximum is many times faster than ArgMax or TopK over the whole row."""
    width = _block_width(vocab)
    if missing := -vocab % width:
        logits = g.one("Pad", logits, g.constant([0, 0, 0, missing], np.int64), g.constant(-np.inf, np.float32))
    blocks = g.one("Reshape", logits, g.constant([0, -1, width], np.int64))
    return blocks, g.one("ReduceMax", blocks, g.constant([2], np.int64), keepdims=0)


def _log_mass(g: GraphBuilder, logits: str) -> str:
    """Log of the sum of the exponentials of every row, [B, 1]."""
    column = g.constant([1], np.int64)
    largest = g.one("ReduceMax", logits, column, keepdims=1)
    return g.one("Add", largest, g.one("Log", _mass(g, logits, largest)))


def _choose(g: GraphBuilder, weights: str, uniform: str) -> str:
    """Inverse CDF: weights double [B, N], not normalized, uniform [B] -> int64 [B, 1], the first position to exceed its share.

    In double precision a sum over any vocabulary is exact enough to reach every token with weight; one without weight is never taken.
    """
    column = g.constant([1], np.int64)
    cumulative = g.one("CumSum", weights, g.constant(1, np.int64))
    total = g.one("Gather", cumulative, g.constant([-1], np.int64), axis=1)
    share = g.one("Mul", total, g.one("Unsqueeze", g.one("Cast", uniform, to=TensorProto.DOUBLE), column))
    below = g.one("Cast", g.one("LessOrEqual", cumulative, share), to=TensorProto.INT64)
    return g.one("ReduceSum", below, column, keepdims=1)


def _emit(g: GraphBuilder, logits: str, largest: str, mass: str, token: str) -> None:
    """Declare `token` and `logprob` from token int64 [B, 1]."""
    column = g.constant([1], np.int64)
    logprob = _log_softmax(g, largest, mass, g.one("GatherElements", logits, token, axis=1))
    g.output("token", g.one("Squeeze", token, column), TensorProto.INT64, ["batch"])
    g.output("logprob", g.one("Squeeze", logprob, column), TensorProto.FLOAT, ["batch"])


def _process() -> bytes:
    g = GraphBuilder("process")
    logits = g.input("logits", TensorProto.FLOAT, ["batch", "vocab"])
    history = g.input("history", TensorProto.INT64, ["batch", "generated"])
    penalty = g.input("penalty", TensorProto.FLOAT, [])
    suppressed = g.input("suppressed", TensorProto.INT64, ["ids"])
    banned = g.input("banned", TensorProto.INT64, ["pairs", 2])
    normalize = g.input("normalize", TensorProto.FLOAT, [])
    biased = g.optional(BIASED, np.zeros((0, 2)), np.int64, ["biases", 2])
    bias = g.optional(BIAS, np.zeros(0), np.float32, ["biases"])
    mask = g.optional(MASK, np.zeros((1, 1)), np.float32, ["rows", "ids_or_one"])
    values = g.one("Sub", logits, g.one("Mul", normalize, _log_mass(g, logits)))
    values = g.one("ScatterND", values, biased, bias, reduction="add")
    seen = g.one("GatherElements", values, history, axis=1)
    negative = g.one("Less", seen, g.constant(0, np.float32))
    changed = g.one("Where", negative, g.one("Mul", seen, penalty), g.one("Div", seen, penalty))
    # An id that occurs twice is written twice with the same value: it is penalized once.
    penalized = g.one("ScatterElements", values, history, changed, axis=1)
    shape = g.one("Concat", g.one("Shape", logits, start=0, end=1), g.one("Shape", suppressed), axis=0)
    lowest = g.constant(-np.inf, np.float32)
    left = g.one("ScatterElements", penalized, g.one("Expand", suppressed, shape), g.one("Expand", lowest, shape), axis=1)
    unbanned = g.one("ScatterND", left, banned, g.one("Expand", lowest, g.one("Shape", banned, start=0, end=1)))
    processed = g.one("Add", unbanned, mask)
    # Log-softmax has no mass but 1 before the penalty; logits are told from what the penalty made of them.
    before = g.one("Mul", g.one("Sub", g.constant(1, np.float32), normalize), _log_mass(g, penalized))
    kept = g.one("Sub", _log_mass(g, processed), before)
    g.output("processed", processed, TensorProto.FLOAT, ["batch", "vocab"])
    g.output("kept", g.one("Squeeze", kept, g.constant([1], np.int64)), TensorProto.FLOAT, ["batch"])
    return g.serialize()


def _mask() -> bytes:
    g = GraphBuilder("mask")
    logits = g.input(LOGITS, TensorProto.FLOAT, ["batch", "vocab"])
    processed = g.one("Add", logits, g.input(MASK, TensorProto.FLOAT, ["batch", "vocab"]))
    kept = g.one("Sub", _log_mass(g, processed), _log_mass(g, logits))
    g.output("processed", processed, TensorProto.FLOAT, ["batch", "vocab"])
    g.output("kept", g.one("Squeeze", kept, g.constant([1], np.int64)), TensorProto.FLOAT, ["batch"])
    return g.serialize()


def _sample() -> bytes:
    g = GraphBuilder("sample")
    logits = g.input("logits", TensorProto.FLOAT, ["batch", "vocab"])
    temperature = g.input("temperature", TensorProto.FLOAT, [])
    top_k = g.input("top_k", TensorProto.INT64, [1])
    top_p = g.input("top_p", TensorProto.FLOAT, [])
    uniform = g.input("uniform", TensorProto.FLOAT, ["batch"])
    count = g.one("Min", top_k, g.one("Shape", logits, start=1, end=2))
    value, index = g.op("TopK", logits, count, outputs=2, axis=1, largest=1, sorted=1)
    largest = g.one("Gather", value, g.constant([0], np.int64), axis=1)
    powers = g.one("Exp", g.one("Div", g.one("Sub", value, largest), temperature))
    weights = g.one("Cast", powers, to=TensorProto.DOUBLE)
    before = g.one("CumSum", weights, g.constant(1, np.int64), exclusive=1)
    total = g.one("ReduceSum", weights, g.constant([1], np.int64), keepdims=1)
    # A token stays while the mass before it is under top_p: the smallest set that reaches it. The first has weight 1 and none before it.
    limit = g.one("Mul", total, g.one("Cast", top_p, to=TensorProto.DOUBLE))
    inside = g.one("Or", g.one("Less", before, limit), g.one("Equal", before, g.constant(0, np.float64)))
    kept = g.one("Or", inside, g.one("GreaterOrEqual", top_p, g.constant(1, np.float32)))
    place = _choose(g, g.one("Where", kept, weights, g.constant(0, np.float64)), uniform)
    _emit(g, logits, largest, _mass(g, logits, largest), g.one("GatherElements", index, place, axis=1))
    return g.serialize()


def _sample_full() -> bytes:
    g = GraphBuilder("sample_full")
    logits = g.input("logits", TensorProto.FLOAT, ["batch", "vocab"])
    temperature = g.input("temperature", TensorProto.FLOAT, [])
    uniform = g.input("uniform", TensorProto.FLOAT, ["batch"])
    largest = g.one("ReduceMax", logits, g.constant([1], np.int64), keepdims=1)
    powers = g.one("Exp", g.one("Div", g.one("Sub", logits, largest), temperature))
    token = _choose(g, g.one("Cast", powers, to=TensorProto.DOUBLE), uniform)
    _emit(g, logits, largest, _mass(g, logits, largest), token)
    return g.serialize()


def _best(g: GraphBuilder, logits: str, count: str, vocab: int, by_blocks: bool) -> str:
    """The `count` [1] best ids of each row, best first, int64 [B, count]: they are all in the `count` blocks with the largest maxima.

    by_blocks: as processors find them soonest; else by one TopK, whose `count` CUDA reads from host memory.
    """
    if not by_blocks:
        return g.op("TopK", logits, count, outputs=2, axis=1, largest=1, sorted=1)[1]
    count = g.one("Min", count, g.constant([vocab], np.int64))
    blocks, tops = _blocks(g, logits, vocab)
    some = g.one("Min", count, g.one("Shape", tops, start=1, end=2))
    found = g.op("TopK", tops, some, outputs=2, axis=1, largest=1, sorted=0)[1]
    block = g.op("TopK", found, some, outputs=2, axis=1, largest=0, sorted=1)[0]  # in order, so that the lower id wins a tie
    values = g.one("GatherND", blocks, g.one("Unsqueeze", block, g.constant([2], np.int64)), batch_dims=1)
    place = g.op("TopK", g.one("Reshape", values, g.constant([0, -1], np.int64)), count, outputs=2, axis=1, largest=1, sorted=1)[1]
    width = g.constant(_block_width(vocab), np.int64)
    first = g.one("Mul", g.one("GatherElements", block, g.one("Div", place, width), axis=1), width)
    return g.one("Add", first, g.one("Mod", place, width))


def best_graph(vocab: int, by_blocks: bool = True) -> bytes:
    """The graph `best` for logits of this width. by_blocks: see `_best`; without, there are no more candidates than ids."""
    g = GraphBuilder("best")
    logits = g.input(LOGITS, TensorProto.FLOAT, ["batch", "vocab"])
    candidates = g.input(CANDIDATES, TensorProto.INT64, [1])
    suppressed = g.input(SUPPRESSED, TensorProto.INT64, ["ids"])
    token = _best(g, logits, candidates, vocab, by_blocks)
    logprobs = g.one("LogSoftmax", logits, axis=1)
    g.output("token", token, TensorProto.INT64, ["batch", "chosen"])
    g.output("logprob", g.one("GatherElements", logprobs, token, axis=1), TensorProto.FLOAT, ["batch", "chosen"])
    kept = _log_kept(g, logprobs, suppressed)
    g.output("kept", g.one("Squeeze", kept, g.constant([1], np.int64)), TensorProto.FLOAT, ["batch"])
    return g.serialize()


def reorder_graph(cache_inputs: int, cache_type: str = "float32") -> bytes:
    """`out_i = in_i[row]` on the first axis for `cache_inputs` caches [B, heads, capacity, head_size] of type "float32" or "float16"."""
    g = GraphBuilder("reorder")
    kind = CACHE_TYPES[cache_type]
    names = [g.input(f"in_{i}", kind, ["batch", "heads", "capacity", "size"]) for i in range(cache_inputs)]
    row = g.input("row", TensorProto.INT64, ["chosen"])
    for i, name in enumerate(names):
        g.output(f"out_{i}", g.one("Gather", name, row, axis=0), kind, ["chosen", "heads", "capacity", "size"])
    return g.serialize()


def search_graphs(cache_inputs: int, vocab: int) -> dict[str, bytes]:
    """All search graphs by name, serialized; the same arguments give the same bytes.

    `cache_inputs` is the number of cache tensors (two a layer); with 0 there is no `reorder`. `vocab`: width of the logits.
    """
    graphs = {"process": _process(), "mask": _mask(), "best": best_graph(vocab), "sample": _sample(), "sample_full": _sample_full()}
    if cache_inputs == 0:
        return graphs
    return {**graphs, "reorder": reorder_graph(cache_inputs), "reorder_float16": reorder_graph(cache_inputs, "float16")}


def add_choice(model: ir.Model, by_blocks: bool = True) -> ir.Model:
    """A copy of a decoder with the inputs and outputs of the search graph `best` beside its `logits` float32 [batch, vocab]."""
    done = model.clone()
    graph = done.graph
    logits = next(value for value in graph.outputs if value.name == LOGITS)
    shape = dims(logits)
    assert shape is not None and isinstance(shape[-1], int)
    part = ir.from_proto(onnx.ModelProto.FromString(best_graph(shape[-1], by_blocks))).graph
    here: dict[ir.Value | None, ir.Value | None] = {None: None, part.inputs[0]: logits}
    for given in part.inputs[1:]:
        here[given] = ir.Value(name=given.name, type=given.type, shape=given.shape)
        graph.inputs.append(here[given])
    for name, value in part.initializers.items():
        assert value.const_value is not None
        here[value] = constant(graph, PREFIX + name, value.const_value.numpy())
    outputs = {value: value.name for value in part.outputs}
    for node in part:
        inputs = [here[value] for value in node.inputs]
        new = ir.Node(node.domain, node.op_type, inputs, node.attributes.values(), num_outputs=len(node.outputs))
        for old, value in zip(node.outputs, new.outputs, strict=True):
            value.name = outputs.get(old, f"{PREFIX}{old.name}")
            value.type, value.shape = old.type, old.shape
            if old in outputs:  # its first axis is the logits'
                value.shape = ir.Shape([shape[0], *(dims(old) or ())[1:]])
            here[old] = value
        graph.append(new)
    graph.outputs.extend(here[value] for value in part.outputs)
    return done


def remove_choice(model: ir.Model) -> ir.Model:
    """A copy without what `add_choice` added."""
    done = model.clone()
    graph = done.graph
    for value in [v for v in graph.outputs if v.name in BEST]:
        graph.outputs.remove(value)
    remove_dead(graph)
    for value in [v for v in graph.inputs if v.name in (CANDIDATES, SUPPRESSED)]:
        graph.inputs.remove(value)
    return done
