"""Beam search with the semantics of transformers' `generate` (its vectorized beam search, from 4.50 on).

Each step the best continuations are candidates: for every beam one more than there are end tokens, at least two. Those that end (eos, a
stop string or id, the end of a format, the length limit) and are among the first `beams` become finished hypotheses, scored by sum of
log-probabilities / tokens ** length_penalty; the best `beams` others run on. An input is done when no running beam can beat its worst
finished hypothesis, or, with early_stopping=True, when it has `beams` of them.

A beam that goes on from its parent stays in the parent's row of the cache: only where a parent has several children, the rows of beams that
ended are overwritten, from the first token on in which the two differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxport.errors import UsageError
from onnxport.runtime.decode.batch import Batch, Request
from onnxport.runtime.decode.cache import Move
from onnxport.runtime.decode.constraints import Constraints
from onnxport.runtime.decode.engine import Engine
from onnxport.runtime.decode.state import DecoderState
from onnxport.runtime.decode.token_selection import BeamSelector, Candidate
from onnxport.runtime.options import Search
from onnxport.runtime.tokenizer import TextTokenizer

Told = list[tuple[int, float]]  # ids with their log-probabilities, best first

LOWEST = -1e9  # what stands for minus infinity in scores, as in transformers


@dataclass(frozen=True)
class Hypothesis:
    """A finished beam: tokens with the one that ended it, their log-probabilities, the normalized score, why it ended.

    told: for each token the best ones that there were, with their log-probabilities, as many as were asked for.
    """

    tokens: list[int]
    logprobs: list[float]
    score: float
    reason: str
    told: Sequence[Told] = ()


class Beams:
    """The beams of one input: ids `tokens` int64 [beams, length] with their `logprobs` float32, and the summed `scores` float32 [beams]."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.finished: list[Hypothesis] = []
        self.open = True  # a running beam may still be better than the worst finished one
        self.done, self.cached_tokens = False, 0
        self.begin(1)

    def begin(self, beams: int) -> None:
        """As many beams as rows stand for the input; all are equal at first, so only one of them counts."""
        self.tokens = np.zeros((beams, 0), np.int64)
        self.logprobs = np.zeros((beams, 0), np.float32)
        self.scores = np.full(beams, LOWEST, np.float32)
        self.scores[0] = 0
        self.told: list[list[Told]] = [[] for _ in range(beams)]

    @property
    def written(self) -> Sequence[int]:
        """No new tokens to go on behind: beams that change their batch begin again."""
        return ()

    def drop(self) -> None:
        """Give up."""
        self.done = True

    def finish(self, hypothesis: Hypothesis, search: Search) -> None:
        """Take a hypothesis if it is among the best; those of one step compete even when early_stopping ends the search with it."""
        self.finished.append(hypothesis)
        self.finished.sort(key=lambda h: -h.score)
        del self.finished[search.beam :]

    def settle(self, best: float, length: int, all_ended: bool, search: Search) -> None:
        """See whether the search goes on; `best`: the summed log-probability of the best running beam after `length` tokens."""
        full = len(self.finished) >= search.beam
        if full:
            longest = self.request.limit if search.early_stopping == "never" and search.length_penalty > 0 else length
            self.open = self.open and best / longest**search.length_penalty > self.finished[-1].score
        self.done = self.done or not self.open or all_ended or (full and search.early_stopping is True)

    def advance(
        self,
        candidates: Sequence[Candidate],
        search: Search,
        eos: tuple[int, ...],
        tokenizer: TextTokenizer | None,
        told: Sequence[Told] = (),
    ) -> np.ndarray:
        """Sort the candidates into finished and running; returns the row that each row's beam goes on from, int64 [beams].

        told: of each beam the best tokens that there were, where somebody wants to know.
        """
        beams, length = search.beam, self.tokens.shape[1] + 1
        kept: list[Candidate] = []
        ended: list[Candidate] = []
        for rank, (score, parent, token) in enumerate(candidates):
            reason = self._reason(parent, token, length, eos, search, tokenizer)
            (ended if reason else kept).append((score, parent, token))
            if reason and rank < beams and score > LOWEST / 2:  # what only fills a place is no answer
                steps = [*self.logprobs[parent].tolist(), score - float(self.scores[parent])]
                ids = [*self.tokens[parent].tolist(), token]
                tops = [*self.told[parent], told[parent]] if told else ()
                self.finish(Hypothesis(ids, steps, score / length**search.length_penalty, reason, tops), search)
        all_ended = not kept
        kept += [(score + LOWEST, parent, token) for score, parent, token in ended]  # places that no running candidate fills
        kept += [(kept[0][0] + LOWEST, *kept[0][1:])] * (beams - len(kept))
        self.settle(kept[0][0], length, all_ended, search)
        rows = _placed(kept[:beams], beams if len(self.tokens) == beams else 0)
        parents = np.array([parent for _, parent, _ in rows])
        scores = np.array([score for score, _, _ in rows], np.float32)
        self.logprobs = np.concatenate([self.logprobs[parents], (scores - self.scores[parents])[:, None]], 1)
        self.tokens = np.concatenate([self.tokens[parents], np.array([[token] for _, _, token in rows])], 1)
        self.scores = scores
        self.told = [[*self.told[parent], told[parent]] if told else [] for parent in parents.tolist()]
        return parents

    def _reason(self, parent: int, token: int, length: int, eos: tuple[int, ...], search: Search, tokenizer: TextTokenizer | None) -> str:
        if token in eos:
            return "eos"
        ids = [*self.tokens[parent].tolist(), token]
        if token in self.request.ends or self.request.ended_by(ids):
            return "stop"
        if search.stop and tokenizer is not None:
            text = tokenizer.decode(ids)
            if any(s in text for s in search.stop):
                return "stop"
        return "length" if length >= self.request.limit else ""


def _placed(kept: Sequence[Candidate], rows: int) -> list[Candidate]:
    """The candidates by row: the first child of a parent in the parent's row, the others in what is left of `rows` (0: as they come)."""
    if not rows:
        return list(kept)
    placed: dict[int, Candidate] = {}
    others = []
    for candidate in kept:
        if candidate[1] in placed:
            others.append(candidate)
        else:
            placed[candidate[1]] = candidate
    left = iter(others)
    return [placed[row] if row in placed else next(left) for row in range(rows)]


class BeamBatch(Batch[Beams]):
    """Inputs whose beams decode together: as many inputs as `search.batch_size`. UsageError: too small a vocabulary for the beams."""

    def __init__(self, engine: Engine, search: Search, constraints: Constraints, tokenizer: TextTokenizer | None) -> None:
        super().__init__(engine, search)
        self._constraints, self._tokenizer = constraints, tokenizer
        vocabulary, ends = engine.vocab_size, len({*engine.config.eos_ids, *search.stop_token_ids})
        self._count = max(2, 1 + ends) * search.beam
        if self._count + ends > vocabulary:
            most = (vocabulary - ends) * search.beam // self._count
            raise UsageError(f"beam is {search.beam}, expected at most {most} with a vocabulary of {vocabulary}")
        self._selector: BeamSelector | None = None

    def _empty(self) -> BeamBatch:
        return BeamBatch(self._engine, self._search, self._constraints, self._tokenizer)

    def _advance(self, state: DecoderState) -> list[Beams]:
        assert self._selector is not None
        inputs, width = self._decodings, state.beams
        self._selector.scores[:] = [one.scores for one in inputs]
        rules = self._constraints.at(
            [one.request for one in inputs for _ in range(width)],
            [row for one in inputs for row in one.tokens],
            [one.done for one in inputs for _ in range(width)],
        )
        self._selector.prepare(rules, self._count, max((one.request.top for one in inputs if not one.done), default=0))
        state.advance()
        candidates = self._selector.select(rules, self._count)
        ended: list[Beams] = []
        moves: list[Move] = []
        for place, one in enumerate(inputs):
            if one.done:  # waits unchanged until its place is taken
                if width != self._search.beam:
                    one.begin(self._search.beam)
                continue
            before = one.tokens
            rows, top = range(place * width, (place + 1) * width), one.request.top
            told = [self._selector.told(row, top) for row in rows] if top else ()
            parents = one.advance(candidates[place], self._search, self._engine.config.eos_ids, self._tokenizer, told)
            if one.done:
                ended.append(one)
            elif width == self._search.beam:
                moves += _moves(before, parents, place * width, len(one.request.prefix))
        if width != self._search.beam:
            state.expand(self._search.beam)
            self._rows_changed(state)
        else:
            state.copy(moves)
        for place, one in enumerate(inputs):
            own = slice(place * state.beams, (place + 1) * state.beams)
            state.active[own] = not one.done
            if not one.done:
                state.ids[own, 0] = one.tokens[:, -1]
        return ended

    def _placeholder(self, like: Beams) -> Beams:
        placeholder = Beams(like.request)
        placeholder.begin(self._search.beam)
        placeholder.drop()
        return placeholder

    def _rows_changed(self, state: DecoderState) -> None:
        self._selector = BeamSelector(self._engine, state, len(self._decodings))

    def _begin(self, decoding: Beams, beams: int) -> None:
        decoding.begin(beams)

    def _first_rows(self, decodings: list[Beams]) -> int:
        # Beams that start from one token are rows at once; a longer prefix is run once for all of them.
        return self._search.beam if all(len(decoding.request.prefix) == 1 for decoding in decodings) else 1


def _moves(before: np.ndarray, parents: np.ndarray, first: int, prefix: int) -> list[Move]:
    """Cache rows to copy for one input: tokens int64 [beams, length] before this step, and each row's parent."""
    moves = []
    for row, parent in enumerate(parents.tolist()):
        if row != parent:
            different = before[row] != before[parent]
            moves.append((first + row, first + parent, prefix + int(different.argmax() if different.any() else len(different))))
    return moves
