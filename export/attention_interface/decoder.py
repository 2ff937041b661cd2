"""One step graph of a language model of transformers: the class's own code, our cached attention, prefill and steps alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from onnxport.errors import CheckpointError
from onnxport.export.attention_interface.attention import LayerShape, Step
from onnxport.export.attention_interface.ways import Way
from onnxport.export.deferred import weight_shape
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

    def __init__(self, model: Any, way: Way) -> None:
        super().__init__()
        self.model, self.way = model, way

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
        logits = logits_at(self.model, logits_index, lambda: self.way.run(self.model, step, input_ids, position_ids))
        return (logits, *step.present)


def logits_at(model: Any, index: Tensor, run: Callable[[], Any]) -> Tensor:
    """Logits [rows, vocabulary] of a run of the class, at position `index` of each row: only these go through the head.

    CheckpointError: the class makes something else of them.
    """
    rows = torch.arange(index.shape[0])

    def chosen(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = inputs[0]  # of two dimensions: a tied table stays one tensor, read by Gemm; ProphetNet's has streams in between
        return (x[rows, index] if x.dim() == 3 else x[rows, :, index], *inputs[1:])

    hook = _head(model).register_forward_pre_hook(chosen)
    try:
        logits: Tensor = run().logits
    finally:
        hook.remove()
    if logits.dim() != 2:
        raise CheckpointError(f"{type(model).__name__} gives logits of {logits.dim()} dimensions of one position a row, expected 2")
    return logits


def _head(model: Any) -> nn.Module:
    """What makes logits. FSMT's class names its table of tokens: there it is the product of the same shape."""
    named: nn.Module = model.get_output_embeddings()
    if not isinstance(named, nn.Embedding):
        return named
    shape = weight_shape(named)
    return next(module for module in reversed([*model.modules()]) if isinstance(module, nn.Linear) and weight_shape(module) == shape)


def trace_decoder(model: Any, way: Way, opset: int) -> ir.Model:
    """One graph for prefill and step, fused already as far as attention goes. CheckpointError: torch cannot trace the class."""
    shapes = way.shapes
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
    with way.prepared(model):
        graph = trace(StepDecoder(model, way), inputs, dynamic, names, outputs, own_names(model), opset, "decoder")
    name_caches(graph.graph, shapes)
    return graph


def own_names(model: Any) -> Names:
    """Names of tensors and modules as the class has them, where it is traced as part `model` of something."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    modules = {"model": ""} | {f"model.{name}": name for name, _ in model.named_modules() if name}
    return Names({f"model.{name}": name for name, _ in tensors}, modules)


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
    return int(weight_shape(model.get_output_embeddings())[0])
