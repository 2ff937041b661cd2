"""Greedy decoding and sampling of a batch, a step at a time, which checks guesses, too; finished rows make room for others."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxport.runtime.decode.batch import Batch, Request
from onnxport.runtime.decode.constraints import Constraints
from onnxport.runtime.decode.engine import Engine
from onnxport.runtime.decode.speculation import Speculation
from onnxport.runtime.decode.state import CheckedPositions, DecoderState
from onnxport.runtime.decode.token_selection import Draw, TokenSelector, not_finite
from onnxport.runtime.options import Search
from onnxport.runtime.tokenizer import TextStream

NO_GUESSES: list[list[int]] = []
DROPPED = "dropped"  # the reason of a row that its caller gave up


@dataclass(eq=False)
class Row:
    """What became of a request: tokens with the final one that ended it, the log-probability of each, and why it ended ("" while it runs).

    told: for each token the best ones that there were, with their log-probabilities, as many as were asked for. guessed, accepted: how
    many tokens were guessed and checked, and how many came so. passes: of the model, each of which gave a token or more.
    """

    request: Request
    stream: TextStream | None = None
    generator: np.random.Generator | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    told: list[list[tuple[int, float]]] = field(default_factory=list)
    reason: str = ""
    guessed: int = 0
    accepted: int = 0
    passes: int = 0
    cached_tokens: int = 0
    _drawn: deque[float] = field(default_factory=deque)

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
        self.told = other.told[: len(self.tokens)]
        self.guessed, self.accepted, self.passes = other.guessed, other.accepted, other.passes
        return self

    def drop(self) -> None:
        """Give up."""
        self.reason = self.reason or DROPPED

    def draw(self, ahead: int = 0) -> Draw | None:
        """How the next token but `ahead` is drawn; None without sampling."""
        if self.request.sampling is None or self.generator is None:
            return None
        while len(self._drawn) <= ahead:
            self._drawn.append(self.generator.random(dtype=np.float32))
        return self.request.sampling, self._drawn[ahead]

    def take(self, tokens: Sequence[int], logprobs: Sequence[float], guesses: Sequence[int], eos: tuple[int, ...]) -> int:
        """Take the token behind what stands, and those behind guesses as long as these came true; returns how many were taken."""
        self.guessed += len(guesses)
        self.passes += 1
        for taken, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True), 1):
            if math.isnan(logprob):
                raise not_finite()
            self.add(token, logprob, eos)
            right = taken <= len(guesses) and token == guesses[taken - 1]
            self.accepted += right
            if self.done or not right:
                return taken
        raise AssertionError("behind the last guess is a token that was not guessed")

    def tell(self, selector: TokenSelector, first: int, count: int) -> None:
        """Take the best tokens that there were for its `count` newest ones, from the selector's rows from `first` on."""
        if self.request.top:
            self.told += [selector.told(row, self.request.top) for row in range(first, first + count)]

    def add(self, token: int, logprob: float, eos: tuple[int, ...]) -> None:
        """Take the next token and see whether it is the last."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if self._drawn:
            self._drawn.popleft()
        if token in eos:
            self.reason = "eos"
        elif token in self.request.ends:
            self.reason = "stop"
        elif self.stream is not None:
            self.stream.push(token)
            if self.stream.stopped:
                self.reason = "stop"
        if not self.reason and self.request.ended_by(self.tokens):
            self.reason = "stop"
        if not self.reason and len(self.tokens) >= self.request.limit:
            self.reason = "length"
        if self.reason and self.stream is not None:
            self.stream.finish()
            if self.stream.stopped:  # a stop string in what was held back
                self.reason = "stop"


class RowBatch(Batch[Row]):
    """Rows that decode together."""

    def __init__(self, engine: Engine, search: Search, constraints: Constraints) -> None:
        super().__init__(engine, search)
        self._constraints = constraints
        self._selector: TokenSelector | None = None
        self._checks: dict[int, tuple[CheckedPositions, TokenSelector]] = {}  # by how many positions there are
        self._speculation = Speculation.of(engine, search, constraints)

    def _empty(self) -> RowBatch:
        return RowBatch(self._engine, self._search, self._constraints)

    def _advance(self, state: DecoderState) -> list[Row]:
        rows, before = self._decodings, [len(row.tokens) for row in self._decodings]
        live = [place for place, row in enumerate(rows) if not row.done]
        guesses = self._speculation.guesses(rows, state) if self._speculation is not None else NO_GUESSES
        guesses = [_possible(row, some) for row, some in zip(rows, guesses, strict=False)]
        begun = time.perf_counter()
        if any(guesses):
            self._check(state, live, guesses)
        else:
            self._step(state, live)
        if self._speculation is not None:
            self._engine.pass_costs.add(state.rows, 1 + max(map(len, guesses), default=0), time.perf_counter() - begun)
            self._speculation.learn(rows, before)
        for place, row in enumerate(rows):
            if row.done:
                state.active[place] = False
        return [rows[place] for place in live if rows[place].done]

    def _step(self, state: DecoderState, live: Sequence[int]) -> None:
        """One more token for every row."""
        assert self._selector is not None
        rows = self._decodings
        rules = self._constraints.at([row.request for row in rows], [row.tokens for row in rows], [row.done for row in rows])
        draws = [row.draw() for row in rows]
        self._selector.prepare(rules, draws, self._told())
        state.advance()
        tokens, logprobs = self._selector.select(rules, draws)
        for place in live:
            rows[place].take([tokens[place]], [logprobs[place]], (), self._engine.config.eos_ids)
            rows[place].tell(self._selector, place, 1)

    def _check(self, state: DecoderState, live: Sequence[int], guesses: Sequence[Sequence[int]]) -> None:
        """One more token for every row and one more for every guess that comes true: each position is selected as a row of its own is."""
        rows = self._decodings
        positions = [(place, ahead) for place in live for ahead in range(len(guesses[place]) + 1)]
        asked = [(rows[place], guesses[place][:ahead]) for place, ahead in positions]
        rules = self._constraints.at([row.request for row, _ in asked], [[*row.tokens, *before] for row, before in asked])
        found, selector = self._positions(len(positions))
        draws = [rows[place].draw(ahead) for place, ahead in positions]
        selector.prepare(rules, draws, self._told())
        state.check([[] if row.done else [int(state.ids[place, 0]), *guesses[place]] for place, row in enumerate(rows)], found)
        tokens, logprobs = selector.select(rules, draws, guessed=True)
        first = 0
        for place in live:
            part = slice(first, first := first + len(guesses[place]) + 1)
            taken = rows[place].take(tokens[part], logprobs[part], guesses[place], self._engine.config.eos_ids)
            rows[place].tell(selector, part.start, taken)
            state.lengths[place] += taken
            state.ids[place, 0] = rows[place].tokens[-1]

    def _told(self) -> int:
        """How many of the best tokens somebody wants to be told."""
        return max((row.request.top for row in self._decodings if not row.done), default=0)

    def _positions(self, count: int) -> tuple[CheckedPositions, TokenSelector]:
        """Room for so many positions, and what selects from them."""
        if count not in self._checks:
            found = CheckedPositions(self._engine, count)
            self._checks[count] = found, TokenSelector(self._engine, found)
        return self._checks[count]

    def _placeholder(self, like: Row) -> Row:
        return Row(like.request, generator=like.generator and np.random.default_rng(0), reason=DROPPED)

    def _rows_changed(self, state: DecoderState) -> None:
        self._selector = TokenSelector(self._engine, state)


def _possible(row: Row, guesses: list[int]) -> list[int]:
    """The guesses up to one that the format of the row's answer does not allow."""
    answer_format = row.request.answer_format
    return guesses if answer_format is None or not guesses else guesses[: answer_format.count(row.tokens, guesses)]
