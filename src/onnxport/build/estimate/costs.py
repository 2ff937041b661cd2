"""What an export takes while it runs: memory, disk, time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from onnxport.build.estimate.model import Model
from onnxport.build.estimate.shared import GOLDEN, longest
from onnxport.build.estimate.variants import WEIGHTS, codes_of_uses, finds_sensitive, own_plan, rounds
from onnxport.build.request import in_making_order
from onnxport.compare.texts import calibration_texts, golden_texts, token_rows
from onnxport.graph.pieces import LEAST
from onnxport.quantize.activation_statistics import Hessian
from onnxport.runtime.processor import cores
from onnxport.runtime.tokenizer import TextTokenizer

LIBRARIES = 700 * 2**20  # bytes that the packages of an export take by themselves
STARTED = 450 * 2**20  # of that, before a graph runs in half precision and in float32 beside it
HALVED = {"causal": 3.6, "encoder": 3.6, "seq2seq": 4.5}  # bytes that this takes for each byte of the graph in float32
CHECKED = 1.3  # the same while answers are checked on the CPU, which has no kernels for halves and holds weights in float32
VALUES = 24  # numbers of a layer for each head and pair of tokens of a text, in both graphs
KEPT = 2**28  # bytes of weights of each side of the original that are kept at least, for all texts that it reads
CHANGED = 1.1  # of the widest weight in float32: what becomes of it is made in pieces
COSTS = 2**29  # bytes of what errors of weights cost, of which as many are held at once
IDS = 600  # tokens of random ids, and of their answers
ORIGINAL, CHECKS, RUNS = 1.3, 1.0, 2.0  # how often the golden texts are read by the original and a variant, and those of fits by float32
SHORTEST = 1e-4  # seconds: clocks of processors are coarse
START = 9.0  # seconds that packages take
TRACED, MADE, TRIED, SEARCHED = 1.2, 0.4, 1.5, 6.0  # seconds of a layer that is traced, made in float32, made otherwise, tried by itself


def memory(names: Sequence[str], model: Model, files: Mapping[str, int]) -> int:
    """The most of what the original and the variants take."""
    graph = max(map(model.float32, model.roles))
    halves = any(own_plan(name, model).half is not None for name in names)
    of_halves = max(HALVED[model.kind] * min(graph, _piece(model)) + _of_a_long_text(model), CHECKED * graph)
    return max(_of_weights(names, model, files), round(STARTED + of_halves) if halves else 0)


def _of_a_long_text(model: Model) -> float:
    """What all values take that a long golden text shows: attentions are of each token to each."""
    if not model.traced or model.kind != "encoder":
        return 0.0
    heads = model.number("num_attention_heads", "num_heads", "n_heads", "encoder_attention_heads")
    return VALUES * 4 * model.layers("encoder") * heads * longest(model) ** 2


def _of_weights(names: Sequence[str], model: Model, files: Mapping[str, int]) -> int:
    """The widest weight in float32 as it is changed, and what is kept."""
    whole = model.float32()
    largest = 4 * _widest(model)
    costs = COSTS if any("hessian" in own_plan(name, model).needs for name in names) else 0
    kept = min(whole, KEPT * len(model.roles))
    return LIBRARIES + model.held + round(CHANGED * largest) + kept + min(2 * whole, costs) + files[GOLDEN]


def _piece(model: Model) -> int:
    """Bytes in float32 that a piece of a large graph has, where it holds the widest weight."""
    return LEAST + 4 * _widest(model)


def _widest(model: Model) -> int:
    """Numbers of the largest weight."""
    return max((tensor.numbers for tensor in model.tensors), default=0)


def disk(names: Sequence[str], model: Model, files: Mapping[str, int]) -> int:
    """The most that is taken at any time: the bundle as far as it is made, and temporary files beside it.

    Of these there are codes, and one graph in float32 that a variant is compared with; for half precision pieces of it twice, as they are
    and with rounded values.
    """
    written = sum(size for name, size in files.items() if not name.endswith(WEIGHTS))
    graph = max(map(model.float32, model.roles))
    most = 0
    for name in in_making_order(names):
        plan, own = own_plan(name, model), files.get(f"{name}/{WEIGHTS}", 0)
        beside = 2 * min(graph, _piece(model)) if plan.half is not None else 0
        written += own
        if rounds(plan):
            beside = min(graph, _piece(model)) + codes_of_uses(name, model) * (2 if model.kind == "encoder" else 1)
            most = max(most, written + beside)
        most = max(most, written, written - own + beside)
    return most


def seconds(names: Sequence[str], model: Model) -> float:
    """Products of all weights with the texts that the original and the variants read, and with each other where errors are made good; and
    what each layer takes by itself."""
    read = fitted = IDS
    if model.tokenizer is not None:
        rows = partial(token_rows, tokenizer=TextTokenizer(model.tokenizer.read_bytes()))
        read, fitted = (IDS + sum(map(len, rows(texts))) for texts in (golden_texts(), calibration_texts()))
    layers = sum(map(model.layers, model.roles))
    weights = sum(tensor.numbers for tensor in model.tensors if tensor.is_matrix)
    total, apart = ORIGINAL * read * weights, START + TRACED * layers
    for name in names:
        plan = own_plan(name, model)
        total += CHECKS * read * weights
        apart += (SEARCHED if finds_sensitive(name, model) else TRIED if rounds(plan) or plan.half is not None else MADE) * layers
        if rounds(plan):
            total += RUNS * fitted * weights
        if "hessian" in plan.needs:
            fitted_ones = [tensor for tensor in model.tensors if not model.is_table(tensor) and not tensor.is_experts]
            total += sum(tensor.numbers * min(tensor.shape[-1], Hessian.WIDEST) for tensor in fitted_ones)
    return apart + 2 * total / _speed()


def _speed() -> float:
    """Multiplications and additions in float32 a second of all cores: the best of a few products, by time of processors, which other
    programs do not lengthen."""
    one, other = np.ones((256, 1024), np.float32), np.ones((1024, 1024), np.float32)
    times = []
    for _ in range(6):
        begun = time.process_time()
        one @ other
        times.append(time.process_time() - begun)
    return 2 * one.size * len(other) / max(min(times), SHORTEST) * cores()
