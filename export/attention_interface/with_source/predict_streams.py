"""ProphetNet's decoder, which has streams: one of the tokens, and for each of the next n tokens one that predicts it.

Logits of the next token come from the first of the predicting streams, and no stream reads another but that of the tokens, so that the
others are left out. A query of the predicting stream reads the cached keys of the tokens and one key of its own at its own position. Both
streams are heads of one cached attention: the key of its own stands for the kernel's sink, a score without a value, and is given back what
the cached keys leave of the weights, which a column of ones beside the values tells.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onnxport.export.attention_interface.attention import cached_node, running_step
from onnxport.export.attention_interface.reference import Rule

NEVER = -1e30  # a sink that takes no weight


def has_streams(decoder: nn.Module) -> bool:
    """Whether it is such a decoder."""
    return hasattr(decoder, "ngram_embeddings")


@contextmanager
def first_stream(model: Any) -> Iterator[None]:
    """A model with such a decoder has the first predicting stream alone, over a cache of ours, until the block is left."""
    decoder = next((module for module in model.modules() if has_streams(module)), None)
    if decoder is None:
        yield
        return
    attention = [layer.self_attn for layer in decoder.layers]
    ours: list[tuple[Any, dict[str, Any]]] = [
        (model.config, {"ngram": 1}),
        (decoder, {"ngram": 1, "forward": partial(_from_begin, decoder.forward), "compute_buffered_relative_buckets": _none_twice}),
        (decoder, {"prepare_attention_mask": _none, "prepare_predict_attention_mask": _none}),
        (decoder.position_embeddings, {"forward": partial(_positions, decoder.position_embeddings)}),
        *[(module, {"ngram": 1, "forward": partial(_attend, module, decoder.max_target_positions)}) for module in attention],
    ]
    before = [(owner, name, vars(owner).get(name)) for owner, values in ours for name in values]
    try:
        for owner, values in ours:
            for name, value in values.items():
                setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            if value is None:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


def _none(*_: Any, **__: Any) -> None:
    """A mask: the kernel has it."""


def _none_twice(*_: Any, **__: Any) -> tuple[None, None]:
    """Buckets of distances: attention finds them by the positions of each row."""
    return None, None


def _from_begin(forward: Any, *args: Any, cache: Any = None, **kwargs: Any) -> Any:
    """The decoder's own forward, in which a cache is no reason to read one token alone."""
    cache.self_attention_cache.get_seq_length = lambda *_, **__: 0
    return forward(*args, cache=cache, **kwargs)


def _entries(rows: Any, length: Any) -> Tensor:
    """Positions of the new ids, int64 [rows, length]."""
    found = running_step().positions
    return torch.arange(length).expand(rows, length) if found is None else found


def _positions(table: Any, shape: Any, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    """What the table of positions gives, and the numbers of positions in it: they begin behind the padding id."""
    numbers = _entries(*shape) + 1 + table.padding_idx
    return F.embedding(numbers, table.weight), numbers


def _attend(module: Any, longest: int, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None, None]:
    """Attention of both streams: hidden [rows, 2 * length, width], tokens before predictions → the same shape."""
    rows, both, width = hidden_states.shape
    heads, size = module.num_attn_heads, module.head_dim
    length = both // 2
    query = _split(module.query_proj(hidden_states) / size**0.5, heads)
    key, value = (_split(project(hidden_states), heads) for project in (module.key_proj, module.value_proj))
    by_bucket = _by_bucket(module, hidden_states, rows, both)
    (query, predicting), (key, own), (value, given), (main, ahead) = (
        (x[:, :, :length], x[:, :, length:]) for x in (query, key, value, by_bucket)
    )
    score = (predicting * own).sum(-1, keepdim=True) + ahead[..., :1]  # of the key of its own, at distance 0
    step = running_step()
    distance = _entries(rows, length)[:, :, None] - torch.arange(step.total.item())
    buckets = _buckets(module, longest)
    biases = [_bias(main, buckets, distance), _bias(ahead, buckets, distance + 1) - score]
    rule = Rule(1.0, bias=_in_turn(biases), sinks=torch.tensor([NEVER, 0.0]).repeat(heads))
    counted = torch.cat([value, torch.ones_like(value[..., :1])], -1)
    answer = cached_node(_in_turn([query, predicting]), key, counted, rule).transpose(1, 2)  # [rows, 2 * heads, length, size + 1]
    tokens, predictions = answer[:, 0::2], answer[:, 1::2]
    predictions = predictions[..., :size] + (1 - predictions[..., size:]) * given
    streams = torch.cat([tokens[..., :size], predictions], 2).transpose(1, 2).reshape(rows, both, width)
    return module.out_proj(streams), None, None


def _split(x: Tensor, heads: int) -> Tensor:
    """[rows, length, width] → [rows, heads, length, size]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _by_bucket(module: Any, hidden_states: Tensor, rows: Any, length: Any) -> Tensor:
    """What each bucket of distances adds to a query's scores: [rows, heads, length, buckets]."""
    return module.relative_pos_embeddings(hidden_states).view(rows, length, module.num_buckets, -1).permute(0, 3, 1, 2)


def _buckets(module: Any, longest: int) -> Tensor:
    """The bucket of every distance, by the class's own function: int64 [longest + 1]."""
    from transformers.models.prophetnet import modeling_prophetnet

    own: Any = modeling_prophetnet.compute_relative_buckets
    found: Tensor = own(module.num_buckets, module.relative_max_distance, -torch.arange(longest + 1))
    return found.long()


def _bias(by_bucket: Tensor, buckets: Tensor, distance: Tensor) -> Tensor:
    """[rows, heads, length, buckets], distances int64 [rows, length, total] → [rows, heads, length, total]."""
    index = buckets[distance.clamp(0, len(buckets) - 1)][:, None]
    return by_bucket.gather(3, index.expand(*by_bucket.shape[:3], index.shape[-1]))


def _in_turn(pair: list[Tensor]) -> Tensor:
    """Two of [rows, heads, ...] → [rows, 2 * heads, ...], one head of each in turn: they share a head of keys."""
    return torch.stack(pair, 2).flatten(1, 2)
