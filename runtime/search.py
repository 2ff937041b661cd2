"""Greedy decoding and sampling of a batch, a step at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxport.runtime.choose import TokenChooser
from onnxport.runtime.constraints import Constraints
from onnxport.runtime.engine import Engine
from onnxport.runtime.options import Search, Watch
from onnxport.runtime.running import Running
from onnxport.runtime.tokenizer import TextStream, TextTokenizer


@dataclass(frozen=True)
class Job:
    """One input of a call: its place in the call, source ids (seq2seq), the ids decoding starts from, and the most new tokens."""

    index: int
    source: Sequence[int]
    prefix: Sequence[int]
    limit: int


@dataclass
class Row:
    """What became of a job: tokens with the final eos, the log-probability of each, and why it ended ("" while it runs)."""

    job: Job
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    reason: str = ""
    stream: TextStream | None = None
    piece: str = ""
    generator: np.random.Generator | None = None

    def add(self, token: int, logprob: float, eos: tuple[int, ...]) -> None:
        """Take the next token and see whether it is the last."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.piece = ""
        if token in eos:
            self.reason = "eos"
        elif self.stream is not None:
            self.piece = self.stream.push(token)
            if self.stream.stopped:
                self.reason = "stop"
        if not self.reason and len(self.tokens) >= self.job.limit:
            self.reason = "length"
        if self.reason in ("eos", "length") and self.stream is not None:
            self.piece += self.stream.finish()
            if self.stream.stopped:  # a stop string in what was held back
                self.reason = "stop"


def decode(
    engine: Engine,
    jobs: Sequence[Job],
    search: Search,
    constraints: Constraints,
    watch: Watch,
    tokenizer: TextTokenizer | None,
    seed: int,
    streaming: bool = False,
) -> Iterator[list[Row]]:
    """Decode the jobs together; yields all their rows after every step (the same objects each time).

    With stop strings or `streaming`, rows have a TextStream and `piece` is the newest text. A sampled row's random numbers depend on `seed`
    and its job's index alone; the distribution they choose from may move in its last bits with the number of rows where blocks are int8.
    """
    rows = [Row(job) for job in jobs]
    for row in rows:
        if tokenizer is not None and (streaming or search.stop):
            row.stream = TextStream(tokenizer, search.stop)
        if search.sampling:
            row.generator = np.random.default_rng([seed, row.job.index])
    watch.check()
    cross = engine.encode([j.source for j in jobs]) if engine.encoder is not None else None
    watch.check()
    running = Running(engine, cross, [j.prefix for j in jobs], max(j.limit for j in jobs))
    running.prefill()
    chooser = TokenChooser(engine, running.logits, running.ids, search)
    live, step, eos, left = rows, 0, engine.config.eos_ids, np.arange(len(rows))
    while True:
        watch.check()
        rules = constraints.at(step, [row.job for row in live], [row.tokens for row in live])
        generators = [r.generator for r in live if r.generator is not None] if search.sampling else None
        tokens, logprobs = chooser.choose(rules, generators)
        step += 1
        ended = False
        for i, row in enumerate(live):
            if not row.reason:
                row.add(tokens[i], logprobs[i], eos)
                if row.reason:
                    ended, running.active[i] = True, False
        yield rows
        if ended:
            left = np.flatnonzero(running.active)
        if not len(left):
            return
        if 4 * len(left) <= 3 * len(live):  # finished rows cost as much as others: go on without them
            ids = running.ids[left]
            running.keep(left)
            running.ids[:] = ids
            live, left = [live[i] for i in left], np.arange(len(left))
            chooser = TokenChooser(engine, running.logits, running.ids, search)
        running.step()
