"""Attention of a class's own: its products with keys and values are watched, and the kernel takes their place.

The class asks its cache for all keys and values. It gets the new ones back; the product of something with these keys finds the queries, and
that of something with these values becomes the kernel's answer. What stands between them is not traced but found before, by three runs in
which every product of a query with a key is 0, or 1, or 2: what the scores are multiplied with, what is added, and what is seen.
Keys and values of a source are watched alike; only shapes are read of what the class gets in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from onnxport.errors import CheckpointError
from onnxport.export.attention_interface.attention import cached_node, handing_cache, running_step
from onnxport.export.attention_interface.reference import Rule

PRODUCTS = {"matmul", "__matmul__", "__rmatmul__", "bmm", "baddbmm", "einsum"}
VIEWS = {
    "transpose", "permute", "reshape", "view", "contiguous", "to", "float", "type", "expand", "broadcast_to", "repeat_interleave",
    "unsqueeze", "flatten", "swapaxes", "clone", "__get__",
}  # fmt: skip
WHOLE = "scaled_dot_product_attention"
HIDDEN = -1e9  # a score below it is one of something that is not seen


@dataclass(frozen=True, eq=False)
class Scores:
    """What becomes of the product of a query and a key. slopes: of each head, by which what is added grows with the position of the key;
    table: what is added otherwise, [heads, positions]; both None for nothing."""

    scale: float
    window: int | None = None
    slopes: tuple[float, ...] | None = None
    table: Tensor | None = None

    def with_table(self, table: Tensor) -> Scores:
        """The same with another bias [heads, positions]."""
        slopes = table[:, -1] / (table.shape[1] - 1)
        if torch.allclose(table, slopes[:, None] * torch.arange(table.shape[1]), rtol=1e-5, atol=1e-6):
            return replace(self, slopes=tuple(slopes.tolist()), table=None)
        return replace(self, slopes=None, table=table)


@dataclass(eq=False)
class Call:
    """One call of attention: new keys and values [rows, kv_heads, length, size] as the cache got them, the queries as they are multiplied,
    the scores that became probabilities, and the window of a table of what is seen. source: place of the cross-attention, None for none.
    """

    key: Tensor
    value: Tensor
    query: Tensor | None = None
    scores: Tensor | None = None
    window: int | None = None
    source: int | None = None


class FirstScores(Exception):
    """The first scores are known."""


class Watch(TorchFunctionMode):
    """The products of a class's own attention, while it runs. known: of each call; None while they are found, by what products are then.

    first: the run ends, by `FirstScores`, where the first scores are known. cross: attention to a source, of its place, the queries
    [rows, heads, length, size] and the scale, → [rows, length, heads, size].
    """

    def __init__(
        self,
        known: Sequence[Scores] | None,
        product: float = 0.0,
        bands: dict[int, int] | None = None,
        first: bool = False,
        cross: Callable[[int, Tensor, float], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.known, self.product, self.bands, self.first, self.cross = known, product, bands or {}, first, cross
        self.calls: list[Call] = []
        self.kinds: dict[int, tuple[Tensor, str]] = {}  # by identity; the tensor is held, so that its identity is not taken by another

    def updated(self, key: Tensor, value: Tensor, source: int | None = None) -> tuple[Tensor, Tensor]:
        """A call begins: the class's cache got new keys and values, or is asked for those of a source."""
        self.calls.append(Call(key, value, source=source))
        self.kinds = {}
        key, value = key.view_as(key), value.view_as(value)  # the class may still hold the tensors themselves
        self._mark(key, "key")
        self._mark(value, "value")
        return key, value

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As torch asks it for every function."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in PRODUCTS or name == WHOLE:
            return self._product(func, name, args, kwargs)
        if self.calls and self.known is None:
            self._looked(name, args)
        found = func(*args, **kwargs)
        if name in VIEWS and args and isinstance(found, Tensor) and (kind := self._kind(args[0])):
            self._mark(found, kind)
        return found

    def _product(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        if name == WHOLE:
            if self._kind(args[1] if len(args) > 1 else kwargs.get("key")) != "key":
                return func(*args, **kwargs)
            return self._whole(*args, **kwargs)
        factors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)][-2:]
        kind = self._kind(factors[-1])
        if kind == "key":
            self.calls[-1].query = factors[0]
            if self.known is None:
                args, kwargs = self._asked(factors, args, kwargs)
        found = func(*args, **kwargs)
        if kind == "value" and self.known is not None:
            return self._answer().reshape(found.shape)
        return found

    def _asked(self, factors: list[Tensor], args: Any, kwargs: Any) -> tuple[list[Any], dict[str, Any]]:
        """Arguments whose queries hold one number and zeros, and whose keys hold ones."""
        query, key = torch.zeros_like(factors[0]), torch.ones_like(factors[1])
        query[..., 0] = self.product
        swap = {id(factors[0]): query, id(factors[1]): key}
        return [swap.get(id(x), x) for x in args], {name: swap.get(id(x), x) for name, x in kwargs.items()}

    def _whole(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **options: Any) -> Tensor:
        call, length = self.calls[-1], query.shape[-2]
        call.query = query
        if self.known is not None:
            return self._answer()
        scale = options.get("scale")
        scores = query.new_full((*query.shape[:-1], key.shape[-2]), self.product * (query.shape[-1] ** -0.5 if scale is None else scale))
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
        elif options.get("is_causal"):
            scores = scores.masked_fill(torch.ones(length, length).triu(1) > 0, -torch.inf)
        self._found(scores)
        return torch.zeros_like(query)

    def _found(self, scores: Tensor) -> None:
        self.calls[-1].scores = scores
        if self.first:
            raise FirstScores

    def _answer(self) -> Tensor:
        """[rows, heads, length, size] of the last call."""
        call, rows = self.calls[-1], self.calls[-1].key.shape[0]
        assert call.query is not None and self.known is not None
        query = call.query.reshape(rows, -1, call.query.shape[-2], call.query.shape[-1])
        known = self.known[len(self.calls) - 1]
        if call.source is not None:
            assert self.cross is not None
            return self.cross(call.source, query, known.scale).transpose(1, 2)
        bias = None if known.slopes is None and known.table is None else _bias(known, query.shape[2])
        return cached_node(query, call.key, call.value, Rule(known.scale, known.window, bias=bias)).transpose(1, 2)

    def _looked(self, name: str, args: Any) -> None:
        """What is seen of other functions while scores are made."""
        call = self.calls[-1]
        if name == "softmax" and call.query is not None and call.scores is None:
            self._found(args[0].float())
        if name == "__getitem__" and (window := self.bands.get(id(args[0]))) is not None:
            call.window = window

    def _kind(self, value: Any) -> str | None:
        found = self.kinds.get(id(value))
        return None if found is None else found[1]

    def _mark(self, value: Tensor, kind: str) -> None:
        self.kinds[id(value)] = (value, kind)


def _bias(known: Scores, length: Any) -> Tensor:
    """[1, heads, length, total]: a key lies at its position in the cache."""
    positions = torch.arange(running_step().total.item())
    slopes = torch.tensor(known.slopes or ())[:, None]
    row = slopes * positions if known.table is None else F.embedding(positions, known.table.t()).t()
    return row[None, :, None].expand(1, row.shape[0], length, row.shape[1])


def watched_cache(step: Any, watch: Watch) -> Any:
    """A cache of transformers that tells `watch` of new keys and values, and gives them back."""
    cache = handing_cache(step)
    cache.update = lambda key, value, *_, **__: watch.updated(key, value)
    cache.get_mask_sizes = lambda length, *_, **__: (length if isinstance(length, int | torch.SymInt) else length.shape[0], 0)
    cache.get_query_offset = lambda *_, **__: 0
    if step.positions is None:
        cache.get_seq_length = lambda *_, **__: 0
    return cache


def bands(model: nn.Module) -> dict[int, int]:
    """By identity, buffers that say which of the positions before it each one sees: how many, itself among them."""
    found = {}
    for buffer in model.buffers():
        if buffer.dtype == torch.bool and buffer.dim() >= 2 and buffer.shape[-1] == buffer.shape[-2] == buffer.numel() ** 0.5:
            square = buffer.reshape(buffer.shape[-2:])
            window = int(square[-1].sum())
            if window < len(square) and torch.equal(square, torch.ones_like(square).tril() & ~torch.ones_like(square).tril(-window)):
                found[id(buffer)] = window
    return found


def found_scores(runs: Sequence[Sequence[Call]]) -> list[Scores]:
    """What became of the products of each call, by three runs in which products are 0, 1 and 2.

    CheckpointError: something else than a factor, a window and a bias by the position of the key.
    """
    found = []
    for calls in zip(*runs, strict=True):
        zero, one, two = map(_scores, calls)
        all_of_it = calls[0].source is not None
        seen, window = (torch.ones_like(zero, dtype=torch.bool), None) if all_of_it else _seen(zero, calls[0].window)
        scale = (one - zero)[seen]
        if not torch.allclose(scale, scale[:1].expand_as(scale), rtol=1e-4) or not torch.allclose((two - zero)[seen], 2 * scale, rtol=1e-4):
            raise CheckpointError("scores are changed by more than a factor and a bias")
        table = _table(zero, seen)
        if table is not None and (window is not None or all_of_it):
            raise CheckpointError(f"a {'source' if all_of_it else 'window'} and a bias of scores in one attention")
        found.append(Scores(float(scale.double().mean()), window, table=table))
    return found


def found_table(call: Call) -> Tensor | None:
    """The bias by the position of the key alone, [heads, length], of a run in which products are 0."""
    zero = _scores(call)
    return _table(zero, _seen(zero, call.window)[0])


def _scores(call: Call) -> Tensor:
    """Those of the first row: [heads, length, length], or of a source [heads, length, source]."""
    if call.query is None or call.scores is None:
        raise CheckpointError("keys of its cache are not multiplied in a way that is known")
    length, (*_, queries, keys) = call.key.shape[2], call.scores.shape
    if keys != length or (queries not in (1, length) and call.source is None):
        raise CheckpointError(f"scores are of {queries} queries over {keys} keys, expected {length}")
    scores = call.scores.reshape(call.key.shape[0], -1, queries, keys)[0]
    return scores if call.source is not None else scores.expand(-1, length, -1)


def _seen(zero: Tensor, window: int | None) -> tuple[Tensor, int | None]:
    """What is seen, bool [heads, length, length], and the window."""
    length = zero.shape[-1]
    seen = zero > HIDDEN
    count = int(seen[0, -1].sum())
    window = window if window is not None else count if count < length else None
    ones = torch.ones(length, length, dtype=torch.bool)
    if seen.all():  # a class that is called with one token at a time needs no mask; its answers are compared
        return seen, None
    if not (seen == (ones.tril() & ~ones.tril(-length if window is None else -window))).all():
        raise CheckpointError("positions see something else than those before them, or a window of these")
    return seen, window


def _table(zero: Tensor, seen: Tensor) -> Tensor | None:
    """The bias of the position of a key, [heads, length]; None for none."""
    bias = torch.where(seen, zero - zero.gather(2, seen.int().argmax(-1, keepdim=True)), 0.0)  # only differences in a row count
    if not torch.allclose(bias, torch.where(seen, bias[:, -1:], 0.0), rtol=1e-4, atol=1e-6):
        raise CheckpointError("the bias of a score depends on more than the position of the key")
    return bias[:, -1].clone() if bias.any() else None
