"""Measured times of each scheme's kernels on this machine, by shapes of weights and numbers of rows.

A graph of nothing but the kernels of one scheme runs in ONNX Runtime over as many weights as the model has, so that they come from where
they come from in the model: memory, or a cache that holds them all. Schemes alternate run by run, and medians count.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from onnxport.graph.session import open_file
from onnxport.quantize.modules import Group, Use
from onnxport.quantize.plan import FP32, Plan, scheme
from onnxport.quantize.schemes.apply import quantize
from onnxport.runtime.sessions import Sessions

MOST_VALUES = 48 * 2**20  # of the weights of one graph: more are in no cache
MOST_COPIES = 48
ROUNDS, LEAST_ROUNDS, SECONDS = 25, 7, 0.6  # of one shape and number of rows, for all schemes together
BYTE = 1e-16  # seconds: of plans that are equally fast the smallest is taken


@dataclass(frozen=True)
class Load:
    """How often a graph runs for one answer, and over how many rows.

    role: the graph's. rows: of a product, in one run. times: runs for one answer. head, head_rows: a projection to a vocabulary of `head`
    entries has this many rows instead; 0 where it has no other number.
    """

    role: str
    rows: int
    times: float
    head: int = 0
    head_rows: int = 0


@dataclass(frozen=True)
class Shape:
    """A product [rows, k] × [k, n], on which a kernel's time depends. transposed: the weight is stored as [n, k]; biased: a sum follows."""

    k: int
    n: int
    transposed: bool
    biased: bool
    rows: int

    @property
    def key(self) -> str:
        """The shape as a name, for the journal."""
        return f"{self.k}x{self.n}{'t' if self.transposed else ''}{'b' if self.biased else ''}:{self.rows}"


Times = Mapping[str, Mapping[str, float]]  # Shape.key -> scheme -> seconds


def shapes_of(group: Group, loads: Sequence[Load]) -> list[tuple[Shape, float]]:
    """The products that a group computes for one answer, and how often."""
    return [
        (Shape(use.k, use.n, use.transposed, use.biased, _rows(use, load)), load.times)
        for use in group.uses
        for load in loads
        if load.role == use.role
    ]


def _rows(use: Use, load: Load) -> int:
    return load.head_rows if load.head == use.n and load.head_rows else load.rows


def seconds(group: Group, scheme_name: str, loads: Sequence[Load], times: Times) -> float:
    """Seconds of a group in one answer, plus as good as nothing for its bytes."""
    chosen = scheme(scheme_name)
    run = sum(count * times[shape.key][chosen.kernel] for shape, count in shapes_of(group, loads))
    return run + BYTE * group.values * chosen.bytes_per_weight


def measure(shape: Shape, schemes: Iterable[str], values: int, threads: int | None = None) -> dict[str, float]:
    """Seconds of one product by scheme. values: weights of the whole model."""
    names = sorted({scheme(name).kernel for name in schemes})
    copies = int(np.clip(min(values, MOST_VALUES) // (shape.k * shape.n), 1, MOST_COPIES))
    x = np.random.default_rng(0).standard_normal((shape.rows, shape.k)).astype(np.float32)
    runs: dict[str, Callable[[], Any]] = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "products.onnx"
            file.write_bytes(_graph(shape, name, copies, x))
            runner = open_file(file, Sessions.on("cpu", threads))
        runs[name] = partial(runner.session.run, [next(iter(runner.outputs))], dict.fromkeys(runner.inputs, x))
    return {name: statistics.median(found) / copies for name, found in alternate(runs).items()}


def alternate(
    runs: Mapping[str, Callable[[], Any]], rounds: int = ROUNDS, least: int = LEAST_ROUNDS, budget: float = SECONDS
) -> dict[str, list[float]]:
    """Seconds of each in every round, run in turn; no more rounds than `least` once `budget` seconds are spent."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    started = time.perf_counter()
    for number in range(-2, rounds):
        if number >= least and time.perf_counter() - started > budget:
            break
        for name, run in runs.items():
            before = time.perf_counter()
            run()
            if number >= 0:
                taken[name].append(time.perf_counter() - before)
    return taken


def _graph(shape: Shape, scheme_name: str, copies: int, x: np.ndarray) -> bytes:
    """A model of `copies` products with inputs and weights of their own; ONNX Runtime computes outputs that nobody fetches too."""
    random = np.random.default_rng(1)
    weight = random.standard_normal((shape.k, shape.n)).astype(np.float32)
    stored = numpy_helper.from_array(np.ascontiguousarray(weight.T) if shape.transposed else weight, "weight")
    bias = [numpy_helper.from_array(np.zeros(shape.n, np.float32), "bias")] if shape.biased else []
    if shape.transposed:
        nodes = [helper.make_node("Gemm", ["x", "weight", *(b.name for b in bias)], ["y"], transB=1)]
    else:
        nodes = [helper.make_node("MatMul", ["x", "weight"], ["product" if bias else "y"])]
        nodes += [helper.make_node("Add", ["product", "bias"], ["y"])] if bias else []
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", size]) for name, size in (("x", shape.k), ("y", shape.n))]
    proto = helper.make_model(
        helper.make_graph(nodes, "product", ends[:1], ends[1:], [stored, *bias]), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    model = ir.from_proto(proto)
    if scheme_name != FP32.name:
        (model,) = quantize({"model": model}, Plan({"*": scheme_name}), {"model": [{"x": x}]})[0].values()
    return _copied(ir.to_proto(model), copies)


def _copied(proto: onnx.ModelProto, copies: int) -> bytes:
    """The graph's nodes, inputs, outputs and large weights so many times."""
    one = onnx.GraphProto()
    one.CopyFrom(proto.graph)
    graph = proto.graph
    for part in ("node", "input", "output", "initializer", "value_info"):
        graph.ClearField(part)
    shared = {tensor.name for tensor in one.initializer if np.prod(tensor.dims) < 64}
    graph.initializer.extend(tensor for tensor in one.initializer if tensor.name in shared)
    for copy in range(copies):
        for part in ("input", "output", "initializer"):
            for value in getattr(one, part):
                if value.name not in shared:
                    added = getattr(graph, part).add()
                    added.CopyFrom(value)
                    added.name = f"{value.name}#{copy}"
        for node in one.node:
            added = graph.node.add()
            added.CopyFrom(node)
            added.ClearField("name")
            for names in (added.input, added.output):
                names[:] = [name if not name or name in shared else f"{name}#{copy}" for name in names]
    return bytes(proto.SerializeToString())
