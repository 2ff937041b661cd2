"""The two graphs of an encoder-decoder of transformers: the class's own code, cached attention of ours, keys and values of sources shared.

The encoder gives the keys and values of every cross-attention; the decoder is one graph for prefill and steps, as that of a language model,
whose cross-attention reads them for all rows of a source. See onnxport.runtime.bundle.interface.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onnxport.errors import CheckpointError, one_line
from onnxport.export.attention_interface.attention import LayerShape, Step, attend, cached_attention, handing_cache, running, running_step
from onnxport.export.attention_interface.decoder import logits_at, name_caches, own_names, present_shapes, vocabulary
from onnxport.export.attention_interface.experts import dense
from onnxport.export.attention_interface.neighbours import neighbours_in_blocks
from onnxport.export.attention_interface.own_attention import Call, Scores, Watch, found_scores, watched_cache
from onnxport.export.attention_interface.positions import positions_of_rows
from onnxport.export.attention_interface.rotation import fixed_rotation
from onnxport.export.attention_interface.untraced import Untraced
from onnxport.export.attention_interface.with_source.cross_calls import CrossCall, recorded
from onnxport.export.attention_interface.with_source.predict_streams import first_stream
from onnxport.export.attention_interface.with_source.source_caches import WatchedLayer, both_caches
from onnxport.export.trace.tracer import Shapes, trace
from onnxport.export.transformers_library import encoder_output
from onnxport.runtime.bundle.interface import (
    CROSS,
    INPUT_IDS,
    LOGITS,
    LOGITS_INDEX,
    PAST,
    POSITION_IDS,
    QUERY_LENGTHS,
    SEQLENS,
    SOURCE_MASK,
    TOTAL_LENGTH,
    cache_names,
)

NAME = "onnxport_cached_and_cross"
MASKED_SCORE = float(torch.finfo(torch.float32).min)  # see onnxport.quantize.fusion.attention.multi_head_attention
SOURCES, SOURCE, ROWS, LENGTH, BEFORE = 3, 7, 6, 4, 5  # sizes of the example: two rows a source, else no two alike


@dataclass(frozen=True)
class CrossShape:
    """Keys and values of a source in one cross-attention: heads of its queries, sizes of a key and a value."""

    heads: int
    key_size: int
    value_size: int


@dataclass(frozen=True, eq=False)
class SourceCalls:
    """The cross-attentions of a run, by layer, and the memory that they saw: called alone they make the same of a memory."""

    calls: dict[int, CrossCall]
    seen: Tensor


@dataclass(frozen=True)
class DecoderShapes:
    """What the decoder keeps of its own positions, and what it reads of a source, in the order of the calls. calls: those of its
    cross-attentions, None where they cannot be called alone. scores: of each call of the class's own attention, None through the interface.
    """

    own: list[LayerShape]
    cross: list[CrossShape]
    calls: SourceCalls | None = None
    scores: tuple[Scores, ...] | None = None

    @property
    def windows(self) -> bool:
        """Whether some cache holds a window of positions only."""
        return any(shape.window is not None for shape in self.own)


@dataclass
class CrossStep(Step):
    """A step of a decoder with a source. cross: keys and values [sources, heads, source, size] of each cross-attention, in turn;
    source_mask: int32 [sources, source]; found: the cross-attentions that were called, by place."""

    cross: Sequence[Tensor] = ()
    source_mask: Tensor | None = None
    found: dict[int, CrossShape] = field(default_factory=dict)


def attend_both(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any) -> Any:
    """As `attend`, and for keys of a source attention over all of it: query [rows, heads, length, size] → [rows, length, heads, size]."""
    step = running_step()
    assert isinstance(step, CrossStep), "a decoder with a source runs"
    place = next((i for i, keys in enumerate(step.cross[::2]) if keys is key), None)
    if place is None:
        return attend(module, query, key, value, attention_mask, **options)
    return _attend_source(step, place, query, **options), None


def _attend_source(step: CrossStep, place: int, query: Tensor, **options: Any) -> Tensor:
    """Cross-attention; rows of one source are queries of one row."""
    assert step.source_mask is not None
    key, value = step.cross[2 * place : 2 * place + 2]
    step.found[place] = CrossShape(query.shape[1], key.shape[-1], value.shape[-1])
    rows, heads, length, size = query.shape
    sources, source_heads, _, width = value.shape
    scale = options.get("scaling")
    scale = float(size**-0.5 if scale is None else scale)
    together = query.transpose(1, 2).reshape(sources, -1, heads * size)
    if options.get("s_aux") is not None:
        raise CheckpointError("cross-attention with sinks, expected none")
    if not step.past or options.get("softcap"):  # a run for shapes, or scores that the kernel does not bound
        key, value = (x if source_heads == heads else x.repeat_interleave(heads // source_heads, 1) for x in (key, value))
        scores = torch.matmul(together.view(sources, -1, heads, size).transpose(1, 2), key.transpose(2, 3)) * scale
        if cap := options.get("softcap"):
            scores = torch.tanh(scores / cap) * cap
        seen = (step.source_mask != 0)[:, None, None, :]
        answer = torch.matmul(F.softmax(torch.where(seen, scores, MASKED_SCORE), -1), value).transpose(1, 2)
        return answer.reshape(rows, length, heads, width)
    answer = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        [together, key, value, None, step.source_mask],
        {"num_heads": heads, "scale": scale, "mask_filter_value": MASKED_SCORE},
        dtype=query.dtype,
        shape=[sources, together.shape[1], heads * width],
        version=1,
    )
    return answer.reshape(rows, length, heads, width)


class Decoder:
    """A model's decoder as its class calls it, behind a memory of its encoder."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.takes_positions = f"decoder_{POSITION_IDS}" in inspect.signature(model.forward).parameters

    def __call__(self, ids: Tensor, memory: Tensor, mask: Tensor | None, cache: Any, positions: Tensor | None) -> Any:
        """ids int64 [rows, length], memory [rows, source, hidden], mask [rows, source] → the class's own answer."""
        options = {f"decoder_{POSITION_IDS}": positions} if self.takes_positions and positions is not None else {}
        return self.model(
            encoder_outputs=encoder_output(memory),
            attention_mask=mask,
            decoder_input_ids=ids,
            decoder_attention_mask=torch.ones_like(ids),
            cache=cache,
            use_cache=True,
            **options,
        )


class SourceEncoder(nn.Module):
    """Graph `encoder`: the class's encoder, and what its decoder's cross-attentions make of the memory.

    keys: the mask is handed to the encoder as one that is finished, bool [batch, 1, 1, source]. heads: of each cross-attention's queries.
    calls: of the cross-attentions; without them the whole decoder runs once, and what is not of use to them is dead.
    """

    def __init__(self, model: Any, keys: bool, heads: list[int] | None = None, calls: SourceCalls | None = None) -> None:
        super().__init__()
        self.model, self.keys, self.heads, self.calls = model, keys, heads, calls

    def memory(self, input_ids: Tensor, source_mask: Tensor) -> Tensor:
        """int64 and int32 [batch, source] → [batch, source, hidden]."""
        mask = (source_mask != 0)[:, None, None, :] if self.keys else source_mask.long()
        with Untraced(None):
            memory: Tensor = self.model.get_encoder()(input_ids=input_ids, attention_mask=mask).last_hidden_state
        return memory

    def forward(self, input_ids: Tensor, source_mask: Tensor) -> tuple[Tensor, ...]:
        """int64 and int32 [batch, source] → key and value [batch, heads, source, size] of each cross-attention, in turn."""
        return self.cross(self.memory(input_ids, source_mask), input_ids, source_mask)

    def cross(self, memory: Tensor, input_ids: Tensor, source_mask: Tensor) -> tuple[Tensor, ...]:
        """What cross-attentions make of a memory; the rest as in `forward`."""
        nothing = torch.zeros(0)
        cache = both_caches(handing_cache(Step([], nothing, nothing, None)), ())
        if self.calls is None:
            Decoder(self.model)(input_ids[:, :1], memory, source_mask.long(), cache, None)
        else:
            for call in self.calls.calls.values():
                call.again(self.calls.seen, memory, cache)
        found = cache.cross_attention_cache.found
        pairs = [found[place] for place in sorted(found)]
        if self.heads is None:
            return tuple(tensor for pair in pairs for tensor in pair)
        return tuple(_widened(x, heads) for pair, heads in zip(pairs, self.heads, strict=True) for x in pair)


def _widened(x: Tensor, heads: int) -> Tensor:
    """[batch, kv_heads, source, size] → [batch, heads, source, size]."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)


class StepDecoder(nn.Module):
    """Graph `decoder`: ids, caches, and keys and values of sources → logits of one position a row, and the caches.

    scores: see DecoderShapes.
    """

    def __init__(self, model: Any, scores: Sequence[Scores] | None = None) -> None:
        super().__init__()
        self.model, self.decoder, self.scores = model, Decoder(model), scores

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        logits_index: Tensor,
        lengths: Tensor,
        total: Tensor,
        past: Sequence[Tensor],
        source_mask: Tensor,
        cross: Sequence[Tensor],
        real: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """→ logits [rows, vocabulary] at `logits_index`, and the present keys and values in the order of `past`."""
        step = CrossStep(past, lengths, total, real, position_ids, cross=cross, source_mask=source_mask)
        with positions_of_rows(self.model):
            return (self.logits(step, input_ids, logits_index)[0], *step.present)

    def logits(self, step: CrossStep, input_ids: Tensor, logits_index: Tensor, product: float | None = None) -> tuple[Tensor, list[Call]]:
        """The class's own forward for one step, where only one position of a row goes through the head; and the calls of its own attention.

        product: of a query and a key, in a run that finds scores.
        """
        rows, length = input_ids.shape[0], step.cross[0].shape[2]
        memory = torch.zeros(rows, length, _memory_size(self.model))  # nothing but its shape is read
        with running(step), ExitStack() as stack:
            if self.scores is None and product is None:
                watch, cache = None, both_caches(handing_cache(step), step.cross)
            else:
                cross = partial(_attend_source, step)
                watch = Watch(self.scores, product or 0.0, cross=lambda place, query, scale: cross(place, query, scaling=scale))
                stack.enter_context(watch)
                cache = both_caches(
                    watched_cache(step, watch), step.cross, lambda place, key, value: WatchedLayer(watch, place, key, value, rows)
                )
            found = logits_at(self.model, logits_index, lambda: self.decoder(input_ids, memory, None, cache, step.positions))
        return found, [] if watch is None else watch.calls


def _memory_size(model: Any) -> int:
    """Width of what the encoder gives."""
    of_encoder = getattr(model.get_encoder(), "config", None)
    return int(getattr(of_encoder, "hidden_size", None) or model.config.hidden_size)


@contextmanager
def _cached(model: Any) -> Iterator[None]:
    """The decoder's attention is ours, until the block is left."""
    with cached_attention(model, NAME, attend_both), fixed_rotation(model), first_stream(model):
        yield


@contextmanager
def _encoding(model: Any) -> Iterator[None]:
    """The class's own attention in standard operators, until the block is left."""
    with dense(model), fixed_rotation(model), neighbours_in_blocks(model):
        yield


def find_shapes(model: Any) -> DecoderShapes:
    """What the decoder keeps and reads, and how its attention becomes ours, by trying. CheckpointError: it cannot."""
    name = type(model).__name__
    ids, mask = torch.ones(2, 3, dtype=torch.long), torch.ones(2, 4, dtype=torch.int32)
    try:
        with torch.no_grad(), _encoding(model):
            cross, calls = _source_calls(model, torch.ones(2, 4, dtype=torch.long), mask)
    except CheckpointError:
        raise
    except Exception as error:  # the class's own code raises what it likes
        raise CheckpointError(f"{name} does not run with a cache of ours ({type(error).__name__}: {one_line(error, 200)})") from error
    reasons = []
    for find in (lambda *_: None, _scores):
        try:
            scores = find(model, ids, cross, mask)
            step, _ = _first_run(model, ids, cross, mask, scores)
            if step.shapes and step.found and len(step.found) == len(cross) // 2:
                return DecoderShapes(step.shapes, [step.found[place] for place in sorted(step.found)], calls, scores)
            reasons.append("it does not come through transformers' attention interface")
        except CheckpointError as error:
            reasons.append(str(error))
        except Exception as error:  # the class's own code raises what it likes
            reasons.append(f"it does not run with a cache of ours ({type(error).__name__}: {one_line(error, 200)})")
    raise CheckpointError(f"the attention of {name}'s decoder cannot be replaced: {'; '.join(dict.fromkeys(reasons))}")


def _first_run(
    model: Any, ids: Tensor, cross: Sequence[Tensor], mask: Tensor, scores: Sequence[Scores] | None = None, product: float | None = None
) -> tuple[CrossStep, list[Call]]:
    """A step of whole rows: what it leaves, and the calls of the class's own attention."""
    rows, length = ids.shape
    last = torch.full((rows,), length - 1, dtype=torch.int32)
    step = CrossStep([], last, torch.tensor(length, dtype=torch.int32), last + 1, cross=cross, source_mask=mask)
    with torch.no_grad(), _cached(model):
        _, calls = StepDecoder(model, scores).logits(step, ids, torch.full((rows,), length - 1), product)
    return step, calls


def _scores(model: Any, ids: Tensor, cross: Sequence[Tensor], mask: Tensor) -> tuple[Scores, ...]:
    """Those of a class's own attention, of each call."""
    return tuple(found_scores([_first_run(model, ids, cross, mask, product=product)[1] for product in (0.0, 1.0, 2.0)]))


def _source_calls(model: Any, ids: Tensor, mask: Tensor) -> tuple[tuple[Tensor, ...], SourceCalls | None]:
    """Keys and values of a source by one run of the decoder, and the calls that make the same alone, where they do."""
    encoder = SourceEncoder(model, keys=False)
    memory = encoder.memory(ids, mask)
    with recorded(model) as calls:
        cross = encoder.cross(memory, ids, mask)
    found, other = SourceCalls(calls, memory), memory.flip(0, 1) + 1
    try:
        wanted = encoder.cross(other, ids, mask)
        alone = SourceEncoder(model, keys=False, calls=found).cross(other, ids, mask)
        same = all(torch.equal(one, two) for one, two in zip(wanted, alone, strict=True))
    except Exception:  # whatever the class's own code raises
        same = False
    return cross, found if same else None


def trace_source_encoder(model: Any, shapes: DecoderShapes, opset: int) -> ir.Model:
    """`input_ids`, `source_mask` [batch, source] → keys and values of every cross-attention. CheckpointError: torch cannot trace it."""
    axes = {0: "batch", 1: "source"}
    mask = torch.ones(SOURCES, SOURCE, dtype=torch.int32)
    mask[1, 4:] = 0
    inputs = {INPUT_IDS: torch.ones(SOURCES, SOURCE, dtype=torch.long), SOURCE_MASK: mask}
    outputs: Shapes = {}
    for i, shape in enumerate(shapes.cross):
        names = cache_names(CROSS, len(shapes.cross))[2 * i : 2 * i + 2]
        outputs |= {
            name: ("batch", shape.heads, "source", size) for name, size in zip(names, (shape.key_size, shape.value_size), strict=True)
        }
    with _encoding(model):
        call = SourceEncoder(model, _takes_keys(model, inputs[INPUT_IDS], mask), [shape.heads for shape in shapes.cross], shapes.calls)
        return trace(call, inputs, dict.fromkeys(inputs, axes), list(inputs), outputs, own_names(model), opset, "encoder")


def _takes_keys(model: Any, ids: Tensor, mask: Tensor) -> bool:
    """Whether the encoder answers alike with a finished mask, which fused kernels know; a window would be lost with it."""
    config = getattr(model.get_encoder(), "config", model.config)
    if getattr(config, "sliding_window", None):
        return False
    try:
        with torch.no_grad():
            one, other = (SourceEncoder(model, keys).memory(ids, mask)[mask != 0] for keys in (False, True))
        return bool(torch.allclose(one, other, atol=1e-5 * float(one.abs().max())))
    except Exception:  # whatever the class's own code raises
        return False


def trace_decoder(model: Any, shapes: DecoderShapes, opset: int) -> ir.Model:
    """One graph for prefill and step, fused already as far as attention goes. CheckpointError: torch cannot trace the class."""
    layers = len(shapes.own)
    past = [torch.zeros(ROWS, shape.kv_heads, BEFORE, shape.head_size) for shape in shapes.own for _ in range(2)]
    cross = [torch.zeros(SOURCES, one.heads, SOURCE, size) for one in shapes.cross for size in (one.key_size, one.value_size)]
    lengths = torch.full((ROWS,), BEFORE + LENGTH - 1, dtype=torch.int32)
    by_row, by_token = {0: "batch"}, {0: "batch", 1: "length"}
    rows: list[tuple[str, str, Any, Any]] = [  # parameter, input, example, axes
        (INPUT_IDS, INPUT_IDS, torch.ones(ROWS, LENGTH, dtype=torch.long), by_token),
        (POSITION_IDS, POSITION_IDS, torch.arange(BEFORE, BEFORE + LENGTH).expand(ROWS, LENGTH).contiguous(), by_token),
        (LOGITS_INDEX, LOGITS_INDEX, torch.zeros(ROWS, dtype=torch.long), by_row),
        ("lengths", SEQLENS, lengths, by_row),
        ("total", TOTAL_LENGTH, torch.tensor(BEFORE + LENGTH, dtype=torch.int32), {}),
        ("past", PAST, past, [{0: "batch", 2: "past"}] * len(past)),
        (SOURCE_MASK, SOURCE_MASK, torch.ones(SOURCES, SOURCE, dtype=torch.int32), {0: "source_batch", 1: "source"}),
        ("cross", CROSS, cross, [{0: "source_batch", 2: "source"}] * len(cross)),
    ]
    if shapes.windows:  # only then may some of a row's new ids be padding behind a past
        rows.append(("real", QUERY_LENGTHS, torch.full((ROWS,), LENGTH, dtype=torch.int32), by_row))
    counts = {PAST: layers, CROSS: len(shapes.cross)}
    names = [name for _, one, _, _ in rows for name in (cache_names(one, counts[one]) if one in counts else [one])]
    outputs: Shapes = {LOGITS: ("batch", vocabulary(model)), **present_shapes(shapes.own)}
    inputs, dynamic = {key: value for key, _, value, _ in rows}, {key: axes for key, _, _, axes in rows}
    with _cached(model):
        graph = trace(StepDecoder(model, shapes.scores), inputs, dynamic, names, outputs, own_names(model), opset, "decoder")
    name_caches(graph.graph, shapes.own)
    return graph
