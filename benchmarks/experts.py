"""ONNX Runtime's mixtures of experts beside the dense sum that traced models have: right values, and the time of a layer.

    python benchmarks/experts.py --experts 8 --top 2 --hidden 512 --inner 1024

A layer of SwiGLU experts is built by hand: `dense` computes every expert by products of three dimensions and weighs them, as
`export/attention_interface/experts.py` traces it; `dense-8-128` does so with a MatMulNBits of 8 bits in blocks of 128 for each expert;
`moe` is com.microsoft::MoE in float32; `qmoe-8-128` is com.microsoft::QMoE of 8 bits in blocks of 128, `qmoe-4-32-float` of 4 bits in
blocks of 32 with activations in float32. Both kernels get the logarithms of the router's weights, as fusion gives them.

Values are held against NumPy in float64 with the weights that the codes mean. Times are CPU seconds of the calling thread, one thread,
sides in turn; ratios are medians over rounds.
"""

from __future__ import annotations

import time
from typing import Any

import click
import numpy as np
from handbuilt import Graph
from onnx import TensorProto

ROWS = (1, 4, 16, 64)


class Layer:
    """Random experts, and what they answer."""

    def __init__(self, experts: int, top: int, hidden: int, inner: int, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.experts, self.top, self.hidden, self.inner = experts, top, hidden, inner
        self.up = (random.standard_normal((experts, 2 * inner, hidden)) / np.sqrt(hidden)).astype(np.float32)  # gates, then what they gate
        self.down = (random.standard_normal((experts, hidden, inner)) / np.sqrt(inner)).astype(np.float32)
        self.random = random

    def inputs(self, rows: int) -> dict[str, np.ndarray]:
        x = self.random.standard_normal((rows, self.hidden)).astype(np.float32)
        order: np.ndarray = self.random.permuted(np.tile(np.arange(self.experts), (rows, 1)), axis=1)[:, : self.top]
        weights = np.zeros((rows, self.experts), np.float32)
        np.put_along_axis(weights, order, self.random.random((rows, self.top), dtype=np.float32) + 0.05, axis=1)
        return {"x": x, "weights": weights}

    def answer(self, feeds: dict[str, np.ndarray], up: np.ndarray, down: np.ndarray) -> np.ndarray:
        """In float64, of these weights."""
        x, weights, found = feeds["x"].astype(np.float64), feeds["weights"], np.zeros(feeds["x"].shape)
        for e in range(self.experts):
            y = x @ up[e].T.astype(np.float64)
            gate, value = y[:, : self.inner], y[:, self.inner :]
            found += weights[:, e : e + 1] * ((gate / (1 + np.exp(-gate)) * value) @ down[e].T.astype(np.float64))
        return found


def in_blocks(weight: np.ndarray, bits: int, block: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[..., N, K] → codes [..., N, K * bits / 8], scales [..., N, K / block], and the weights that they mean."""
    middle = 1 << (bits - 1)
    parts = weight.reshape(*weight.shape[:-1], -1, block)
    scales = np.abs(parts).max(-1, keepdims=True) / (middle - 1)
    codes = (np.rint(parts / scales) + middle).astype(np.uint8)
    meant = ((codes.astype(np.float32) - middle) * scales).reshape(weight.shape)
    codes = codes.reshape(weight.shape)
    packed = codes if bits == 8 else codes[..., 0::2] | codes[..., 1::2] << 4
    return packed, scales[..., 0], meant


def interleaved(up: np.ndarray) -> np.ndarray:
    """Rows of gates and of what they gate in turn, as the CPU's kernels read them."""
    return np.stack(np.split(up, 2, axis=1), axis=2).reshape(up.shape)


def _inputs(g: Graph, layer: Layer) -> tuple[str, str]:
    g.output("y", TensorProto.FLOAT, ["rows", layer.hidden])
    return g.input("x", TensorProto.FLOAT, ["rows", layer.hidden]), g.input("weights", TensorProto.FLOAT, ["rows", layer.experts])


def _gated(g: Graph, y: str, inner: int) -> str:
    gate, value = g.node("Split", y, outputs=(f"gate_{y}", f"value_{y}"), axis=-1, num_outputs=2), f"value_{y}"
    return g.node("Mul", g.node("Mul", gate, g.node("Sigmoid", gate)), value)


def dense(layer: Layer) -> tuple[Graph, np.ndarray, np.ndarray]:
    g = Graph()
    x, weights = _inputs(g, layer)
    each = g.node("Unsqueeze", x, g.weight(np.array([0])))
    up = g.node("MatMul", each, g.weight(layer.up.transpose(0, 2, 1).copy()))
    down = g.node("MatMul", _gated(g, up, layer.inner), g.weight(layer.down.transpose(0, 2, 1).copy()))
    by = g.node("Unsqueeze", g.node("Transpose", weights, perm=[1, 0]), g.weight(np.array([2])))
    g.node("ReduceSum", g.node("Mul", down, by), g.weight(np.array([0])), outputs=("y",), keepdims=0)
    return g, layer.up, layer.down


def dense_in_blocks(layer: Layer, bits: int, block: int) -> tuple[Graph, np.ndarray, np.ndarray]:
    g = Graph()
    x, weights = _inputs(g, layer)

    def product(value: str, weight: np.ndarray) -> tuple[str, np.ndarray]:
        codes, scales, meant = in_blocks(weight, bits, block)
        n, k = weight.shape
        b = g.weight(codes.reshape(n, k // block, -1))
        found = g.node("MatMulNBits", value, b, g.weight(scales.reshape(-1)), K=k, N=n, bits=bits, block_size=block, accuracy_level=4)
        return found, meant

    ups, downs, total = [], [], ""
    parts = g.node("Split", weights, outputs=tuple(f"by_{e}" for e in range(layer.experts)), axis=1, num_outputs=layer.experts)
    for e in range(layer.experts):
        y, meant = product(x, layer.up[e])
        ups.append(meant)
        z, meant = product(_gated(g, y, layer.inner), layer.down[e])
        downs.append(meant)
        last = e == layer.experts - 1
        weighed = g.node("Mul", z, parts[:-1] + str(e))
        total = g.node("Add", total, weighed, **({"outputs": ("y",)} if last else {})) if total else weighed
    return g, np.stack(ups), np.stack(downs)


def _kernel(g: Graph, layer: Layer, op: str, weights: tuple[str, ...], **settings: Any) -> None:
    """The kernel takes logits: those of weights over their sum, which the answer is then multiplied by."""
    x, by = _inputs(g, layer)
    logits = g.node("Log", g.node("Max", by, g.weight(np.float32(1e-37))))
    gate: dict[str, Any] = {"activation_type": "swiglu", "swiglu_fusion": 1, "activation_alpha": 1.0, "activation_beta": 0.0}
    found = g.node(op, x, logits, *weights, k=layer.top, normalize_routing_weights=0, **gate, **settings)
    g.node("Mul", found, g.node("ReduceSum", by, g.weight(np.array([1]))), outputs=("y",))


def moe(layer: Layer) -> tuple[Graph, np.ndarray, np.ndarray]:
    g = Graph()
    _kernel(g, layer, "MoE", (g.weight(interleaved(layer.up)), "", g.weight(layer.down)))
    return g, layer.up, layer.down


def qmoe(layer: Layer, bits: int, block: int, level: int) -> tuple[Graph, np.ndarray, np.ndarray]:
    g = Graph()
    up, up_scales, meant_up = in_blocks(interleaved(layer.up), bits, block)
    down, down_scales, meant_down = in_blocks(layer.down, bits, block)
    weights = (g.weight(up), g.weight(up_scales), "", g.weight(down), g.weight(down_scales))
    _kernel(g, layer, "QMoE", weights, expert_weight_bits=bits, block_size=block, accuracy_level=level)
    return g, np.concatenate([meant_up[:, 0::2], meant_up[:, 1::2]], axis=1), meant_down


def side(name: str, layer: Layer) -> tuple[Graph, np.ndarray, np.ndarray]:
    """The graph of a name, and the weights that it computes with."""
    kind, *parts = name.split("-")
    if kind == "dense" and parts:
        return dense_in_blocks(layer, int(parts[0]), int(parts[1]))
    if kind == "qmoe":
        return qmoe(layer, int(parts[0]), int(parts[1]), 0 if parts[2:] == ["float"] else 4)
    return {"dense": dense, "moe": moe}[name](layer)


def run(session: Any, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """What a session answers to those of the feeds that it takes."""
    answer: np.ndarray = session.run(None, {value.name: feeds[value.name] for value in session.get_inputs()})[0]
    return answer


@click.command()
@click.option("--experts", type=int, default=8, show_default=True)
@click.option("--top", type=int, default=2, show_default=True)
@click.option("--hidden", type=int, default=512, show_default=True)
@click.option("--inner", type=int, default=1024, show_default=True)
@click.option("--side", "names", multiple=True, default=("dense", "dense-8-128", "moe", "qmoe-8-128", "qmoe-4-32", "qmoe-4-32-float"))
@click.option("--rounds", type=int, default=9, show_default=True)
def main(experts: int, top: int, hidden: int, inner: int, names: tuple[str, ...], rounds: int) -> None:
    """Values and times of each side at several numbers of rows."""
    layer = Layer(experts, top, hidden, inner)
    sides: dict[str, Any] = {}
    for name in names:
        graph, up, down = side(name, layer)
        sides[name] = (graph.session(1), up, down)
    click.echo("| rows | side | largest difference | ms | times as fast as dense |\n| --- | --- | --- | --- | --- |")
    for rows in ROWS:
        feeds, taken = layer.inputs(rows), {name: [] for name in names}
        apart = {}
        for name, (session, up, down) in sides.items():
            expected = layer.answer(feeds, up, down)
            apart[name] = np.abs(run(session, feeds) - expected).max() / np.abs(expected).max()
        times = max(1, 16 // rows)
        for _ in range(rounds):
            for name, (session, _, _) in sides.items():
                began = time.thread_time()
                for _ in range(times):
                    run(session, feeds)
                taken[name].append((time.thread_time() - began) / times)
        for name in names:
            ratio = np.median(np.array(taken["dense"]) / taken[name]) if "dense" in taken else float("nan")
            click.echo(f"| {rows} | {name} | {apart[name]:.1e} | {np.median(taken[name]) * 1000:.3f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
