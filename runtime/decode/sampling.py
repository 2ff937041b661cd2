"""Greedy decoding and sampling of a batch, a step at a time; finished rows make room for inputs that wait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxport.runtime.decode.batch import Batch, Request
from onnxport.runtime.decode.constraints import Constraints
from onnxport.runtime.decode.engine import Engine
from onnxport.runtime.decode.state import DecoderState
from onnxport.runtime.decode.token_selection import TokenSelector
from onnxport.runtime.options import Search
from onnxport.runtime.tokenizer import TextStream

DROPPED = "dropped"  # the reason of a row that its caller gave up


@dataclass(eq=False)
class Row:
    """What became of a request: tokens with the final eos, the log-probability of each, and why it ended ("" while it runs)."""

    request: Request
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

    @property
    def written(self) -> Sequence[int]:
        """The new tokens that it goes on behind."""
        return self.tokens

    @property
    def emitted(self) -> int:
        """Characters of its text that are certain."""
        return 0 if self.stream is None else self.stream.emitted

    def replay(self, other: Row, eos: tuple[int, ...]) -> Row:
        """This new row, brought to where another of the same request is, with as many random numbers used."""
        for token, logprob in zip(other.tokens, other.logprobs, strict=False):
            if self.generator is not None:
                self.generator.random(dtype=np.float32)
            self.add(token, logprob, eos)
        return self

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
        if not self.reason and len(self.tokens) >= self.request.limit:
            self.reason = "length"
        if self.reason in ("eos", "length") and self.stream is not None:
            self.piece += self.stream.finish()
            if self.stream.stopped:  # a stop string in what was held back
                self.reason = "stop"


class RowBatch(Batch[Row]):
    """Rows that decode together."""

    def __init__(self, engine: Engine, search: Search, constraints: Constraints) -> None:
        super().__init__(engine, search)
        self._constraints = constraints
        self._selector: TokenSelector | None = None

    def _empty(self) -> RowBatch:
        return RowBatch(self._engine, self._search, self._constraints)

    def _advance(self, state: DecoderState) -> list[Row]:
        assert self._selector is not None
        rows = self._decodings
        rules = self._constraints.at([row.request for row in rows], [row.tokens for row in rows])
        self._selector.prepare(rules)
        state.advance()
        generators = [r.generator for r in rows if r.generator is not None] if self._search.sampling else None
        tokens, logprobs = self._selector.select(rules, generators)
        eos = self._engine.config.eos_ids
        ended: list[Row] = []
        for i, row in enumerate(rows):
            if not row.reason:
                row.add(tokens[i], logprobs[i], eos)
                if row.reason:
                    ended.append(row)
            if row.reason:
                state.active[i] = False
        return ended

    def _placeholder(self, like: Row) -> Row:
        return Row(like.request, generator=like.generator and np.random.default_rng(0), reason=DROPPED)

    def _rows_changed(self, state: DecoderState) -> None:
        self._selector = TokenSelector(self._engine, state, self._search)
