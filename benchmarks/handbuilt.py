"""A Marian-base decoder step put together by hand from ONNX Runtime's kernels: the ceiling for any graph and loop around them.

    python benchmarks/handbuilt.py --scheme block8_128 --batch 1 --threads 2

Random weights; no encoder, no stopping, no text, one session bound once. What a real decoder does beyond it is what it costs.
Schemes: fp32; tensor8 (DynamicQuantizeMatMul, a scale for all activations); row8 (int8 with a scale a row, quantized once for all
projections that share an input); block8_128 (MatMulNBits, blocks of 128). The choice of the token is in the graph: arg-max, or top-k.
"""

import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from onnxport.runtime.processor import make_exact

MICROSOFT = "com.microsoft"
SHAPE = {"layers": 6, "hidden": 512, "inner": 2048, "heads": 8, "vocabulary": 32_000, "positions": 512}


class Graph:
    """Nodes and weights under automatic names."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.random = np.random.default_rng(0)
        self.quantized: dict[str, tuple[str, str]] = {}

    def input(self, name: str, kind: int, shape: list[Any]) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, name: str, kind: int, shape: list[Any]) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, kind, shape))

    def weight(self, array: Any) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(array), f"weight_{len(self.weights)}"))
        return str(self.weights[-1].name)

    def node(self, kind: str, *inputs: str, outputs: tuple[str, ...] = (), **attributes: Any) -> str:
        """The first output's name."""
        domain = "" if onnx.defs.has(kind, 18) else MICROSOFT
        names = outputs or (f"{kind}_{len(self.nodes)}",)
        self.nodes.append(helper.make_node(kind, inputs, names, domain=domain, **attributes))
        return names[0]

    def normal(self, *shape: int) -> np.ndarray:
        return (self.random.standard_normal(shape) * 0.04).astype(np.float32)

    def integers(self, low: int, high: int, *shape: int, kind: Any) -> np.ndarray:
        return self.random.integers(low, high, shape).astype(kind)

    def session(self, threads: int) -> onnxruntime.InferenceSession:
        graph = helper.make_graph(self.nodes, "step", self.inputs, self.outputs, self.weights)
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid(MICROSOFT, 1)]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        make_exact(options)
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def fp32(g: Graph, x: str, rows: int, columns: int, bias: str) -> str:
    return g.node("Add", g.node("MatMul", x, g.weight(g.normal(rows, columns))), bias)


def tensor8(g: Graph, x: str, rows: int, columns: int, bias: str) -> str:
    scale, zero = g.weight(np.full(columns, 3e-4, np.float32)), g.weight(np.zeros(columns, np.int8))
    return g.node("DynamicQuantizeMatMul", x, g.weight(g.integers(-127, 128, rows, columns, kind=np.int8)), scale, zero, bias)


def row8(g: Graph, x: str, rows: int, columns: int, bias: str) -> str:
    one, middle = g.weight(np.float32(1)), g.weight(np.uint8(128))
    if x not in g.quantized:
        largest = g.node("ReduceMax", g.node("Abs", x), g.weight(np.array([-1])), keepdims=1)
        step = g.node("Mul", largest, g.weight(np.float32(1 / 127)))
        g.quantized[x] = g.node("QuantizeLinear", g.node("Div", x, step), one, middle), step
    values, step = g.quantized[x]
    weights, scale = g.weight(g.integers(-127, 128, rows, columns, kind=np.int8)), g.weight(np.full(columns, 3e-4, np.float32))
    return g.node("Add", g.node("Mul", g.node("MatMulIntegerToFloat", values, weights, one, scale, middle), step), bias)


def block8_128(g: Graph, x: str, rows: int, columns: int, bias: str) -> str:
    blocks = -(-rows // 128)
    weights = g.weight(g.integers(0, 256, columns, blocks, 128, kind=np.uint8))
    scale = g.weight(np.full((columns, blocks), 3e-4, np.float32))
    return g.node("MatMulNBits", x, weights, scale, "", "", bias, K=rows, N=columns, bits=8, block_size=128, accuracy_level=4)


SCHEMES: dict[str, Callable[[Graph, str, int, int, str], str]] = {
    "fp32": fp32,
    "tensor8": tensor8,
    "row8": row8,
    "block8_128": block8_128,
}


def build(scheme: str, top: int, shape: dict[str, int]) -> Graph:
    """The step: ids and caches in, the chosen tokens `next` int64 [batch, 1, max(1, top)] out (with top-k also their log-probabilities)."""
    g, hidden, heads = Graph(), shape["hidden"], shape["heads"]
    size = hidden // heads

    def linear(x: str, columns: int, rows: int = hidden) -> str:
        return SCHEMES[scheme](g, x, rows, columns, g.weight(np.zeros(columns, np.float32)))

    def norm(x: str, residual: str) -> str:
        ones, zeros = g.weight(np.ones(hidden, np.float32)), g.weight(np.zeros(hidden, np.float32))
        return g.node("SkipLayerNormalization", x, residual, ones, zeros, epsilon=1e-5)

    ids, place = g.input("ids", TensorProto.INT64, ["batch", 1]), g.input("place", TensorProto.INT64, [1, 1])
    before, total = g.input("before", TensorProto.INT32, ["batch"]), g.input("total", TensorProto.INT32, [])
    embedded = g.node("Gather", g.weight(g.normal(shape["vocabulary"], hidden)), ids)
    x = g.node("Add", embedded, g.node("Gather", g.weight(g.normal(shape["positions"], hidden)), place))
    for layer in range(shape["layers"]):
        past = [g.input(f"past_{part}_{layer}", TensorProto.FLOAT, ["batch", heads, "room", size]) for part in ("key", "value")]
        cross = [g.input(f"cross_{part}_{layer}", TensorProto.FLOAT, ["batch", heads, "source", size]) for part in ("key", "value")]
        present = tuple(name.replace("past", "present") for name in past)
        for name in present:
            g.output(name, TensorProto.FLOAT, ["batch", heads, "room", size])
        heard = g.node(
            "GroupQueryAttention", linear(x, 3 * hidden), "", "", *past, before, total,
            outputs=(f"heard_{layer}", *present), num_heads=heads, kv_num_heads=heads,
        )  # fmt: skip
        x = norm(linear(heard, hidden), x)
        seen = g.node("MultiHeadAttention", linear(x, hidden), *cross, num_heads=heads)
        x = norm(linear(seen, hidden), x)
        inner = g.node("QuickGelu", linear(x, shape["inner"]), alpha=1.0)  # x * sigmoid(x)
        x = norm(linear(inner, hidden, shape["inner"]), x)
    logits = linear(x, shape["vocabulary"])
    if top:
        g.node("TopK", g.node("LogSoftmax", logits, axis=-1), g.weight(np.array([top])), outputs=("value", "next"), axis=-1)
        g.output("value", TensorProto.FLOAT, ["batch", 1, top])
    else:
        g.node("ArgMax", logits, outputs=("next",), axis=-1, keepdims=1)
    g.output("next", TensorProto.INT64, ["batch", 1, max(1, top)])
    return g


class HandBuilt:
    """The step in a loop; a `worker.Side`. `generate` counts the inputs and the length of the first, their ids do not matter."""

    imports = ("numpy", "onnxruntime", "onnx")

    def __init__(self, scheme: str, threads: int, top: int = 0, shape: dict[str, int] | None = None) -> None:
        self.scheme, self.threads, self.top, self.shape = scheme, threads, top, shape or SHAPE
        self.bound: tuple[Any, ...] = ()

    def load(self) -> None:
        """Builds the graph and its session."""
        self.session = build(self.scheme, self.top, self.shape).session(self.threads)

    def bind(self, batch: int, source: int, steps: int) -> None:
        """Every buffer once; past and present share theirs, so a cache is written in place."""
        layers, heads, size = self.shape["layers"], self.shape["heads"], self.shape["hidden"] // self.shape["heads"]
        first = {"ids": np.full((batch, 1), 5), "place": np.zeros((1, 1), np.int64), "before": np.zeros(batch, np.int32)}
        self.arrays: dict[str, np.ndarray] = {**first, "total": np.zeros((), np.int32)}
        self.binding = self.session.io_binding()
        self.arrays["next"] = np.zeros((batch, 1, max(1, self.top)), np.int64)
        if self.top:
            self.arrays["value"] = np.zeros((batch, 1, self.top), np.float32)
        for layer in range(layers):
            for part in ("key", "value"):
                self.arrays[f"past_{part}_{layer}"] = np.zeros((batch, heads, -(-steps // 8) * 8, size), np.float32)
                self.arrays[f"cross_{part}_{layer}"] = np.random.default_rng(1).standard_normal((batch, heads, source, size), np.float32)
        self.values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in self.arrays.items()}
        for one in self.session.get_inputs():
            self.binding.bind_ortvalue_input(one.name, self.values[one.name])
        for made in self.session.get_outputs():
            self.binding.bind_ortvalue_output(made.name, self.values[made.name.replace("present", "past")])
        self.bound = (batch, source, steps)

    def generate(self, inputs: list[list[int]], max_new_tokens: int, **options: Any) -> list[dict[str, Any]]:
        """Exactly max_new_tokens steps, each fed with the tokens chosen before."""
        wanted = (len(inputs), len(inputs[0]), max_new_tokens)
        if self.bound != wanted:
            self.bind(*wanted)
        arrays, tokens = self.arrays, np.zeros((len(inputs), max_new_tokens), np.int64)
        arrays["ids"][:] = 5
        for step in range(max_new_tokens):
            arrays["place"][:], arrays["before"][:], arrays["total"][...] = step, step, step + 1
            self.session.run_with_iobinding(self.binding)
            arrays["ids"][:] = tokens[:, step : step + 1] = arrays["next"][:, :, 0]
        return [{"text": None, "tokens": row} for row in tokens.tolist()]


@click.command(help=__doc__)
@click.option("--scheme", type=click.Choice(list(SCHEMES)), default="block8_128", show_default=True)
@click.option("--batch", type=int, default=1, show_default=True)
@click.option("--threads", type=int, default=1, show_default=True)
@click.option("--top", type=int, default=0, show_default=True, help="Top-k in the graph in place of arg-max.")
def main(scheme: str, batch: int, threads: int, top: int) -> None:
    side = HandBuilt(scheme, threads, top)
    side.load()
    side.generate([[5] * 25] * batch, 32)
    started = time.perf_counter()
    side.generate([[5] * 25] * batch, 32)
    click.echo(f"{scheme}, batch {batch}, {threads} threads: {32 * batch / (time.perf_counter() - started):.0f} tokens/s (one run)")


if __name__ == "__main__":
    main()
