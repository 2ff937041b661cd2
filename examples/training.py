"""A training loop that can be stopped: state goes to a folder after every `SAVED` steps, and the same command goes on from there.

With glibc, `MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8000000000` in the environment saves page faults.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SAVED = 100


def rate(step: int, steps: int, peak: float, warm: float = 0.1) -> float:
    """Warms up linearly and falls linearly to zero."""
    up = max(1, int(steps * warm))
    return peak * min(step / up, max(0.0, (steps - step) / max(1, steps - up)))


def batches(lengths: Sequence[int], tokens: int, seed: int) -> Iterator[list[int]]:
    """Rows of like length, as many as keep a batch within `tokens` padded tokens; epoch after epoch, each in another order."""
    chooser = random.Random(seed)
    while True:
        order = sorted(range(len(lengths)), key=lambda i: (lengths[i], chooser.random()))
        groups: list[list[int]] = [[]]
        for i in order:
            if groups[-1] and (len(groups[-1]) + 1) * lengths[i] > tokens:
                groups.append([])
            groups[-1].append(i)
        chooser.shuffle(groups)
        yield from groups


def train(
    model: nn.Module,
    loss_of: Callable[[list[int]], Tensor],
    order: Iterator[list[int]],
    steps: int,
    peak: float,
    work: Path,
    decay: float = 0.01,
) -> None:
    """AdamW for `steps` batches; `loss_of` gives the mean loss of the rows of a batch."""
    work.mkdir(parents=True, exist_ok=True)
    state = work / "state.pt"
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=decay)
    first = 0
    if state.exists():
        saved: dict[str, Any] = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    model.train()
    started, seen = time.perf_counter(), 0.0
    for step, rows in enumerate(order, 1):
        if step <= first:
            continue
        if step > steps:
            break
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, peak)
        loss = loss_of(rows)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seen += loss.item()
        if step % SAVED == 0 or step == steps:
            part = state.with_suffix(".part")
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, part)
            os.replace(part, state)
            pace = (time.perf_counter() - started) / (step - first)
            print(f"step {step}/{steps}: loss {seen / ((step - first - 1) % SAVED + 1):.3f}, {pace:.2f} s a step", flush=True)
            seen = 0.0
    model.eval()
