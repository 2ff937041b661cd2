"""What a key/value cache of 8 bits costs and gains: perplexity, the attention kernel, whole steps, bytes.

    python benchmarks/kv_cache.py quality BUNDLE TEXT.txt [--rows 12] [--length 128] [--variants fp32,int8]
    python benchmarks/kv_cache.py kernel [--shape 9,3,64] [--entries 128,512,1024,2048,4096,8192] [--threads 1]
    python benchmarks/kv_cache.py steps BUNDLE [--entries 128,512,1024,2048,4096] [--variants fp32,int8] [--threads 1]

BUNDLE is a language model's with an fp32 variant. Each side has the same weights, once with the cache of the graph's own type and once with
one of 8 bits; its scales are found on the kit's calibration texts as `--kv int8` finds them. `quality` also shows one scale for all of a
layer's keys, and one for each head. `kernel` times one GroupQueryAttention of so many query heads, key heads and channels. Ratios are
medians over runs that alternate, with their 10th and 90th percentile; with one thread, of the CPU time of the calling thread. `steps` gives
the geometric mean of both orders of loading, and the two.
"""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import click
import numpy as np
import onnx
import onnx_ir as ir
from language_precision import _log_softmax, _print, _rows
from onnx import TensorProto, helper

from onnxport.graph.logits_positions import every_position
from onnxport.graph.search_graphs import remove_choice
from onnxport.graph.session import opened
from onnxport.quantize.calibration_inputs import kit_feeds, prefill_feed
from onnxport.quantize.schemes import int8_cache
from onnxport.runtime.bundle import interface
from onnxport.runtime.bundle.reader import Bundle
from onnxport.runtime.decode.cache import buffer_shapes
from onnxport.runtime.sessions import NUMPY_TYPES, Sessions, value_of
from onnxport.runtime.tasks.chat import ChatTemplate
from onnxport.runtime.tokenizer import TextTokenizer

WARM, SECONDS = 3, 4.0  # runs before those that count; of one comparison


def numbers(_: click.Context, __: click.Parameter, value: str) -> list[int]:
    """Whole numbers between commas."""
    return [int(part) for part in value.split(",")]


class Model:
    """A variant's decoder as it was before its cache had 8 bits, and copies of it that have such caches."""

    def __init__(self, bundle: Bundle, variant: str) -> None:
        self.bundle, self.variant = bundle, variant
        self.plain = self._decoder(variant)

    def _decoder(self, name: str) -> ir.Model:
        return remove_choice(ir.load(self.bundle.file(self.bundle.variants[name].graphs["decoder"])))

    @cached_property
    def peaks(self) -> dict[str, np.ndarray]:
        """The largest of each channel on the kit's texts."""
        bundle, generation = self.bundle, self.bundle.generation
        assert generation is not None
        chat = None if bundle.chat is None else ChatTemplate.parse(bundle.file(bundle.chat.template).read_bytes(), bundle.chat.tokens)
        fused = self._decoder("fp32")
        feeds = kit_feeds(generation, bundle.file(next(iter(bundle.tokenizers.values()))), chat, fused)["decoder"]
        return int8_cache.peaks(self.plain, int8_cache.turning(fused), feeds, generation.max_length)

    def small(self, shared: Callable[[np.ndarray], np.ndarray] | None = None) -> ir.Model:
        """With a cache of 8 bits. shared: what scales are made of, from the largest of each channel [heads, size]."""
        found = self.peaks if shared is None else {name: np.broadcast_to(shared(peak), peak.shape) for name, peak in self.peaks.items()}
        return int8_cache.with_scales(self.plain, found, int8_cache.ROOM)

    def timed(self) -> ir.Model:
        """With a cache of 8 bits whose scales are all the same: a step takes as long, and nothing is to be read."""
        kept = [value for node in int8_cache.attentions(self.plain.graph) for value in node.inputs[3:5] if value is not None]
        ones = {
            str(value.name): np.ones((int(value.shape[1]), int(value.shape[3])), np.float32) for value in kept if value.shape is not None
        }
        return int8_cache.with_scales(self.plain, ones, 1.0)


@click.group()
def main() -> None:
    """Quality, kernel, steps."""


@main.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.argument("text", type=click.Path(exists=True, path_type=Path))
@click.option("--rows", default=12, help="rows of the text")
@click.option("--length", default=128, help="tokens of a row")
@click.option("--variants", default="fp32", help="variants whose weights are read, between commas")
def quality(bundle: Path, text: Path, rows: int, length: int, variants: str) -> None:
    """What the cache alone loses: each variant against itself with the cache of its graph."""
    found = Bundle.open(bundle)
    tokenizer = TextTokenizer(found.file(next(iter(found.tokenizers.values()))))
    content = gzip.decompress(text.read_bytes()).decode() if text.suffix == ".gz" else text.read_text(encoding="utf-8")
    ids = _stretches(tokenizer, content, rows, length) if length > 256 else _rows(tokenizer, content, rows, length)
    print(f"{rows} rows of {length} tokens of {text.name}\n")
    print("| cache | bytes a token | perplexity | change | KL | 95% interval | same first choice |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for variant in variants.split(","):
        model = Model(found, variant)
        expected = list(_logprobs(model.plain, ids))
        _print(f"{variant}, its own", _bytes_of(model.plain), ids, expected, iter(expected))
        small = model.small()
        _print(f"{variant}, 8 bits", _bytes_of(small), ids, expected, _logprobs(small, ids))
        if variant == "fp32":
            for name, axes in (("a scale a head", -1), ("a scale a tensor", (0, 1))):
                other = model.small(lambda peak, axes=axes: peak.max(axes, keepdims=True))  # type: ignore[misc]
                _print(f"{variant}, 8 bits, {name}", _bytes_of(other), ids, expected, _logprobs(other, ids))


def _stretches(tokenizer: TextTokenizer, text: str, rows: int, length: int) -> np.ndarray:
    """Rows longer than a paragraph: int64 [rows, length], one after the other."""
    parts = [part for part in text.split("\n") if len(part) > 200]
    ids = tokenizer.encode(["\n".join(parts[: rows * length // 50])])[0]
    if len(ids) < rows * length:
        raise click.ClickException(f"the text has {len(ids)} tokens, expected {rows * length}")
    return np.array(ids[: rows * length], np.int64).reshape(rows, length)


def _logprobs(model: ir.Model, ids: np.ndarray) -> Iterator[np.ndarray]:
    with opened({"decoder": every_position(model)}) as runners:
        for found in runners["decoder"].run((prefill_feed(model, row) for row in ids), ["logits"]):
            yield _log_softmax(found["logits"])


def _bytes_of(model: ir.Model) -> float:
    """Of keys and values of one token, times a million, for the table's own unit."""
    caches = [value for value in model.graph.inputs if interface.is_cache(value.name)]
    sizes = [int(value.shape[1]) * int(value.shape[3]) * value.dtype.itemsize for value in caches]  # type: ignore[index, arg-type, union-attr]
    return 1e6 * sum(sizes)


@main.command()
@click.option("--shape", default="9,3,64", callback=numbers, help="query heads, key and value heads, channels")
@click.option("--entries", default="128,512,1024,2048,4096,8192", callback=numbers, help="entries of the cache")
@click.option("--threads", default=1, help="threads of ONNX Runtime")
def kernel(shape: list[int], entries: list[int], threads: int) -> None:
    """One step of one attention."""
    print(f"{shape[0]} query heads, {shape[1]} key heads of {shape[2]}, {threads} threads\n")
    print("| entries | float32 ms | 8 bits, a scale a tensor | 8 bits, a scale a channel |")
    print("| --- | --- | --- | --- |")
    for count in entries:
        sides = [_attention(shape, count, quantized, threads) for quantized in ("NONE", "PER_TENSOR", "PER_CHANNEL")]
        times = _alternating(sides, threads)
        print(f"| {count} | {1e3 * np.median(times[0]):.3f} | {_ratio(times, 1)} | {_ratio(times, 2)} |", flush=True)


def _attention(shape: list[int], count: int, quantized: str, threads: int) -> Callable[[], None]:
    heads, kv_heads, size = shape
    kind = TensorProto.FLOAT if quantized == "NONE" else TensorProto.INT8
    caches = [1, kv_heads, "capacity", size]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, (heads + 2 * kv_heads) * size])]
    inputs += [helper.make_tensor_value_info(f"past_{part}", kind, caches) for part in ("key", "value")]
    inputs += [helper.make_tensor_value_info(name, TensorProto.INT32, dims) for name, dims in (("last", [1]), ("total", []))]
    scale = np.full((1, kv_heads, 1, size) if quantized == "PER_CHANNEL" else 1, 0.03, np.float32)
    read = ["x", "", "", "past_key", "past_value", "last", "total"]
    settings = {"num_heads": heads, "kv_num_heads": kv_heads}
    if quantized != "NONE":
        read += [""] * 5 + ["scale", "scale"]
        settings |= {"k_quant_type": quantized, "v_quant_type": quantized, "kv_cache_bit_width": 8}
    node = helper.make_node("GroupQueryAttention", read, ["y", "present_key", "present_value"], domain="com.microsoft", **settings)
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, heads * size])]
    outputs += [helper.make_tensor_value_info(f"present_{part}", kind, caches) for part in ("key", "value")]
    graph = helper.make_graph([node], "g", inputs, outputs, [onnx.numpy_helper.from_array(scale, "scale")] if quantized != "NONE" else [])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    random = np.random.default_rng(0)
    feeds = {
        "x": random.standard_normal((1, 1, (heads + 2 * kv_heads) * size), dtype=np.float32),
        "last": np.array([count - 1], np.int32), "total": np.array(count, np.int32),
    }  # fmt: skip
    cache = random.standard_normal((2, 1, kv_heads, count, size), dtype=np.float32)
    cache = cache if quantized == "NONE" else np.clip(np.rint(cache / 0.03), -128, 127).astype(np.int8)
    with opened({"g": model}, sessions=Sessions.on("cpu", threads)) as runners:
        session = runners["g"].session
    binding = session.io_binding()
    held = [value_of(np.ascontiguousarray(array)) for array in cache]
    for part, value in zip(("key", "value"), held, strict=True):
        binding.bind_ortvalue_input(f"past_{part}", value)
        binding.bind_ortvalue_output(f"present_{part}", value)
    for name, array in feeds.items():
        binding.bind_ortvalue_input(name, value_of(array))
    binding.bind_ortvalue_output("y", value_of(np.zeros((1, 1, heads * size), np.float32)))
    return lambda: session.run_with_iobinding(binding)


@main.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--entries", default="128,512,1024,2048,4096", callback=numbers, help="entries of the cache")
@click.option("--variants", default="fp32", help="variants whose weights are read, between commas")
@click.option("--threads", default=1, help="threads of ONNX Runtime")
def steps(bundle: Path, entries: list[int], variants: str, threads: int) -> None:
    """Whole steps of one row, behind so many entries."""
    found = Bundle.open(bundle)
    print(f"{found.name}, {threads} threads\n")
    print("| variant | entries | its own cache, ms | 8 bits, times as fast | MB of its own cache | of 8 bits |")
    print("| --- | --- | --- | --- | --- | --- |")
    for variant in variants.split(","):
        model = Model(found, variant)
        for count in entries:
            graphs, medians, sizes = [model.plain, model.timed()], [], {}
            for order in ((0, 1), (1, 0)):  # which one is loaded first makes up to a fifth alone
                sides = {side: _step(found, graphs[side], count, threads) for side in order}
                times = _alternating([sides[side][0] for side in (0, 1)], threads)
                medians.append((float(np.median(times[0])), float(np.median(times[0] / times[1]))))
                sizes = {side: size / 1e6 for side, (_, size) in sides.items()}
            own, faster = np.exp(np.log(medians).mean(0))
            both = " and ".join(f"{ratio:.2f}" for _, ratio in medians)
            print(f"| {variant} | {count} | {1e3 * own:.1f} | {faster:.2f} ({both}) | {sizes[0]:.1f} | {sizes[1]:.1f} |", flush=True)


def _step(bundle: Bundle, graph: ir.Model, count: int, threads: int) -> tuple[Callable[[], None], int]:
    """One step behind `count` entries, and the bytes of its cache."""
    assert bundle.generation is not None
    with opened({"decoder": graph}, sessions=Sessions.on("cpu", threads)) as runners:
        session, inputs = runners["decoder"].session, runners["decoder"].inputs
    layers = bundle.generation.layers
    past, present = (interface.cache_names(prefix, layers) for prefix in (interface.PAST, interface.PRESENT))
    random, binding, held = np.random.default_rng(0), session.io_binding(), 0
    for name, other, shape in zip(past, present, buffer_shapes(bundle.generation.layer_caches, 1, count + 1), strict=True):
        kind = np.dtype(NUMPY_TYPES[inputs[name].type])
        array = random.standard_normal(shape, dtype=np.float32)
        value = value_of((10 * array).astype(kind) if kind.kind == "i" else array.astype(kind))
        held += array.size * kind.itemsize
        binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output(other, value)
    feed = interface.prefill(np.ones((1, 1), np.int64), before=np.array([count], np.int64))
    for name, array in feed.items():
        if name in inputs:
            binding.bind_ortvalue_input(name, value_of(array))
    binding.bind_output(interface.LOGITS)
    return lambda: session.run_with_iobinding(binding), held


def _alternating(sides: list[Callable[[], None]], threads: int) -> np.ndarray:
    """Seconds of each side, float64 [sides, runs], one run after the other."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    for run in sides:
        for _ in range(WARM):
            run()
    found, end = [], time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(found) < 7:
        row = []
        for run in sides:
            begun = clock()
            run()
            row.append(clock() - begun)
        found.append(row)
    return np.array(found).T


def _ratio(times: np.ndarray, side: int) -> str:
    low, middle, high = np.quantile(times[0] / times[side], (0.1, 0.5, 0.9))
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
