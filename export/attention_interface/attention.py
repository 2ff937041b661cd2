"""A cached attention function for transformers' attention interface, and the cache object that goes with it.

The function gives the node GroupQueryAttention itself: window, soft cap, sinks and scale are its arguments. The cache hands new keys and
values on as they are, since the node joins them to the past.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxport.errors import CheckpointError, one_line
from onnxport.export.attention_interface.experts import dense
from onnxport.export.attention_interface.implementations import using
from onnxport.export.attention_interface.masks import Mask
from onnxport.export.attention_interface.reference import Cached, Rule, group_query_attention
from onnxport.export.transformers_library import import_transformers

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "onnxport_cached"
HEAD_MULTIPLE = 8  # the kernel's head sizes
BIAS, SINK, LENGTHS = 10, 11, 16  # places of the kernel's inputs attention_bias, head_sink and query_seqlens


@dataclass(frozen=True)
class LayerShape:
    """The cache of one call of attention: heads of keys and values, their padded size, and the positions that it sees, None for all.

    biased: its mask is none of the kernel's, and a bias of scores.
    """

    kv_heads: int
    head_size: int
    window: int | None
    biased: bool = False


@dataclass
class Step:
    """One run of a decoder: what its attention reads, and what it leaves.

    past: keys and values [rows, kv_heads, past, head_size] in the order in which attention is called; empty in a run that only finds
    shapes. lengths, total, real: the kernel's `seqlens_k` int32 [rows], `total_sequence_length` int32 [] and `query_seqlens` int32 [rows],
    None where no row is both behind a past and padded. positions: of the new ids, int64 [rows, length]; None where the class gets them by
    itself; at: the same, always. known: shapes found by a run before. masks: those asked for, by the identity of their marks. present,
    shapes: of each call, in order; constants: see Untraced. tries: real answers are computed here, and nothing is traced.
    """

    past: Sequence[Tensor]
    lengths: Tensor
    total: Tensor
    real: Tensor | None
    positions: Tensor | None = None
    at: Tensor | None = None
    known: Sequence[LayerShape] = ()
    masks: dict[int, tuple[Tensor, Mask]] = field(default_factory=dict)
    present: list[Tensor] = field(default_factory=list)
    shapes: list[LayerShape] = field(default_factory=list)
    constants: Sequence[Any] = ()
    tries: bool = False


_RUNNING: ContextVar[Step] = ContextVar("onnxport_step")


def running_step() -> Step:
    """The step that runs now."""
    return _RUNNING.get()


@contextmanager
def running(step: Step) -> Iterator[None]:
    """The step whose attention is meant while the class runs."""
    token = _RUNNING.set(step)
    try:
        yield
    finally:
        _RUNNING.reset(token)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Cached attention, as transformers calls it: query [rows, heads, length, size], new key and value [rows, kv_heads, length, size]
    → [rows, length, heads, size of a value]. position_bias: added to scores, [rows, heads, length, total].

    Heads are padded with zeros to one size that the kernel takes: zeros add nothing to a score, nor to an answer.
    """
    step = _RUNNING.get()
    scale = float(query.shape[-1] ** -0.5 if scaling is None else scaling)
    window, biased = int(sliding_window) if sliding_window else None, False
    if attention_mask is not None:
        if (found := step.masks.get(id(attention_mask))) is None:
            raise CheckpointError("the class makes a mask of its own, expected one of transformers' functions of positions")
        mask = found[1]
        window, biased = _masked(step, mask)
        if biased:
            assert step.at is not None and position_bias is None
            position_bias = mask.bias(step.at, step.total.item()).expand(-1, query.shape[1], -1, -1)
    rule = Rule(scale, window, float(softcap) if softcap else None, position_bias, s_aux)
    return cached_node(query, key, value, rule, biased), None


def _masked(step: Step, mask: Mask) -> tuple[int | None, bool]:
    """The window of a mask, and whether it is a bias."""
    if not step.tries:
        shape = step.known[len(step.shapes)]
        return shape.window, shape.biased
    try:
        alone, window = mask.window()
    except (ValueError, RuntimeError, IndexError) as error:
        raise CheckpointError(f"its mask is no function of positions alone ({one_line(error)})") from error
    return (window, False) if alone else (None, True)


def cached_node(query: Tensor, key: Tensor, value: Tensor, rule: Rule, biased: bool = False) -> Tensor:
    """The kernel over the running step's next cache, or what it computes where the step only tries: shapes as in `attend`."""
    step = _RUNNING.get()
    rows, heads, length, size = query.shape
    kv_heads, width = key.shape[1], value.shape[-1]
    padded = -(-max(size, width) // HEAD_MULTIPLE) * HEAD_MULTIPLE
    query, key, value = (x if x.shape[-1] == padded else F.pad(x, [0, padded - x.shape[-1]]) for x in (query, key, value))
    number = len(step.shapes)
    step.shapes.append(LayerShape(kv_heads, padded, rule.window, biased))
    past = [*step.past[2 * number : 2 * number + 2]] or [query.new_zeros(rows, kv_heads, 0, padded)] * 2
    if step.tries:
        real = torch.full((rows,), length) if step.real is None else step.real
        answer, *present = group_query_attention(Cached(query, key, value, (past[0], past[1]), step.lengths, real), rule)
        step.present += present
        return answer.transpose(1, 2)[..., :width].contiguous()
    inputs: list[Tensor | None] = [_flat(query), _flat(key), _flat(value), *past, step.lengths, step.total]
    for place, extra in ((BIAS, rule.bias), (SINK, None if rule.sinks is None else rule.sinks.flatten()), (LENGTHS, step.real)):
        if extra is not None:
            inputs += [None] * (place - len(inputs)) + [extra]
    attributes: dict[str, Any] = {"num_heads": heads, "kv_num_heads": kv_heads, "scale": rule.scale}
    if rule.window:
        attributes |= {"local_window_size": rule.window, "sliding_window_cache": 1}
    if rule.softcap:
        attributes["softcap"] = rule.softcap
    kept = [rows, kv_heads, past[0].shape[2] + length, padded]
    answer, *present = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        inputs,
        attributes,
        dtypes=[query.dtype] * 3,
        shapes=[[rows, length, heads * padded], kept, kept],
        version=1,
    )
    step.present += present
    answer = answer.view(rows, length, heads, padded)
    return answer if width == padded else answer[..., :width]


def _flat(x: Tensor) -> Tensor:
    """[rows, heads, length, size] → [rows, length, heads * size]."""
    return x.transpose(1, 2).flatten(2)


class NoLayers(list[Any]):
    """Layers of a cache that keeps nothing: who asks for one keeps something else there than keys and values."""

    def __getitem__(self, _: Any) -> Any:
        """Refused."""
        raise CheckpointError(
            "some of its layers keep a state that is no keys and values (state spaces, linear attention, convolutions), expected attention"
        )


def handing_cache(step: Step) -> Any:
    """A cache of transformers that gives new keys and values back as they are."""
    from transformers import Cache

    class Handing(Cache):
        """What a class asks of its cache, for one step."""

        def __init__(self) -> None:
            super().__init__(layers=[])
            self.layers: Any = NoLayers()

        def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            """The new keys and values alone."""
            return key_states, value_states

        def update_indexer(self, *_: Any, **__: Any) -> Any:
            """Refused."""
            raise CheckpointError(
                "its layers choose the keys that they look at by an indexer with a cache of its own, expected attention to all"
            )

        def get_query_offset(self, *_: Any, **__: Any) -> int:
            """Positions of queries are known elsewhere."""
            return 0

        def get_seq_length(self, *_: Any, **__: Any) -> int | Tensor:
            """Positions before this step: of each row, int64 [rows, 1], where the step knows them."""
            if step.positions is not None:
                return step.positions[:, :1]
            return step.past[0].shape[2] if step.past else 0

        def get_mask_sizes(self, query_length: Any, *_: Any, **__: Any) -> tuple[int, int]:
            """Length and offset of the keys that a mask would have."""
            length = query_length if isinstance(query_length, int | torch.SymInt) else query_length.shape[0]
            return length + (step.past[0].shape[2] if step.past else 0), 0

    return Handing()


@contextmanager
def cached_attention(model: Any, name: str = NAME, function: Callable[..., Any] = attend) -> Iterator[None]:
    """The model's experts are ours, and its attention is `function`, which transformers knows by `name`, until the block is left."""
    import_transformers().AttentionInterface.register(name, function)
    with dense(model), using(model, "_attn_implementation_internal", name):
        yield
