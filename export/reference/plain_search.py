"""Greedy and beam search without a cache, for classes that bring no `generate` of their own."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

# (rows of ids, the input that each row belongs to) → logits [rows, vocabulary] of each row's next token
Next = Callable[[list[list[int]], list[int]], Tensor]


def greedy(
    following: Next, begins: list[list[int]], limits: list[int], least: int, eos: int, beam: int = 1
) -> list[tuple[list[int], float]]:
    """(new tokens without the end, sum of log-probabilities with it) of each input; finished rows leave the batch."""
    rows, scores = [list(begin) for begin in begins], [0.0] * len(begins)
    live, length = [i for i, limit in enumerate(limits) if limit > 0], 0
    while live:
        logits = following([rows[i] for i in live], live).float()
        if length < least:
            logits[:, eos] = -torch.inf
        best, tokens = logits.log_softmax(-1).max(-1)
        length += 1
        for i, token, logprob in zip(live, tokens.tolist(), best.tolist(), strict=True):
            rows[i].append(token)
            scores[i] += logprob
        live = [i for i in live if rows[i][-1] != eos and length < limits[i]]
    new = [row[len(begin) :] for row, begin in zip(rows, begins, strict=True)]
    return [(row[:-1] if row and row[-1] == eos else row, score) for row, score in zip(new, scores, strict=True)]


def beam_search(
    following: Next, begins: list[list[int]], limits: list[int], least: int, eos: int, beam: int
) -> list[tuple[list[int], float]]:
    """The best hypothesis of each input by the rules of transformers' generate: 2 * beam candidates, an end counts among the first `beam`,
    log-probability over the number of tokens."""
    running = [[(0.0, list(begin))] for begin in begins]
    finished: list[list[tuple[float, list[int]]]] = [[] for _ in begins]
    live, length = [i for i, limit in enumerate(limits) if limit > 0], 0
    while live:
        owners = [i for i in live for _ in running[i]]
        logprobs = following([row for i in live for _, row in running[i]], owners).float().log_softmax(-1)
        length += 1
        if length <= least:
            logprobs[:, eos] = -torch.inf
        at, still = 0, []
        for i in live:
            width = len(running[i])
            sums = torch.tensor([score for score, _ in running[i]])[:, None] + logprobs[at : at + width]
            at += width
            if _advance(sums, running, finished[i], i, length, limits[i], len(begins[i]), eos, beam):
                still.append(i)
        live = still
    return [_best(found) for found in finished]


def _advance(
    sums: Tensor,
    running: list[Any],
    finished: list[tuple[float, list[int]]],
    i: int,
    length: int,
    limit: int,
    begin: int,
    eos: int,
    beam: int,
) -> bool:
    """One step of one input; whether it goes on."""
    values, indices = sums.flatten().topk(min(2 * beam, sums.numel()))
    kept = []
    for rank, (value, index) in enumerate(zip(values.tolist(), indices.tolist(), strict=True)):
        parent, token = divmod(index, sums.shape[1])
        row = [*running[i][parent][1], token]
        if token != eos and length < limit:
            kept.append((value, row))
        elif rank < beam and value > -np.inf:
            finished.append((value / length, row[begin : -1 if token == eos else None]))
    finished.sort(key=lambda hypothesis: -hypothesis[0])
    del finished[beam:]
    running[i] = kept[:beam]
    return bool(kept) and not (len(finished) == beam and kept[0][0] / length <= finished[-1][0])


def _best(found: list[tuple[float, list[int]]]) -> tuple[list[int], float]:
    return (found[0][1], found[0][0]) if found else ([], 0.0)
