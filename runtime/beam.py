"""Beam search with the semantics of transformers' `generate` (its vectorized beam search, from 4.50 on).

Each step the best continuations are candidates: for every beam one more than there are end tokens, at least two. Those that end (eos, a
stop string, the length limit) and are among the first `beams` become finished hypotheses, scored by sum of log-probabilities /
tokens ** length_penalty; the best `beams` others run on. An input is done when no running beam can beat its worst finished hypothesis, or,
with early_stopping=True, when it has `beams` of them.

A beam that goes on from its parent stays in the parent's row of the cache: only where a parent has several children, the rows of beams that
ended are overwritten, from the first token on in which the two differ.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxport.errors import UsageError
from onnxport.runtime.cache import Move
from onnxport.runtime.choose import BeamChooser, Candidate
from onnxport.runtime.constraints import Constraints
from onnxport.runtime.engine import Engine
from onnxport.runtime.job import Job
from onnxport.runtime.options import Search
from onnxport.runtime.running import Running
from onnxport.runtime.sources import Sources, Taken, together
from onnxport.runtime.tokenizer import TextTokenizer

LOWEST = -1e9  # what stands for minus infinity in scores, as in transformers


@dataclass(frozen=True)
class Hypothesis:
    """A finished beam: tokens with the final eos, their log-probabilities, the normalized score, why it ended."""

    tokens: list[int]
    logprobs: list[float]
    score: float
    reason: str


class Beams:
    """The beams of one input: ids `tokens` int64 [beams, length] with their `logprobs` float32, and the summed `scores` float32 [beams]."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.finished: list[Hypothesis] = []
        self.open = True  # a running beam may still be better than the worst finished one
        self.done = False
        self.begin(1)

    def begin(self, beams: int) -> None:
        """As many beams as rows stand for the input; all are equal at first, so only one of them counts."""
        self.tokens = np.zeros((beams, 0), np.int64)
        self.logprobs = np.zeros((beams, 0), np.float32)
        self.scores = np.full(beams, LOWEST, np.float32)
        self.scores[0] = 0

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
            longest = self.job.limit if search.early_stopping == "never" and search.length_penalty > 0 else length
            self.open = self.open and best / longest**search.length_penalty > self.finished[-1].score
        self.done = self.done or not self.open or all_ended or (full and search.early_stopping is True)

    def advance(self, candidates: Sequence[Candidate], search: Search, eos: tuple[int, ...], tokenizer: TextTokenizer | None) -> np.ndarray:
        """Sort the candidates into finished and running; returns the row that each row's beam goes on from, int64 [beams]."""
        beams, length = search.beam, self.tokens.shape[1] + 1
        kept: list[Candidate] = []
        ended: list[Candidate] = []
        for rank, (score, parent, token) in enumerate(candidates):
            reason = self._reason(parent, token, length, eos, search, tokenizer)
            (ended if reason else kept).append((score, parent, token))
            if reason and rank < beams and score > LOWEST / 2:  # what only fills a place is no answer
                steps = [*self.logprobs[parent].tolist(), score - float(self.scores[parent])]
                ids = [*self.tokens[parent].tolist(), token]
                self.finish(Hypothesis(ids, steps, score / length**search.length_penalty, reason), search)
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
        return parents

    def _reason(self, parent: int, token: int, length: int, eos: tuple[int, ...], search: Search, tokenizer: TextTokenizer | None) -> str:
        if token in eos:
            return "eos"
        if search.stop and tokenizer is not None:
            text = tokenizer.decode([*self.tokens[parent].tolist(), token])
            if any(s in text for s in search.stop):
                return "stop"
        return "length" if length >= self.job.limit else ""


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


class BeamBatch:
    """Inputs whose beams decode together: as many inputs as `search.batch_size`. UsageError: too small a vocabulary for the beams."""

    def __init__(self, engine: Engine, search: Search, constraints: Constraints, tokenizer: TextTokenizer | None) -> None:
        self._engine, self._search, self._constraints, self._tokenizer = engine, search, constraints, tokenizer
        vocabulary, ends = engine.vocab_size, len(engine.config.eos_ids)
        self._count = max(2, 1 + ends) * search.beam
        if self._count + ends > vocabulary:
            most = (vocabulary - ends) * search.beam // self._count
            raise UsageError(f"beam is {search.beam}, expected at most {most} with a vocabulary of {vocabulary}")
        self._sources: Sources[Beams] = Sources(engine)
        self._inputs: list[Beams] = []  # by place
        self._running: Running | None = None
        self._chooser: BeamChooser | None = None

    def step(self, waiting: deque[Beams]) -> list[Beams]:
        """Take inputs from `waiting` while there is room, and move each one token on; returns the inputs that ended."""
        self._admit(waiting)
        if self._running is None or self._chooser is None:
            return []
        running, inputs, width = self._running, self._inputs, self._running.beams
        self._chooser.scores[:] = [one.scores for one in inputs]
        rules = self._constraints.at([one.job for one in inputs for _ in range(width)], [row for one in inputs for row in one.tokens])
        self._chooser.prepare(rules, self._count)
        running.advance()
        candidates = self._chooser.choose(rules, self._count)
        ended, moves = [], []
        for place, one in enumerate(inputs):
            if one.done:  # waits unchanged until its place is taken
                if width != self._search.beam:
                    one.begin(self._search.beam)
                continue
            before = one.tokens
            parents = one.advance(candidates[place], self._search, self._engine.config.eos_ids, self._tokenizer)
            if one.done:
                ended.append(one)
            elif width == self._search.beam:
                moves += _moves(before, parents, place * width, len(one.job.prefix))
        if width != self._search.beam:
            running.expand(self._search.beam)
            self._choose_anew()
        else:
            running.copy(moves)
        for place, one in enumerate(inputs):
            rows = slice(place * running.beams, (place + 1) * running.beams)
            running.active[rows] = not one.done
            if not one.done:
                running.ids[rows, 0] = one.tokens[:, -1]
        return ended

    def _admit(self, waiting: deque[Beams]) -> None:
        free = [i for i, one in enumerate(self._inputs) if one.done]
        live, most = len(self._inputs) - len(free), self._search.batch_size
        if not live:
            self._start([t for t in self._sources.take(waiting, most) if not t[0].done])
            return
        assert self._running is not None
        if joining := min(self._sources.can_join(waiting), most - live):
            if joining > len(free):
                self._running.widen(live + joining)
                free += range(len(self._inputs), live + joining)
                for _ in range(live + joining - len(self._inputs)):
                    self._inputs.append(Beams(self._inputs[0].job))
                    self._inputs[-1].begin(self._search.beam)
                    self._inputs[-1].drop()
                self._choose_anew()
            taken = self._sources.take(waiting, joining)
            places = free[: len(taken)]
            for place, (one, _) in zip(places, taken, strict=True):
                one.begin(self._search.beam)
                self._inputs[place] = one
            self._running.join(places, [one.job.prefix[0] for one, _ in taken], [e for _, e in taken if e is not None])
        elif 4 * live <= 3 * len(self._inputs):  # finished beams cost as much as others: go on without them
            order = self._running.keep([i for i, one in enumerate(self._inputs) if not one.done])
            self._inputs = [self._inputs[i] for i in order]
            self._choose_anew()

    def _start(self, taken: list[Taken[Beams]]) -> None:
        self._inputs = [one for one, _ in taken]
        if not taken:
            self._running = self._chooser = None
            return
        jobs = [one.job for one in self._inputs]
        # Beams that start from one token are rows at once; a longer prefix is run once for all of them.
        width = self._search.beam if all(len(job.prefix) == 1 for job in jobs) else 1
        prefixes = [job.prefix for job in jobs for _ in range(width)]
        new = max(job.limit for job in jobs)
        self._running = Running(self._engine, together([e for _, e in taken]), prefixes, new, width)
        for one in self._inputs:
            one.begin(width)
        self._choose_anew()

    def _choose_anew(self) -> None:
        assert self._running is not None
        self._chooser = BeamChooser(self._engine, self._running, len(self._inputs))


def _moves(before: np.ndarray, parents: np.ndarray, first: int, prefix: int) -> list[Move]:
    """Cache rows to copy for one input: tokens int64 [beams, length] before this step, and each row's parent."""
    moves = []
    for row, parent in enumerate(parents.tolist()):
        if row != parent:
            different = before[row] != before[parent]
            moves.append((first + row, first + parent, prefix + int(different.argmax() if different.any() else len(different))))
    return moves
