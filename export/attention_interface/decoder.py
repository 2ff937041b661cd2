"""One step graph of a language model of transformers: the class's own code, our cached attention, prefill and steps alike."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from onnxport.errors import CheckpointError, one_line
from onnxport.export.attention_interface.attention import LayerShape, Step, cached_attention, handing_cache, running
from onnxport.export.trace.tracer import Names, Shapes, trace
from onnxport.graph.edit import is_op
from onnxport.runtime.bundle.interface import (
    INPUT_IDS,
    LOGITS,
    LOGITS_INDEX,
    PAST,
    POSITION_IDS,
    PRESENT,
    QUERY_LENGTHS,
    SEQLENS,
    TOTAL_LENGTH,
    cache_names,
)

ROWS, LENGTH, BEFORE = 3, 5, 4  # sizes of the example: no two alike


class StepDecoder(nn.Module):
    """A language model as a function of ids and its cache; see onnxport.runtime.bundle.interface."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        reads = inspect.signature(model.forward).parameters
        self.takes_positions = POSITION_IDS in reads
        names = [name for name in ("cache", "past_key_values") if name in reads]
        if not names:
            raise CheckpointError(f"{type(model).__name__} takes no cache")
        self.cache_name: str = names[0]

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        logits_index: Tensor,
        lengths: Tensor,
        total: Tensor,
        real: Tensor,
        past: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        """→ logits [rows, vocabulary] at `logits_index`, and the present keys and values in the order of `past`."""
        step = Step(past, lengths, total, real)
        return (self.logits(step, input_ids, position_ids, logits_index), *step.present)

    def logits(self, step: Step, input_ids: Tensor, position_ids: Tensor, logits_index: Tensor) -> Tensor:
        """The class's own forward for one step; only one position of a row goes through the head."""
        rows = torch.arange(input_ids.shape[0])

        def chosen(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (inputs[0][rows, logits_index], *inputs[1:])  # of two dimensions: a tied table stays one tensor, read by Gemm

        options = {POSITION_IDS: position_ids} if self.takes_positions else {}
        hook = self.model.get_output_embeddings().register_forward_pre_hook(chosen)
        try:
            with running(step):
                found = self.model(input_ids=input_ids, use_cache=True, **{self.cache_name: handing_cache(step)}, **options)
        finally:
            hook.remove()
        logits: Tensor = found.logits
        if logits.dim() != 2:
            raise CheckpointError(
                f"{type(self.model).__name__} gives logits of {logits.dim()} dimensions of one position a row, expected 2"
            )
        return logits


def find_shapes(model: Any) -> list[LayerShape]:
    """The cache of each call of attention, by one run. CheckpointError: its attention does not come through the attention interface."""
    decoder = StepDecoder(model)
    ids, lengths = torch.ones(2, 3, dtype=torch.long), torch.full((2,), 2, dtype=torch.int32)
    step = Step([], lengths, torch.tensor(3, dtype=torch.int32), lengths + 1)
    positions = torch.arange(3).expand(2, 3)
    with torch.no_grad(), cached_attention(model), fixed_rotation(model):
        try:
            decoder.logits(step, ids, positions, torch.full((2,), 2))
        except CheckpointError:
            raise
        except Exception as error:  # the class's own code raises what it likes
            raise CheckpointError(
                f"{type(model).__name__} does not run with a cache of ours ({type(error).__name__}: {one_line(error, 200)})"
            ) from error
    if step.asked and not decoder.takes_positions:
        raise CheckpointError(f"{type(model).__name__} counts positions by the length of its cache, expected position_ids for each row")
    if not step.shapes:
        raise CheckpointError(f"the attention of {type(model).__name__} does not come through transformers' attention interface")
    return step.shapes


def trace_decoder(model: Any, shapes: Sequence[LayerShape], opset: int) -> ir.Model:
    """One graph for prefill and step, fused already as far as attention goes. CheckpointError: torch cannot trace the class."""
    decoder = StepDecoder(model)
    layers = len(shapes)
    past = [torch.zeros(ROWS, shape.kv_heads, BEFORE, shape.head_size) for shape in shapes for _ in range(2)]
    lengths = torch.full((ROWS,), BEFORE + LENGTH - 1, dtype=torch.int32)
    inputs: dict[str, Any] = {
        INPUT_IDS: torch.ones(ROWS, LENGTH, dtype=torch.long),
        POSITION_IDS: torch.arange(BEFORE, BEFORE + LENGTH).expand(ROWS, LENGTH).contiguous(),
        LOGITS_INDEX: torch.zeros(ROWS, dtype=torch.long),
        "lengths": lengths,
        "total": torch.tensor(BEFORE + LENGTH, dtype=torch.int32),
        "real": torch.full((ROWS,), LENGTH, dtype=torch.int32),
        "past": past,
    }
    by_row = {0: "batch"}
    dynamic: dict[str, Any] = {
        INPUT_IDS: {0: "batch", 1: "length"},
        POSITION_IDS: {0: "batch", 1: "length"},
        LOGITS_INDEX: by_row,
        "lengths": by_row,
        "total": {},
        "real": by_row,
        "past": [{0: "batch", 2: "past"}] * len(past),
    }
    names = [INPUT_IDS, POSITION_IDS, LOGITS_INDEX, SEQLENS, TOTAL_LENGTH, QUERY_LENGTHS, *cache_names(PAST, layers)]
    outputs: Shapes = {LOGITS: ("batch", vocabulary(model)), **present_shapes(shapes)}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    parameters = {f"model.{name}": name for name, _ in tensors}
    modules = {"model": ""} | {f"model.{name}": name for name, _ in model.named_modules() if name}
    with cached_attention(model), fixed_rotation(model):
        graph = trace(decoder, inputs, dynamic, names, outputs, Names(parameters, modules), opset, "decoder")
    name_caches(graph.graph, shapes)
    return graph


def _capacity(shape: LayerShape) -> str:
    return "capacity" if shape.window is None else f"window_{shape.window}"


def present_shapes(shapes: Sequence[LayerShape]) -> Shapes:
    """Names and shapes of the present keys and values of each call."""
    names = cache_names(PRESENT, len(shapes))
    return {name: ("batch", shape.kv_heads, _capacity(shape), shape.head_size) for name, shape in zip(names, _twice(shapes), strict=True)}


def _twice(shapes: Sequence[LayerShape]) -> list[LayerShape]:
    return [shape for shape in shapes for _ in range(2)]


def name_caches(graph: ir.Graph, shapes: Sequence[LayerShape]) -> None:
    """Past and present are one buffer each: they have the same shape. What the class does not read is an input all the same."""
    layers = len(shapes)
    values = {value.name: value for value in graph.inputs}
    for name, shape in zip(cache_names(PAST, layers), _twice(shapes), strict=True):
        values[name].shape = ir.Shape(["batch", shape.kv_heads, _capacity(shape), shape.head_size])
    assert sum(is_op(node, "GroupQueryAttention", "com.microsoft") for node in graph) == layers, "each call of attention is a node"


def vocabulary(model: Any) -> int:
    """Width of the logits."""
    return int(model.get_output_embeddings().weight.shape[0])


@contextmanager
def fixed_rotation(model: Any) -> Iterator[None]:
    """Rotary tables of kinds that change with a text's length stay those of a text within the original length, see `longest`."""
    changed = [(m, m.rope_type) for m in model.modules() if isinstance(getattr(m, "rope_type", None), str) and _varies(m.rope_type)]
    for module, _ in changed:
        module.rope_type = "default"
    try:
        yield
    finally:
        for module, kind in changed:
            module.rope_type = kind


def _varies(kind: str) -> bool:
    return "dynamic" in kind or kind == "longrope"
