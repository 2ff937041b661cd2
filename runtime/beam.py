"""Beam search with the semantics of transformers' `generate` (its vectorized beam search, from 4.50 on).

Each step the best continuations are candidates: for every beam one more than there are end tokens, at least two. Those that end (eos, a
stop string, the length limit) and are among the first `beams` become finished hypotheses, scored by sum of log-probabilities /
tokens ** length_penalty; the best `beams` others run on. An input is done when no running beam can beat its worst finished hypothesis, or,
with early_stopping=True, when it has `beams` of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxport.errors import UsageError
from onnxport.runtime.choose import BeamChooser, Candidate
from onnxport.runtime.constraints import Constraints
from onnxport.runtime.engine import Engine
from onnxport.runtime.options import Search, Watch
from onnxport.runtime.running import Running
from onnxport.runtime.search import Job
from onnxport.runtime.tokenizer import TextTokenizer

LOWEST = -1e9  # what stands for minus infinity in scores, as in transformers


@dataclass(frozen=True)
class Hypothesis:
    """A finished beam: tokens with the final eos, their log-probabilities, the normalized score, why it ended."""

    tokens: list[int]
    logprobs: list[float]
    score: float
    reason: str


class _Input:
    """The beams of one input."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.finished: list[Hypothesis] = []
        self.open = True  # a running beam may still be better than the worst finished one
        self.done = False

    def finish(self, hypothesis: Hypothesis, search: Search) -> None:
        """Take a hypothesis if it is among the best; those of one step compete even when early_stopping ends the search with it."""
        self.finished.append(hypothesis)
        self.finished.sort(key=lambda h: -h.score)
        del self.finished[search.beam :]

    def settle(self, best: float, length: int, all_ended: bool, search: Search) -> None:
        """See whether the search goes on; `best`: the summed log-probability of the best running beam after `length` tokens."""
        full = len(self.finished) >= search.beam
        if full:
            longest = self.job.limit if search.early_stopping == "never" and search.length_penalty > 0 else length
            self.open = self.open and best / longest**search.length_penalty > self.finished[-1].score
        self.done = not self.open or all_ended or (full and search.early_stopping is True)


def beam_search(
    engine: Engine, jobs: Sequence[Job], search: Search, constraints: Constraints, watch: Watch, tokenizer: TextTokenizer | None
) -> list[list[Hypothesis]]:
    """Search for all jobs together; for each its finished hypotheses, best first. UsageError: too small a vocabulary."""
    beams, vocabulary, eos = search.beam, engine.vocab_size, engine.config.eos_ids
    count = max(2, 1 + len(eos)) * beams
    if count + len(eos) > vocabulary:
        most = (vocabulary - len(eos)) * beams // count
        raise UsageError(f"beam is {beams}, expected at most {most} with a vocabulary of {vocabulary}")
    watch.check()
    cross = engine.encode([j.source for j in jobs]) if engine.encoder is not None else None
    watch.check()
    running = Running(engine, cross, [j.prefix for j in jobs], max(j.limit for j in jobs))
    running.prefill()
    inputs = [_Input(job) for job in jobs]
    live, width = inputs, 1  # the first tokens come from one beam, since all would be equal
    tokens = np.zeros((len(live), 1, 0), np.int64)
    logprobs = np.zeros((len(live), 1, 0), np.float32)
    chooser = BeamChooser(engine, running.logits, len(live), 1)
    while True:
        watch.check()
        jobs_of_rows = [one.job for one in live for _ in range(width)]
        rules = constraints.at(tokens.shape[2], jobs_of_rows, tokens.reshape(len(jobs_of_rows), tokens.shape[2]))
        candidates = chooser.choose(rules, count)
        scores, parents, chosen = _advance(live, tokens, logprobs, chooser.scores, candidates, search, eos, tokenizer)
        left = np.array([i for i, one in enumerate(live) if not one.done])
        if not len(left):
            break
        old, at = tokens, np.arange(len(live))[:, None]
        steps = (scores - chooser.scores[at, parents])[:, :, None]
        tokens = np.concatenate([tokens[at, parents], chosen[:, :, None]], 2)
        logprobs = np.concatenate([logprobs[at, parents], steps.astype(np.float32)], 2)
        if width != beams:
            running.expand(beams)
        else:
            _reorder(running, live, old, parents, beams)
        renewed = width != beams
        width = beams
        if 4 * len(left) <= 3 * len(live):
            running.keep((left[:, None] * beams + np.arange(beams)).ravel(), left)
            live, tokens, logprobs, scores, chosen = [live[i] for i in left], tokens[left], logprobs[left], scores[left], chosen[left]
            renewed = True
        if renewed:
            chooser = BeamChooser(engine, running.logits, len(live), beams)
        chooser.scores[:] = scores
        running.active[:] = np.repeat([not one.done for one in live], beams)
        running.ids[:, 0] = chosen.ravel()
        running.step()
    return [one.finished for one in inputs]


def _advance(
    live: Sequence[_Input],
    tokens: np.ndarray,
    logprobs: np.ndarray,
    scores: np.ndarray,
    candidates: Sequence[Sequence[Candidate]],
    search: Search,
    eos: tuple[int, ...],
    tokenizer: TextTokenizer | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sort every input's candidates into finished and running: scores, parents and tokens of the next beams, [inputs, beams]."""
    beams, length = search.beam, tokens.shape[2] + 1
    new_scores = np.zeros((len(live), beams), np.float32)
    parents, chosen = np.zeros((len(live), beams), np.int64), np.zeros((len(live), beams), np.int64)
    for b, one in enumerate(live):
        if one.done:  # waits unchanged until the batch is made smaller
            parents[b] = np.arange(beams) if tokens.shape[1] == beams else 0
            continue
        kept: list[Candidate] = []
        ended: list[Candidate] = []
        for rank, (score, parent, token) in enumerate(candidates[b]):
            reason = _reason(one, tokens[b, parent], token, length, eos, search, tokenizer)
            (ended if reason else kept).append((score, parent, token))
            if reason and rank < beams and score > LOWEST / 2:  # what only fills a place is no answer
                steps = [*logprobs[b, parent].tolist(), score - float(scores[b, parent])]
                one.finish(Hypothesis([*tokens[b, parent].tolist(), token], steps, score / length**search.length_penalty, reason), search)
        all_ended = not kept
        kept += [(score + LOWEST, parent, token) for score, parent, token in ended]  # places that no running candidate fills
        kept += [(kept[0][0] + LOWEST, *kept[0][1:])] * (beams - len(kept))
        one.settle(kept[0][0], length, all_ended, search)
        for k, (score, parent, token) in enumerate(kept[:beams]):
            new_scores[b, k], parents[b, k], chosen[b, k] = score, parent, token
    return new_scores, parents, chosen


def _reason(
    one: _Input, tokens: np.ndarray, token: int, length: int, eos: tuple[int, ...], search: Search, tokenizer: TextTokenizer | None
) -> str:
    if token in eos:
        return "eos"
    if search.stop and tokenizer is not None:
        text = tokenizer.decode([*tokens.tolist(), token])
        if any(s in text for s in search.stop):
            return "stop"
    return "length" if length >= one.job.limit else ""


def _reorder(running: Running, live: Sequence[_Input], old: np.ndarray, parents: np.ndarray, beams: int) -> None:
    """Give every beam its parent's cache. Beams with the same first tokens have equal entries there, so only what follows is copied."""
    rows = (np.arange(len(live))[:, None] * beams + parents).ravel()
    changed = np.flatnonzero(rows != np.arange(len(rows)))
    if not len(changed):
        return
    flat = old.reshape(len(rows), -1)
    different = flat[changed] != flat[rows[changed]]
    first = np.where(different.any(1), different.argmax(1), flat.shape[1])
    prompt = np.array([len(one.job.prefix) for one in live])[changed // beams]
    running.reorder(rows, int((prompt + first).min()))
