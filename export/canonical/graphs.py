"""Canonical graphs of a model: their check against the original's golden answers, and their trace to ONNX."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from onnxport.errors import ParityError
from onnxport.export.canonical.load_weights import CanonicalGraph
from onnxport.export.canonical.settings import skip_norms
from onnxport.export.deferred import in_step, is_large
from onnxport.export.trace.tracer import Shapes, trace
from onnxport.runtime.bundle import golden
from onnxport.runtime.bundle.interface import (
    ATTENTION_MASK,
    CROSS,
    INPUT_IDS,
    LOGITS,
    LOGITS_INDEX,
    PAST,
    POSITION_IDS,
    PRESENT,
    SELF_MASK,
    SOURCE_MASK,
    TOKEN_TYPE_IDS,
    cache_names,
)

TOLERANCE = 1e-4  # of the size of an answer, where that is above 1
STEPS_OF_LARGE = 2  # positions: each step is a run over all weights


@dataclass(frozen=True)
class CanonicalModel:
    """A model as canonical graphs by role, `encoder` and `decoder`."""

    graphs: dict[str, CanonicalGraph]

    def head(self, role: str = "decoder") -> tuple[int, int]:
        """(heads of keys and values, padded head size) of a role's self attention."""
        layer = self.graphs[role].stack.layers[0]
        return layer.kv_heads, layer.size

    def padded_heads(self) -> dict[str, list[int]]:
        """Role → true size of a head and the padded size, where kernels take no heads of the true one."""
        sizes = {role: [layer.head, layer.size] for role, graph in self.graphs.items() for layer in graph.stack.layers[:1]}
        return {role: [head, size] for role, (head, size) in sizes.items() if head != size}

    def window(self) -> int | None:
        """Positions that the decoder's queries see, where all layers have the same window: no more have to be kept."""
        windows = {layer.window for layer in self.graphs["decoder"].stack.layers}
        return windows.pop() if len(windows) == 1 else None


def check_seq2seq(canonical: CanonicalModel, goldens: dict[str, np.ndarray]) -> None:
    """ParityError unless the canonical graphs give the golden logits, by prefill and by cached steps."""
    names = ("source_ids", "source_mask", "target_ids", "target_lengths", "logits")

    def check(case: Mapping[str, np.ndarray]) -> None:
        source, mask, ids, lengths, logits = (torch.from_numpy(case[name]) for name in names)
        flat = canonical.graphs["encoder"].module(source, mask)
        memory = {SOURCE_MASK: mask, "cross": list(zip(flat[::2], flat[1::2], strict=True))}
        _check_decoding(canonical, ids, lengths, logits, memory)

    modules = [graph.module for graph in canonical.graphs.values()]
    in_step(modules, [partial(check, case) for case in golden.teacher_forced(goldens)])


def check_causal(canonical: CanonicalModel, goldens: dict[str, np.ndarray]) -> None:
    """ParityError unless the canonical decoder gives the golden logits, by prefill and by cached steps."""
    calls = []
    for case in golden.teacher_forced(goldens):
        ids, lengths, logits = (torch.from_numpy(case[name]) for name in ("input_ids", "lengths", "logits"))
        calls.append(partial(_check_decoding, canonical, ids, lengths, logits, {}))
    in_step([canonical.graphs["decoder"].module], calls)


def _check_decoding(canonical: CanonicalModel, ids: Tensor, lengths: Tensor, logits: Tensor, memory: dict[str, Any]) -> None:
    decoder = canonical.graphs["decoder"]
    decoding = _CachedDecoder(decoder.module, *canonical.head(), len(decoder.stack.layers))
    compared = (torch.arange(ids.shape[1])[None, :] < lengths[:, None])[:, :, None]
    agree(logits, decoding.prefill(ids, **memory) * compared, "logits of a prefill")
    count = min(ids.shape[1], STEPS_OF_LARGE) if is_large([decoder.module]) else ids.shape[1]
    agree(logits[:, :count], decoding.steps(ids, count, **memory) * compared[:, :count], "logits of cached steps")


def agree(original: Tensor, canonical: Tensor, what: str) -> None:
    """ParityError where the canonical model and the user's own class differ by more than `TOLERANCE` of the answer's size."""
    bound = TOLERANCE * max(1.0, original.abs().max().item())
    difference = (original - canonical).abs().max().item()
    if not difference <= bound:
        raise ParityError(
            f"{what} of the canonical model differ from the original's by {difference:.2e}, more than {bound:.2e}; use Module(...)"
        )


class _CachedDecoder:
    """The canonical decoder driven as the runtime drives its graph: prefill of right-padded rows, or one token at a time."""

    def __init__(self, decoder: nn.Module, heads: int, size: int, layers: int) -> None:
        self.decoder, self.heads, self.size, self.layers = decoder, heads, size, layers

    def _empty(self, batch: int) -> list[tuple[Tensor, Tensor]]:
        return [(torch.zeros(batch, self.heads, 0, self.size), torch.zeros(batch, self.heads, 0, self.size)) for _ in range(self.layers)]

    def prefill(self, ids: Tensor, **memory: Any) -> Tensor:
        """int64 [batch, length] → logits [batch, length, vocabulary], every position from one pass without a past."""
        batch, length = ids.shape
        ids, index = ids.repeat_interleave(length, 0), torch.arange(length).repeat(batch)  # a row has the logits of one position
        mask = torch.ones(length, length, dtype=torch.bool).tril().expand(len(ids), 1, length, length)
        positions = torch.arange(length).expand(len(ids), length)
        logits = self.decoder(ids, positions, index, mask, self._empty(len(ids)), **memory)[0]
        found: Tensor = logits.unflatten(0, (batch, length))
        return found

    def steps(self, ids: Tensor, count: int, **memory: Any) -> Tensor:
        """The same logits of the first `count` positions, one at a time through the cache."""
        batch = len(ids)
        past, rows = self._empty(batch), []
        for i in range(count):
            mask = torch.ones(batch, 1, 1, i + 1, dtype=torch.bool)
            logits, *present = self.decoder(
                ids[:, i : i + 1], torch.full((batch, 1), i), torch.zeros(batch, dtype=torch.long), mask, past, **memory
            )
            past = list(zip(present[::2], present[1::2], strict=True))
            rows.append(logits)
        return torch.stack(rows, 1)


def trace_source_encoder(canonical: CanonicalModel, opset: int) -> ir.Model:
    """`input_ids`, `source_mask` [batch, source] → cross keys and values of every decoder layer."""
    encoder = canonical.graphs["encoder"]
    heads, size = canonical.head()
    axes = {0: "batch", 1: "source"}
    inputs = {INPUT_IDS: torch.zeros(3, 5, dtype=torch.long), SOURCE_MASK: torch.ones(3, 5, dtype=torch.int32)}
    layers = len(canonical.graphs["decoder"].stack.layers)
    outputs: Shapes = dict.fromkeys(cache_names(CROSS, layers), ("batch", heads, "source", size))
    return trace(encoder.module, inputs, dict.fromkeys(inputs, axes), list(inputs), outputs, encoder.names, opset, "encoder")


def trace_text_encoder(graph: CanonicalGraph, types: bool, outputs: Shapes, opset: int) -> ir.Model:
    """`input_ids`, `attention_mask` and, with `types`, `token_type_ids` [batch, sequence] → `outputs`."""
    axes = {0: "batch", 1: "sequence"}
    inputs = {INPUT_IDS: torch.zeros(3, 5, dtype=torch.long), ATTENTION_MASK: torch.ones(3, 5, dtype=torch.long)}
    if types:
        inputs[TOKEN_TYPE_IDS] = torch.zeros(3, 5, dtype=torch.long)
    return trace(graph.module, inputs, dict.fromkeys(inputs, axes), list(inputs), outputs, graph.names, opset, "encoder")


def trace_decoder(canonical: CanonicalModel, opset: int) -> ir.Model:
    """One graph for prefill and step; the example has two beams a source, and no two sizes alike."""
    decoder = canonical.graphs["decoder"]
    layers, cross = len(decoder.stack.layers), decoder.stack.cross
    heads, size = canonical.head()
    sources, batch, length, past, source = 3, 6, 4, 5, 7
    inputs: dict[str, Any] = {
        INPUT_IDS: torch.zeros(batch, length, dtype=torch.long),
        POSITION_IDS: torch.zeros(batch, length, dtype=torch.long),
        LOGITS_INDEX: torch.zeros(batch, dtype=torch.long),
        SELF_MASK: torch.ones(batch, 1, length, past + length, dtype=torch.bool),
        "past": [(torch.zeros(batch, heads, past, size), torch.zeros(batch, heads, past, size)) for _ in range(layers)],
    }
    cache = {0: "batch", 2: "past"}
    dynamic: dict[str, Any] = {
        INPUT_IDS: {0: "batch", 1: "length"},
        POSITION_IDS: {0: "batch", 1: "length"},
        LOGITS_INDEX: {0: "batch"},
        SELF_MASK: {0: "batch", 2: "length", 3: "total"},
        "past": [(cache, cache)] * layers,
    }
    names = [INPUT_IDS, POSITION_IDS, LOGITS_INDEX, SELF_MASK, *cache_names(PAST, layers)]
    if cross:
        inputs[SOURCE_MASK] = torch.ones(sources, source, dtype=torch.int32)
        inputs["cross"] = [(torch.zeros(sources, heads, source, size), torch.zeros(sources, heads, source, size)) for _ in range(layers)]
        memory = {0: "source_batch", 2: "source"}
        dynamic |= {SOURCE_MASK: {0: "source_batch", 1: "source"}, "cross": [(memory, memory)] * layers}
        names += [SOURCE_MASK, *cache_names(CROSS, layers)]
    vocabulary = decoder.module.vocabulary
    outputs: Shapes = {LOGITS: ("batch", vocabulary)}
    outputs |= dict.fromkeys(cache_names(PRESENT, layers), ("batch", heads, "total", size))
    return trace(decoder.module, inputs, dynamic, names, outputs, decoder.names, opset, "decoder")


def expected_fusions(canonical: CanonicalModel) -> dict[str, dict[str, int]]:
    """Role → rule → how often it must apply."""
    result = {}
    for role, graph in canonical.graphs.items():
        layers = len(graph.stack.layers)
        # most encoders add one row of positions to every text, a broadcast that the fused kernel does not take
        summed = graph.stack.padding is not None or (role == "decoder" and graph.module.embedding.positions is not None)
        layered = all(layer.norm == "layer" for layer in graph.stack.layers)
        rules = {"skip_layer_norm": skip_norms(graph.stack, summed) if layered else 0}
        if role == "encoder":
            rules["multi_head_attention"] = layers
        else:
            rules["group_query_attention"] = layers
            if graph.stack.cross:
                rules["multi_head_attention"] = layers
        result[role] = rules
    return result
