"""Beam search in plain PyTorch, one text at a time and without a cache: slow, short, and easy to check by eye.

The rules are those of Hugging Face Transformers: there are twice as many candidates as beams; an end token makes a finished hypothesis
when it is among the first `beams` candidates; a hypothesis scores its log-probability over its length to the power of the length penalty.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Scores = Callable[[Tensor], Tensor]  # ids [beams, length] → logits [beams, vocabulary] of the next token


@torch.no_grad()
def beam_search(
    next_logits: Scores, start: int, end: int, beams: int, max_new_tokens: int, length_penalty: float = 1.0
) -> tuple[list[int], float]:
    """The best hypothesis without start and end tokens, and its score."""
    rows, sums = torch.tensor([[start]]), torch.zeros(1)
    finished: list[tuple[float, list[int]]] = []
    for length in range(1, max_new_tokens + 1):
        logprobs = next_logits(rows).float().log_softmax(-1)
        vocabulary = logprobs.shape[-1]
        values, indices = (sums[:, None] + logprobs).flatten().topk(min(2 * beams, logprobs.numel()))
        kept: list[tuple[float, int, int]] = []
        for rank, (value, index) in enumerate(zip(values.tolist(), indices.tolist(), strict=True)):
            row, token = divmod(index, vocabulary)
            if token == end:
                if rank < beams:
                    finished.append((value / length**length_penalty, rows[row, 1:].tolist()))
            elif len(kept) < beams:
                kept.append((value, row, token))
        finished = sorted(finished, key=lambda hypothesis: -hypothesis[0])[:beams]
        rows = torch.stack([torch.cat([rows[row], torch.tensor([token])]) for _, row, token in kept])
        sums = torch.tensor([value for value, _, _ in kept])
        if len(finished) == beams and finished[-1][0] >= float(sums.max()) / length**length_penalty:
            break
    else:
        finished += [(float(value) / max_new_tokens**length_penalty, row[1:].tolist()) for value, row in zip(sums, rows, strict=True)]
    score, tokens = max(finished, key=lambda hypothesis: hypothesis[0])
    return tokens, score
