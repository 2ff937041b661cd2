"""Positions of each row in classes that count them by the length of their cache: rows of one batch stand at different ones.

A cache of ours gives the length of each row's past, int64 [rows, 1] (see `attention.handing_cache`), which most classes add to the numbers
of the new ids. What cannot read such a length is replaced while the class runs: tables of positions, and biases of distances.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onnxport.export.attention_interface.attention import running_step

LENGTH, POSITIONS, EMBEDS = "cache_length", "position_ids", "inputs_embeds"  # what forwards of tables of positions read
NUMBERED = "create_position_ids_from_input_ids"  # who has it numbers ids from behind the padding id on, and adds the length
PADDED = "make_positions"  # FSMT's tables of positions, which begin behind the padding id
BIASES = "compute_bias"  # T5's biases of distances, by the class's own buckets


@contextmanager
def positions_of_rows(model: nn.Module) -> Iterator[None]:
    """Tables of positions and biases of distances of the model follow the positions of the running step, until the block is left."""
    replaced: list[tuple[nn.Module, str]] = []
    try:
        for module in model.modules():
            for name, make in (("forward", _table), (BIASES, _biases)):
                ours = make(module)
                if ours is not None:
                    setattr(module, name, ours)  # an attribute of the module alone, before the one of its class
                    replaced.append((module, name))
        yield
    finally:
        for module, name in replaced:
            delattr(module, name)


def _table(module: nn.Module) -> Callable[..., Any] | None:
    """The forward of a table of positions that reads those of the step; None for other modules, and where a length for each row will do."""
    forward = module.forward
    reads = inspect.signature(forward).parameters
    if LENGTH not in reads or hasattr(module, NUMBERED):
        return None
    if isinstance(module, nn.Embedding):
        offset = int(getattr(module, "offset", 0)) + (module.padding_idx + 1 if hasattr(module, PADDED) else 0)
        return lambda *_, **__: F.embedding(_positions() + offset, module.weight)
    if POSITIONS not in reads:
        return None

    def given(*args: Any, **kwargs: Any) -> Any:
        call = inspect.signature(forward).bind(*args, **kwargs)
        positions = _positions()
        call.arguments[LENGTH] = 0
        if next(iter(reads)) != EMBEDS:
            call.arguments[POSITIONS] = positions
            return forward(*call.args, **call.kwargs)
        embeds = call.arguments[EMBEDS]  # computed positions of one row for all: every row's stand in one, one behind the other
        call.arguments |= {EMBEDS: embeds.reshape(1, -1, embeds.shape[-1]), POSITIONS: positions.reshape(-1, 1)}
        return forward(*call.args, **call.kwargs).reshape(embeds.shape)

    return given


def _biases(module: nn.Module) -> Callable[..., Tensor] | None:
    """T5's `compute_bias` by the distances of each row; None for other modules."""
    own = getattr(module, BIASES, None)
    if own is None:
        return None
    most = int(module.relative_attention_max_distance)  # beyond it all are alike

    def biases(*_: Any, **__: Any) -> Tensor:
        step, positions = running_step(), _positions()
        by_distance = own(1, most + 1, past_seen_tokens=most)[0, :, 0].flip(-1).t()  # [distances, heads]
        entries = torch.arange(step.total.item(), device=positions.device)
        return F.embedding((positions[:, :, None] - entries).clamp(0, most), by_distance).permute(0, 3, 1, 2)

    return biases


def _positions() -> Tensor:
    positions = running_step().positions
    assert positions is not None, "the step has positions where a class counts them by its cache"
    return positions
