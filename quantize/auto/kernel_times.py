"""Measured times of each scheme's kernels on this machine, by shapes of weights and numbers of rows.

A graph of nothing but the kernels of one scheme runs in ONNX Runtime over as many weights as the model has, so that they come from where
they come from in the model: memory, or a cache that holds them all. Of a mixture of experts there are those alone that some row chooses.
Schemes alternate run by run, and medians count.
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

from onnxport.graph import store
from onnxport.graph.edit import MICROSOFT, constant
from onnxport.graph.session import open_file
from onnxport.quantize.modules import Group, MixtureSizes, ProductSizes, Use
from onnxport.quantize.plan import FP32, Plan, scheme
from onnxport.quantize.safeguards import static_norms
from onnxport.quantize.schemes.apply import quantize
from onnxport.runtime.sessions import Sessions

MOST_VALUES = 48 * 2**20  # of the weights of several kernels: more are in no cache
MOST_COPIES = 48
ROUNDS, LEAST_ROUNDS, SECONDS = 25, 7, 0.6  # of one shape and number of rows, for all schemes together
BYTE = 1e-16  # seconds: of plans that are equally fast the smallest is taken
KERNEL = "kernel"  # role of a graph of nothing else
OPSET, IR_VERSION = 21, 10


@dataclass(frozen=True)
class Load:
    """How often a graph runs for one answer, and over how many rows.

    role: the graph's. rows: of a product or a mixture, in one run. times: runs for one answer. head, head_rows: a projection to a
    vocabulary of `head` entries has this many rows instead; 0 where it has no other number.
    """

    role: str
    rows: int
    times: float
    head: int = 0
    head_rows: int = 0


@dataclass(frozen=True)
class Shape:
    """What a kernel's time depends on: its sizes, and how many rows it computes."""

    sizes: ProductSizes | MixtureSizes
    rows: int

    @property
    def key(self) -> str:
        """The shape as a name, for the journal."""
        return f"{self.sizes.key}:{self.rows}"

    @property
    def width(self) -> int:
        """How many numbers a row has."""
        return self.sizes.hidden if isinstance(self.sizes, MixtureSizes) else self.sizes.k

    @property
    def experts(self) -> int:
        """How many experts of a mixture the rows choose, where their choices are as many as can be."""
        assert isinstance(self.sizes, MixtureSizes)
        return min(self.sizes.experts, self.rows * self.sizes.top)

    @property
    def values(self) -> int:
        """How many weights are read."""
        sizes = self.sizes
        if isinstance(sizes, MixtureSizes):
            return self.experts * sizes.hidden * (sizes.wide + sizes.inner)
        return sizes.k * sizes.n


Times = Mapping[str, Mapping[str, float]]  # Shape.key -> scheme -> seconds


def shapes_of(group: Group, loads: Sequence[Load]) -> list[tuple[Use, Shape, float]]:
    """What a group computes for one answer, in which shape, and how often."""
    return [(use, Shape(use.sizes, _rows(use, load)), load.times) for use in group.uses for load in loads if load.role == use.role]


def _rows(use: Use, load: Load) -> int:
    head = isinstance(use.sizes, ProductSizes) and load.head == use.sizes.n
    return load.head_rows if head and load.head_rows else load.rows


def seconds(group: Group, scheme_name: str, loads: Sequence[Load], times: Times) -> float:
    """Seconds of a group in one answer, plus as good as nothing for its bytes."""
    chosen, others = scheme(scheme_name), scheme(static_norms.instead(scheme_name))
    run = sum(count * times[shape.key][(chosen if use.after_norm else others).kernel] for use, shape, count in shapes_of(group, loads))
    return run + BYTE * group.values * chosen.bytes_per_weight


def measure(shape: Shape, schemes: Iterable[str], values: int, threads: int | None = None) -> dict[str, float]:
    """Seconds of one product or mixture by scheme. values: weights of the whole model."""
    names = sorted({scheme(name).kernel for name in schemes})
    copies = int(np.clip(min(values, MOST_VALUES) // shape.values, 1, MOST_COPIES))
    x = np.random.default_rng(0).standard_normal((shape.rows, shape.width)).astype(np.float32)
    runs: dict[str, Callable[[], Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            runner = open_file(_written(shape, name, copies, x, Path(folder) / name), Sessions.on("cpu", threads))
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


def _written(shape: Shape, scheme_name: str, copies: int, x: np.ndarray, folder: Path) -> Path:
    """A model of `copies` kernels with inputs and weights of their own; ONNX Runtime computes outputs that nobody fetches too."""
    model = _mixture(shape.sizes, shape) if isinstance(shape.sizes, MixtureSizes) else _product(shape.sizes)
    if scheme_name != FP32.name:
        (model,) = quantize({KERNEL: model}, Plan({"*": scheme_name}), {KERNEL: [{"x": x}]})[0].values()
    if copies == 1:  # whose weights may be more than a graph's own file holds
        return folder / store.write({KERNEL: model}, folder, temporary=True)[KERNEL]
    folder.mkdir()
    file = folder / f"{KERNEL}.onnx"
    file.write_bytes(_copied(ir.to_proto(model), copies))  # `store` would keep equal weights once
    return file


def _mixture(sizes: MixtureSizes, shape: Shape) -> ir.Model:
    """A MoE whose rows choose experts in turn; all have the same weights."""
    count, rows, random = shape.experts, shape.rows, np.random.default_rng(1)
    logits = np.full((rows, count), -30, np.float32)
    logits[np.arange(rows)[:, None], np.arange(rows * sizes.top).reshape(rows, -1) % count] = 0
    ends = [ir.Value(name=name, shape=ir.Shape(["rows", shape.width]), type=ir.TensorType(ir.DataType.FLOAT)) for name in ("x", "y")]
    graph = ir.Graph(ends[:1], [], nodes=[], opset_imports={"": OPSET, MICROSOFT: 1}, name=KERNEL)
    inputs: list[ir.Value | None] = [ends[0], constant(graph, "logits", logits)]
    for name, n, k in (("up", sizes.wide, sizes.hidden), ("down", sizes.hidden, sizes.inner)):
        weight = random.standard_normal((n, k)).astype(np.float32)
        inputs.append(constant(graph, name, np.repeat(weight[None], count, 0)))
        inputs.append(constant(graph, f"{name}_bias", np.zeros((count, n), np.float32)) if sizes.biased else None)
    graph.append(ir.node("MoE", inputs, dict(sizes.attributes), domain=MICROSOFT, outputs=ends[1:]))
    graph.outputs.append(ends[1])
    return ir.Model(graph, ir_version=IR_VERSION)


def _product(sizes: ProductSizes) -> ir.Model:
    random = np.random.default_rng(1)
    weight = random.standard_normal((sizes.k, sizes.n)).astype(np.float32)
    stored = numpy_helper.from_array(np.ascontiguousarray(weight.T) if sizes.transposed else weight, "weight")
    bias = [numpy_helper.from_array(np.zeros(sizes.n, np.float32), "bias")] if sizes.biased else []
    if sizes.transposed:
        nodes = [helper.make_node("Gemm", ["x", "weight", *(b.name for b in bias)], ["y"], transB=1)]
    else:
        nodes = [helper.make_node("MatMul", ["x", "weight"], ["product" if bias else "y"])]
        nodes += [helper.make_node("Add", ["product", "bias"], ["y"])] if bias else []
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", size]) for name, size in (("x", sizes.k), ("y", sizes.n))]
    graph = helper.make_graph(nodes, KERNEL, ends[:1], ends[1:], [stored, *bias])
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION))


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
