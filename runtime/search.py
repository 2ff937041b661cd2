"""Greedy decoding and sampling of a batch, a step at a time; finished rows make room for inputs that wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from onnxport.runtime.choose import TokenChooser
from onnxport.runtime.constraints import Constraints
from onnxport.runtime.engine import Engine
from onnxport.runtime.job import Job
from onnxport.runtime.options import Search, Watch
from onnxport.runtime.running import Running
from onnxport.runtime.sources import Sources, Taken, together
from onnxport.runtime.tokenizer import TextStream

DROPPED = "dropped"  # the reason of a row that its caller gave up


@dataclass(eq=False)
class Row:
    """What became of a job: tokens with the final eos, the log-probability of each, and why it ended ("" while it runs)."""

    job: Job
    stream: TextStream | None = None
    generator: np.random.Generator | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    reason: str = ""
    piece: str = ""

    @property
    def done(self) -> bool:
        """True when there is nothing more to come."""
        return bool(self.reason)

    def drop(self) -> None:
        """Give up."""
        self.reason = self.reason or DROPPED

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


class Batch:
    """Rows that decode together: as many as `search.batch_size`."""

    def __init__(self, engine: Engine, search: Search, constraints: Constraints) -> None:
        self._engine, self._search, self._constraints = engine, search, constraints
        self._sources: Sources[Row] = Sources(engine)
        self._rows: list[Row] = []  # by place
        self._running: Running | None = None
        self._chooser: TokenChooser | None = None

    def step(self, waiting: deque[Row]) -> list[Row]:
        """Take rows from `waiting` while there is room, and choose a token for each; returns the rows that ended."""
        self._admit(waiting)
        if self._running is None or self._chooser is None:
            return []
        running, rows = self._running, self._rows
        rules = self._constraints.at([row.job for row in rows], [row.tokens for row in rows])
        self._chooser.prepare(rules)
        running.advance()
        generators = [r.generator for r in rows if r.generator is not None] if self._search.sampling else None
        tokens, logprobs = self._chooser.choose(rules, generators)
        eos, ended = self._engine.config.eos_ids, []
        for i, row in enumerate(rows):
            if not row.reason:
                row.add(tokens[i], logprobs[i], eos)
                if row.reason:
                    ended.append(row)
            if row.reason:
                running.active[i] = False
        return ended

    def _admit(self, waiting: deque[Row]) -> None:
        free = [i for i, row in enumerate(self._rows) if row.reason]
        live, most = len(self._rows) - len(free), self._search.batch_size
        if not live:
            self._start([t for t in self._sources.take(waiting, most) if not t[0].reason])
            return
        assert self._running is not None
        if joining := min(self._sources.can_join(waiting), most - live):
            if joining > len(free):
                self._running.widen(live + joining)
                gone = [Row(self._rows[0].job, reason=DROPPED) for _ in range(live + joining - len(self._rows))]
                free += range(len(self._rows), live + joining)
                self._rows += gone
                self._choose_anew()
            taken = self._sources.take(waiting, joining)
            places = free[: len(taken)]
            for place, (row, _) in zip(places, taken, strict=True):
                self._rows[place] = row
            self._running.join(places, [row.job.prefix[0] for row, _ in taken], [e for _, e in taken if e is not None])
        elif 4 * live <= 3 * len(self._rows):  # finished rows cost as much as others: go on without them
            order = self._running.keep([i for i, row in enumerate(self._rows) if not row.reason])
            self._rows = [self._rows[i] for i in order]
            self._choose_anew()

    def _start(self, taken: list[Taken[Row]]) -> None:
        self._rows = [row for row, _ in taken]
        if not taken:
            self._running = self._chooser = None
            return
        prefixes = [row.job.prefix for row in self._rows]
        new = max(row.job.limit for row in self._rows)
        self._running = Running(self._engine, together([e for _, e in taken]), prefixes, new)
        self._choose_anew()

    def _choose_anew(self) -> None:
        assert self._running is not None
        self._chooser = TokenChooser(self._engine, self._running, self._search)


def decode(batch: Batch, rows: Iterable[Row], watch: Watch) -> Iterator[None]:
    """Decode rows in a batch of their own; a step a turn, until all have ended."""
    waiting = deque(rows)
    left = len(waiting)
    while left:
        watch.check()
        left -= len(batch.step(waiting))
        yield
