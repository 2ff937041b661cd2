"""Speculation: guesses of a row's next tokens, which one pass of the model checks together, so that a pass gives more than one token.

It changes no answer. A pass gives the logits behind every guess; the same selection as ever takes a token from each, with the row's own
rules and random numbers; and what was guessed counts up to the first token that is another. So a sample follows the model's distribution
however its guesses were made: it is the one that would have been drawn without them.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from onnxport.runtime.decode.batch import Request, merged
from onnxport.runtime.decode.constraints import Constraints
from onnxport.runtime.decode.engine import Engine
from onnxport.runtime.decode.guess_policy import Acceptance, Chance, best_count
from onnxport.runtime.decode.state import DecoderState
from onnxport.runtime.decode.token_selection import Draw, TokenSelector
from onnxport.runtime.options import Search

MOST_DRAFTED = 8  # tokens that a draft guesses for a pass
CONTEXT = 8  # tokens of a text's end that are compared with what stood before
CANDIDATES = 16  # latest places that are compared
HOPE, HOPE_OF_DRAFT = 0.6, 0.9  # a draft is a variant of the checked model, or a small one of its kind
FIRST_DRAFT = 0.5  # of a plain pass, that a guess of a draft takes until it was measured
SURE = math.log(0.4)  # behind a guess that no row's draft is surer of than this, it guesses no further
REST, TRIES = 32, 3  # steps for which a draft that did not help rests at first, and how often it is tried again


class GuessedRow(Protocol):
    """What guesses are made of."""

    @property
    def request(self) -> Request:
        """The input that it answers."""
        ...

    @property
    def tokens(self) -> list[int]:
        """New tokens so far."""
        ...

    @property
    def done(self) -> bool:
        """True when it gets no more tokens."""
        ...

    def draw(self, ahead: int) -> Draw | None:
        """How the next token but `ahead` is drawn; None where it is the best."""
        ...


class Guesser(Protocol):
    """Guesses for the rows of a batch. each: seconds that one more guess of all rows takes, None where that is not known yet."""

    each: float | None

    def guess(self, rows: Sequence[GuessedRow], most: Sequence[int]) -> list[list[int]]:
        """At most most[i] guesses of what follows in row i."""
        ...


class Lookup:
    """Guesses that what followed the last tokens when they stood in the text before will follow again."""

    each: float | None = 0.0

    def __init__(self) -> None:
        self._texts: dict[int, tuple[GuessedRow, Text]] = {}

    def guess(self, rows: Sequence[GuessedRow], most: Sequence[int]) -> list[list[int]]:
        """As of `Guesser`."""
        self._texts = {key: one for key, one in self._texts.items() if not one[0].done}
        return [self._text(row).following(count) if count else [] for row, count in zip(rows, most, strict=True)]

    def _text(self, row: GuessedRow) -> Text:
        if id(row) not in self._texts:
            self._texts[id(row)] = row, Text([*row.request.source, *row.request.prefix])
        text = self._texts[id(row)][1]
        text.extend(row.tokens[len(text.ids) - text.begun :])
        return text


class Text:
    """Ids with an index of the places where each pair of them stands. begun: how many there were at first."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids: list[int] = []
        self._places: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        self.extend(ids)
        self.begun = len(self.ids)

    def extend(self, ids: Sequence[int]) -> None:
        """Put ids behind the others."""
        for one in ids:
            self.ids.append(one)
            if len(self.ids) > 1:
                self._places[self.ids[-2], one].append(len(self.ids))

    def following(self, count: int) -> list[int]:
        """What followed the last two ids, at the place where most of those before them were the same, too: the latest of these."""
        ids, end = self.ids, len(self.ids)
        places = self._places[ids[-2], ids[-1]][-CANDIDATES - 1 : -1] if end > 1 else []  # the last is the end itself
        if not places:
            return []

        def same(place: int) -> int:
            return next((i for i in range(3, CONTEXT) if i > place or ids[place - i] != ids[end - i]), CONTEXT)

        best = max(reversed(places), key=same)
        found: list[int] = []
        for i in range(count):  # a text that repeats itself goes on so
            found.append(ids[best + i] if best + i < end else found[best + i - end])
        return found


class Draft:
    """Guesses what another model with the same vocabulary answers, by the same search, rules and random numbers."""

    def __init__(self, engine: Engine, search: Search, constraints: Constraints) -> None:
        self._engine, self._search, self._constraints = engine, search, constraints
        self._groups: list[DraftedRows] = []
        self.each: float | None = None

    def guess(self, rows: Sequence[GuessedRow], most: Sequence[int]) -> list[list[int]]:
        """As of `Guesser`; rows that are new are read from their beginning, together. None for rows beyond the draft's own positions."""
        begun = time.perf_counter()
        most = [min(count, guessable(self._engine, row)) for row, count in zip(rows, most, strict=True)]
        there = {id(row) for group in self._groups for row in group.rows}
        fresh = [row for row, count in zip(rows, most, strict=True) if count and id(row) not in there]
        if fresh:
            self._groups.append(DraftedRows(self._engine, self._search, self._constraints, fresh))
        counts = {id(row): count for row, count in zip(rows, most, strict=True)}
        found: dict[int, list[int]] = {}
        for group in self._groups:
            found |= group.guess(counts)
        self._groups = [group for group in self._groups if group.live]
        longest = max(map(len, found.values()), default=0)
        if longest and not fresh:
            spent = (time.perf_counter() - begun) / longest
            self.each = spent if self.each is None else min(spent, 1.2 * self.each)  # one slow moment is not believed
        return [found.get(id(row), []) for row in rows]


class DraftedRows:
    """Rows that a draft began together, with its own cache of them."""

    def __init__(self, engine: Engine, search: Search, constraints: Constraints, rows: Sequence[GuessedRow]) -> None:
        self.rows = list(rows)
        self._engine, self._search, self._constraints = engine, search, constraints
        self._known = [0] * len(rows)  # of each row: new tokens that the cache holds, or will with its first run,
        self._fed: list[list[int]] = [[] for _ in rows]  # and the guesses behind them that it holds
        cross = None
        if engine.encoder is not None:
            encoded = engine.encode([row.request.source for row in rows])
            cross = merged([(encoded, i) for i in range(len(rows))])
        texts = [[*row.request.prefix, *row.tokens] for row in rows]
        self._state = DecoderState(engine, cross, texts, max(row.request.limit for row in rows))
        self._selector: TokenSelector | None = None
        self._begun, self._sure = False, True

    @property
    def live(self) -> bool:
        """Whether there is a row that is guessed for."""
        return not all(map(self._is_over, self.rows))

    def _is_over(self, row: GuessedRow) -> bool:
        """Whether nothing more is guessed for a row: it ended, or is beyond the draft's positions."""
        return row.done or not guessable(self._engine, row)

    def guess(self, most: dict[int, int]) -> dict[int, list[int]]:
        """By a row's id(), what the draft would answer next: at most `most` tokens."""
        self._compact()
        state = self._state
        state.active[:] = [not self._is_over(row) for row in self.rows]
        counts = [most.get(id(row), 0) if active else 0 for row, active in zip(self.rows, state.active.tolist(), strict=True)]
        found: list[list[int]] = [[] for _ in self.rows]
        if not any(counts):
            return {}
        self._run(found, 0)
        if self._engine.shortest_window is not None:  # what the draft feeds itself may have to be taken back
            least = 1 + int(state.room()[state.active].min())
            counts = [min(count, least) for count in counts]
        for ahead in range(1, max(counts)):
            if not self._sure:
                break
            for place, count in enumerate(counts):
                if count <= ahead and state.active[place]:
                    state.active[place] = False
                    self._forget_last(place)  # a step writes a row that stands still over its last entry
                elif state.active[place]:
                    self._fed[place].append(found[place][-1])
            self._run(found, ahead)
        return {id(row): guesses[:count] for row, guesses, count in zip(self.rows, found, counts, strict=True)}

    def _run(self, found: list[list[int]], ahead: int) -> None:
        """One more guess for each row that goes on."""
        state = self._state
        if self._selector is None:
            self._selector = TokenSelector(self._engine, state)
        texts = [[*row.tokens, *guesses] for row, guesses in zip(self.rows, found, strict=True)]
        still = [not active for active in state.active.tolist()]
        rules = self._constraints.at([row.request for row in self.rows], texts, still)
        draws = [row.draw(ahead) for row in self.rows]
        self._selector.prepare(rules, draws)
        if ahead:
            state.step()
        elif not self._begun:
            state.advance()
            self._begun, self._known = True, [len(row.tokens) for row in self.rows]
        else:
            self._catch_up()
        tokens, logprobs = self._selector.select(rules, draws, guessed=True)
        self._sure = False
        for place, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True)):
            if state.active[place]:
                found[place].append(token)
                self._sure |= logprob >= SURE

    def _catch_up(self) -> None:
        """Run what rows have become since; entries of guesses that came true stay."""
        state = self._state
        new: list[list[int]] = []
        for place, row in enumerate(self.rows):
            if not state.active[place]:
                new.append([])
                continue
            since = row.tokens[self._known[place] :]
            right = next((i for i, (a, b) in enumerate(zip(self._fed[place], since, strict=False)) if a != b), None)
            right = min(len(self._fed[place]), max(len(since) - 1, 0)) if right is None else right
            state.lengths[place] = len(row.request.prefix) + self._known[place] + right
            new.append(since[right:])
            self._known[place], self._fed[place] = len(row.tokens), []
        if all(len(ids) <= 1 for ids in new):
            state.ids[:, 0] = [ids[0] if ids else 0 for ids in new]
            state.step()
        else:
            state.extend(new)

    def _forget_last(self, place: int) -> None:
        if self._fed[place]:
            self._fed[place].pop()
        else:
            self._known[place] -= 1

    def _compact(self) -> None:
        """Rows for which nothing more is guessed are given up, so that they cost nothing."""
        left = [place for place, row in enumerate(self.rows) if not self._is_over(row)]
        if left and 4 * len(left) <= 3 * len(self.rows) and self._begun:
            order = self._state.compact(left)
            self.rows, self._known = [self.rows[i] for i in order], [self._known[i] for i in order]
            self._fed = [self._fed[i] for i in order]
            self._selector = None


def guessable(engine: Engine, row: GuessedRow) -> int:
    """How many tokens a draft can guess for a row: its texts may be shorter than those of the model that it guesses for."""
    config, request = engine.config, row.request
    if request.source and config.source_length is not None and len(request.source) > config.source_length:
        return 0
    if config.max_length is None:
        return MOST_DRAFTED
    return max(config.max_length + 1 - len(request.prefix) - len(row.tokens), 0)  # the last guess is not read


@dataclass
class Speculation:
    """Guesses of a batch, and what is learned from them. most: guesses of a row in one pass. hope: how often guesses come true, before
    that is known: too little, and none is ever tried."""

    engine: Engine
    guesser: Guesser
    most: int
    hope: float
    _rates: dict[int, tuple[GuessedRow, Acceptance]] = field(default_factory=dict)
    _thought: list[list[int]] = field(default_factory=list)  # what was guessed, checked or not
    _rest: int = 0
    _failures: int = 0
    _successes: int = 0

    @classmethod
    def of(cls, engine: Engine, search: Search, constraints: Constraints) -> Speculation | None:
        """As a search asks for it; None where it does not."""
        if search.draft is not None:
            return cls(engine, Draft(search.draft, search, constraints), MOST_DRAFTED, HOPE_OF_DRAFT)
        return cls(engine, Lookup(), search.lookup, HOPE) if search.lookup else None

    def guesses(self, rows: Sequence[GuessedRow], state: DecoderState) -> list[list[int]]:
        """The guesses of each row to check in the next pass; none at all where a plain pass is better."""
        self._thought = [[] for _ in rows]
        costs, count = self.engine.pass_costs, state.rows
        if not (state.begun and self.engine.takes_several(count)):
            return self._thought
        room = state.room().tolist() if self.engine.shortest_window is not None else [self.most + 1] * len(rows)
        most = [
            0 if row.done or not row.tokens else max(min(self.most, row.request.limit - len(row.tokens) - 1, left - 1), 0)
            for row, left in zip(rows, room, strict=True)
        ]
        if self._is_free:
            self._thought = self.guesser.guess(rows, most)
            most = [len(guesses) for guesses in self._thought]
        live = sum(not row.done for row in rows)
        if costs.needs_plain(count) or not any(most) or self._rests():
            return [[] for _ in rows]
        chances = [Chance(self._rate(row).rate, can) for row, can in zip(rows, most, strict=True) if can]
        each = FIRST_DRAFT * costs.seconds(count, 1) if self.guesser.each is None else self.guesser.each
        best = best_count(costs, count, live, chances, each)
        if self._is_free:
            return [guesses[:best] for guesses in self._thought]
        if not best:
            self._give_rest()
            return self._thought
        self._successes += 1
        if self._successes == REST:
            self._failures = 0
        self._thought = self.guesser.guess(rows, [min(best, can) for can in most])
        return self._thought

    def learn(self, rows: Sequence[GuessedRow], before: Sequence[int]) -> None:
        """Compare what was guessed with what came: row i had before[i] tokens."""
        for row, guesses, begun in zip(rows, self._thought, before, strict=True):
            came = row.tokens[begun:]
            if guesses and came:
                right = next((i for i, (a, b) in enumerate(zip(guesses, came, strict=False)) if a != b), min(len(guesses), len(came)))
                self._rate(row).add(right, right < min(len(guesses), len(came)))
        if len(self._rates) > 2 * len(rows):
            self._rates = {key: one for key, one in self._rates.items() if not one[0].done}

    @property
    def _is_free(self) -> bool:
        return isinstance(self.guesser, Lookup)

    def _rate(self, row: GuessedRow) -> Acceptance:
        return self._rates.setdefault(id(row), (row, Acceptance.expected(self.hope)))[1]

    def _rests(self) -> bool:
        """Whether a draft that did not help is left alone still; after a while it is tried again."""
        if self._rest:
            self._rest -= 1
            if not self._rest and self._failures <= TRIES:
                for _, rate in self._rates.values():
                    again = Acceptance.expected(self.hope)
                    rate.right, rate.tried = again.right, again.tried
            return True
        return self._failures > TRIES

    def _give_rest(self) -> None:
        self._rest, self._successes = REST << self._failures, 0
        self._failures += 1
