"""Weights of 2 bits in blocks, beside those of 4 and 8: what ONNX Runtime's kernel takes for a product, and what a language model loses.

    python benchmarks/block_bits.py kernels
    python benchmarks/block_bits.py loss BUNDLE

`kernels` runs all in turn on one thread and prints the error against the product in float32 and milliseconds. `loss` rounds the weights of
one kind in the middle fifth of a language model's layers by GPTQ, in blocks of 32 with zero points, with activations as they are, and
prints the divergence of next tokens from float32's. It is fitted and judged on the bundle's golden texts alike: elsewhere it is larger.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from onnxport.graph.logits_positions import every_position
from onnxport.graph.search_graphs import remove_choice
from onnxport.graph.session import opened
from onnxport.quantize.activation_statistics import Hessian, observe
from onnxport.quantize.calibration_inputs import golden_texts
from onnxport.quantize.safeguards.sensitive_weights import kinds
from onnxport.quantize.schemes.blocks.gptq import quantize_gptq
from onnxport.quantize.schemes.linear import linears
from onnxport.runtime.bundle.interface import LOGITS
from onnxport.runtime.bundle.kept import log_softmax
from onnxport.runtime.bundle.reader import Bundle

WIDTH, COPIES = 2048, 8
FORMS = [(2, 32), (2, 64), (2, 128), (4, 32), (4, 64), (4, 128), (8, 32), (8, 128)]  # bits, block
ROUNDS = {1: 40, 8: 20, 128: 5}  # by rows of the input


def kernels() -> None:
    """Times of WIDTH x WIDTH products, COPIES of them with weights of their own, and how far they are from float32's."""
    random = np.random.default_rng(0)
    made = {form: _products(*form, random) for form in FORMS}
    for rows, rounds in ROUNDS.items():
        x = random.standard_normal((rows, WIDTH)).astype(np.float32)
        taken: dict[tuple[int, int], list[float]] = {form: [] for form in made}
        for _ in range(rounds):
            for form, (session, _) in made.items():
                started = time.perf_counter()
                session.run(None, {"x": x})
                taken[form].append((time.perf_counter() - started) / COPIES * 1e3)
        for (bits, block), (session, weight) in made.items():
            right = x @ weight
            error = np.sqrt(np.square(session.run(["y0"], {"x": x})[0] - right).mean() / np.square(right).mean())
            least, usual = min(taken[bits, block]), statistics.median(taken[bits, block])
            print(f"{rows} rows, {bits} bits in blocks of {block}: error {error:.4f}, least {least:.3f} ms, median {usual:.3f} ms")


def _products(bits: int, block: int, random: np.random.Generator) -> tuple[Any, np.ndarray]:
    """A graph of products, and the first one's weight float32 [K, N]."""
    import onnxruntime as ort  # after onnxport, which keeps its telemetry off

    nodes, stored, values = [], [], np.zeros(0)
    for i in range(COPIES):
        codes = random.integers(0, 1 << bits, (WIDTH, WIDTH // block, block)).astype(np.uint8)
        scale = random.uniform(0.5, 1.5, codes.shape[:2]).astype(np.float32)
        per = 8 // bits
        packed = sum(codes[:, :, at::per].astype(np.uint16) << bits * at for at in range(per))
        stored += [numpy_helper.from_array(np.asarray(packed, np.uint8), f"w{i}"), numpy_helper.from_array(scale, f"s{i}")]
        sizes = {"K": WIDTH, "N": WIDTH, "bits": bits, "block_size": block, "accuracy_level": 4}
        nodes.append(helper.make_node("MatMulNBits", ["x", f"w{i}", f"s{i}"], [f"y{i}"], domain="com.microsoft", **sizes))
        if not i:
            values = ((codes - float(1 << bits - 1)) * scale[:, :, None]).reshape(WIDTH, WIDTH).T.astype(np.float32)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", WIDTH]) for name in ("x", *(f"y{i}" for i in range(COPIES)))]
    graph = helper.make_graph(nodes, "products", ends[:1], ends[1:], stored)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    data = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]), values


def loss(path: str) -> None:
    """The divergence that weights of one kind in a fifth of the layers make alone."""
    bundle = Bundle.open(path)
    decoder = remove_choice(ir.load(bundle.file(bundle.variants["fp32"].graphs["decoder"])))
    texts = golden_texts(Path(path) / str(bundle.golden), decoder)
    feeds = [text.feed for text in texts]
    of_kind: dict[str, list[str]] = {}
    for name, kind in kinds([linear.parameter for linear in linears(decoder.graph)]).items():
        if kind.endswith(" 2"):
            of_kind.setdefault(kind, []).append(name)
    for kind, names in of_kind.items():
        seen = {str(linear.x.name): Hessian() for linear in linears(decoder.graph) if linear.parameter in names}
        observe(decoder, {name: [hessian] for name, hessian in seen.items()}, feeds)
        found = []
        for bits in (2, 4):
            copy = every_position(decoder)
            for linear in linears(copy.graph):
                if linear.parameter in names:
                    blocks = quantize_gptq(linear.weight.T, bits, 32, False, seen[str(linear.x.name)].mean())
                    value = blocks.values(linear.shape[0])
                    weight = linear.node.inputs[1]
                    assert weight is not None
                    weight.const_value = ir.tensor(np.ascontiguousarray(value if linear.transposed else value.T), name=weight.name)
            with opened({"decoder": copy}) as runners:
                answers = runners["decoder"].run(feeds, [LOGITS])
                parts = [t.kept.divergence(log_softmax(a[LOGITS][-len(t.kept) :])) for t, a in zip(texts, answers, strict=True)]
            found.append(f"{bits} bits {np.concatenate(parts).mean():.4f}")
        print(f"{kind}: divergence {', '.join(found)}", flush=True)


if __name__ == "__main__":
    kernels() if sys.argv[1:] == ["kernels"] else loss(sys.argv[2])
