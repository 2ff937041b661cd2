"""Beam search in plain NumPy for one input: no cache, whole sequences as lists."""

from collections.abc import Callable

import numpy as np


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64) - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def beam_search(
    logits: Callable[[list[list[int]]], np.ndarray],
    prefix: list[int],
    eos: int,
    beams: int,
    most: int,
    length_penalty: float = 1.0,
    early_stopping: bool | str = False,
    least: int = 0,
) -> list[tuple[float, list[int]]]:
    """(score, tokens without prefix and eos), best first. `logits` gives the next token's [rows, vocabulary]."""
    running = [(0.0, list(prefix))]
    finished: list[tuple[float, list[int]]] = []
    for length in range(1, most + 1):
        rows = log_softmax(logits([ids for _, ids in running]))
        if length <= least:
            rows[:, eos] = -np.inf
        every = [(total + float(p), [*ids, t]) for (total, ids), row in zip(running, rows, strict=True) for t, p in enumerate(row)]
        every.sort(key=lambda candidate: -candidate[0])
        running = []
        for rank, (total, ids) in enumerate(every[: 2 * beams]):
            if ids[-1] == eos or length == most:
                if rank < beams:
                    tokens = ids[len(prefix) :]
                    finished.append((total / length**length_penalty, tokens[:-1] if ids[-1] == eos else tokens))
            elif len(running) < beams:
                running.append((total, ids))
        finished = sorted(finished, key=lambda hypothesis: -hypothesis[0])[:beams]
        if len(finished) == beams and running:
            if early_stopping is True:
                break
            reached = most if early_stopping == "never" and length_penalty > 0 else length
            if running[0][0] / reached**length_penalty <= finished[-1][0]:
                break
    return finished
