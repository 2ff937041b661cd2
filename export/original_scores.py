"""Teacher-forced scores of the original of a model that generates: all positions of a row at once, without a cache."""

from collections.abc import Sequence

import torch
from torch import Tensor

from onnxport.export.golden import real
from onnxport.export.guard import evaluating
from onnxport.export.models import CausalModel, Seq2SeqModel
from onnxport.runtime.manifest import GenerationConfig, generation
from onnxport.runtime.tasks.scoring import Row

LOGITS = 2**26  # numbers of logits that are held at once


def padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """int64 ids and int32 mask [rows, longest], padded on the right."""
    lengths = [len(row) for row in rows]
    ids = torch.full((len(rows), max(lengths)), pad)
    for line, row in zip(ids, rows, strict=True):
        line[: len(row)] = torch.tensor(row)
    return ids, real(lengths)


def settings(model: Seq2SeqModel | CausalModel) -> GenerationConfig:
    """What the runtime would know of the model: enough to make rows of its texts."""
    if isinstance(model, Seq2SeqModel):
        sizes = {"kind": "seq2seq", "vocab_size": model.original.target_rows, "source_vocab_size": model.original.source_rows}
    else:
        sizes = {"kind": "causal", "vocab_size": model.original.rows}
    found = generation({"layers": 1, "kv_heads": 1, "head_size": 1, "max_length": model.max_length, **sizes, **model.ids})
    assert found is not None
    return found


def score(model: Seq2SeqModel | CausalModel, pad: int, rows: Sequence[Row], top: int) -> None:
    """Fills in what the rows wait for, as many rows together as `LOGITS` allows."""
    longest = max(len(row.prefix) + len(row.target) for row in rows)
    size = max(1, LOGITS // (longest * settings(model).vocab_size))
    with evaluating(*model.original.modules, fused=True):
        for start in range(0, len(rows), size):
            group = rows[start : start + size]
            target, _ = padded([[*row.prefix, *row.target][:-1] for row in group], pad)
            if isinstance(model, Seq2SeqModel):
                source, mask = padded([row.source for row in group], pad)
                logits = model.original.decode(target, model.original.encode(source, mask), mask)
            else:
                logits = model.original.causal(target)
            for row, line in zip(group, logits, strict=True):
                _fill(row, line[len(row.prefix) - 1 :][: len(row.target)].float().log_softmax(-1), top)


def _fill(row: Row, logprobs: Tensor, top: int) -> None:
    """Scores of a row from log-probabilities [target, vocabulary]."""
    places = slice(len(row.found.tokens) - len(row.target), None)
    row.found.token_logprobs[places] = logprobs[torch.arange(len(row.target)), torch.tensor(list(row.target))].numpy()
    best, ids = logprobs.topk(top)
    row.found.top_ids[places], row.found.top_logprobs[places] = ids.numpy(), best.numpy()
