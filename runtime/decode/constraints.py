"""Constraints on the next tokens: the model's own rules and the caller's, evaluated for every step of a batch.

The rules and their order are those of the logits processors of transformers' `generate`: a repetition penalty, then repeated n-grams (of an
answer, of its source), bad words and an early end are banned; a forced first token or a forced end sets all of that aside; suppressed ids
are banned even there. Before all of them a caller's bias is added to logits; after them only what an answer's format allows is left, but
for a forced first token, which is no part of the answer. `token_selection` applies them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxport.runtime.bundle.manifest import GenerationConfig
from onnxport.runtime.decode.batch import Request
from onnxport.runtime.options import Search

if TYPE_CHECKING:
    from onnxport.runtime.structured.matcher import AnswerFormat

Rows = Sequence[Any]  # new ids of every row: lists, or int64 arrays
NO_PAIRS, NO_VALUES = np.zeros((0, 2), np.int64), np.zeros(0, np.float32)


@dataclass(frozen=True)
class Rules:
    """What holds for the rows of a batch at one step.

    suppressed: int64 [S], sorted, ids that no row may take; `forbidden` holds the same ids. banned: int64 [N, 2], pairs (row, id).
    forced: row → the ids it has to choose from; such a row obeys nothing else. history: int64 [rows, L] for the repetition penalty, a row's
    ids so far, padded by its first; None without a penalty. renormalize: log-probabilities are shares among the ids that may come.
    biased, bias: int64 [N, 2], pairs (row, id), and float32 [N], what is added to their logits. formats: row → the format of its answer,
    and its new ids so far.
    """

    suppressed: np.ndarray
    forbidden: frozenset[int]
    banned: np.ndarray
    forced: Mapping[int, tuple[int, ...]]
    history: np.ndarray | None
    penalty: float
    renormalize: bool
    biased: np.ndarray = field(default_factory=lambda: NO_PAIRS)
    bias: np.ndarray = field(default_factory=lambda: NO_VALUES)
    formats: Mapping[int, tuple[AnswerFormat, Sequence[int]]] = field(default_factory=dict)

    @property
    def by_row(self) -> bool:
        """True where rows have rules of their own, so that their logits must be changed before a selection."""
        return self.history is not None or len(self.banned) > 0 or len(self.biased) > 0

    def allows(self, row: int, token: int) -> bool:
        """Whether the format of a row's answer has this token next."""
        found = self.formats.get(row)
        return found is None or found[0].allows(found[1], token)


class Constraints:
    """The rules of one call."""

    def __init__(self, config: GenerationConfig, search: Search) -> None:
        own, end = config.search, config.eos_ids
        always = {*own.suppressed, *(word[0] for word in own.bad_words if len(word) == 1 and word[0] not in end)}
        self._usual, self._early, self._search = _ids(always), _ids(always.union(end)), search
        self._ends = end
        forced = own.forced_bos_id if search.forced_bos_id is None else search.forced_bos_id
        self._first, self._begin = _unsuppressed(forced, own.suppressed), own.begin_suppressed
        self._last = _unsuppressed(own.forced_eos_ids, own.suppressed)
        self._words = [word for word in own.bad_words if len(word) > 1]
        self._source_ngram = own.encoder_no_repeat_ngram
        self._ngram, self._penalty, self._renormalize = search.no_repeat_ngram, search.repetition_penalty, own.renormalize

    def at(self, requests: Sequence[Request], tokens: Rows, done: Sequence[bool] | None = None) -> Rules:
        """The rules for each row's next token: requests[i] is row i's, tokens[i] its new ids so far.

        Of rows that are done no format counts.
        """
        suppressed, forbidden = self._usual
        pairs: list[tuple[int, int]] = []
        history = None
        if self._search.min_new_tokens or self._search.min_total_tokens:
            least = [self._search.least(len(request.prefix)) for request in requests]
            early = [row for row, new in enumerate(tokens) if len(new) < least[row]]
            if len(early) == len(requests):
                suppressed, forbidden = self._early
            else:
                pairs += [(row, i) for row in early for i in self._ends]
            pairs += [(row, i) for row in early for i in requests[row].ends]
        if self._begin:
            pairs += [(row, i) for row, request in enumerate(requests) if len(tokens[row]) == self._beginning(request) for i in self._begin]
        if self._words or self._ngram or self._source_ngram or self._penalty != 1.0:
            seen = [np.array([*request.prefix, *new], np.int64) for request, new in zip(requests, tokens, strict=True)]
            if self._words or self._ngram:
                pairs += [(row, i) for row, ids in enumerate(seen) for i in self._completing(ids)]
            if self._source_ngram:
                sources = [np.array(request.source or request.prefix, np.int64) for request in requests]  # or a language model's prompt
                pairs += [(row, i) for row, ids in enumerate(seen) for i in _following(sources[row], ids, self._source_ngram)]
            if self._penalty != 1.0:
                history = _padded(seen)
        banned = np.array(sorted(set(pairs)), np.int64) if pairs else NO_PAIRS
        rules = Rules(suppressed, forbidden, banned, self._forced(requests, tokens), history, self._penalty, self._renormalize)
        return _with_own(rules, requests, tokens, done)

    def _forced(self, requests: Sequence[Request], tokens: Rows) -> dict[int, tuple[int, ...]]:
        forced = {}
        if self._first:  # only a decoder that starts from one id has its second forced
            forced = {row: self._first for row, request in enumerate(requests) if len(request.prefix) == 1 and not len(tokens[row])}
        if self._last:
            last = (row for row, request in enumerate(requests) if len(tokens[row]) == request.limit - 1)
            forced |= {row: self._last for row in last if requests[row].answer_format is None}  # a format says itself where it may end
        return forced

    def _beginning(self, request: Request) -> int:
        """The step at which ids that may not begin are banned: a forced first token does not count."""
        return int(bool(self._first) and len(request.prefix) == 1)

    def _completing(self, ids: np.ndarray) -> Iterator[int]:
        """Ids that would complete a bad word or an n-gram that `ids` hold already."""
        for word in self._words:
            start = len(ids) + 1 - len(word)
            if start >= 0 and tuple(ids[start:]) == word[:-1]:
                yield word[-1]
        if self._ngram:
            yield from _following(ids, ids, self._ngram)


def _with_own(rules: Rules, requests: Sequence[Request], tokens: Rows, done: Sequence[bool] | None) -> Rules:
    """With what single requests ask for."""
    biased = [(row, token, value) for row, request in enumerate(requests) for token, value in request.bias]
    formats = {
        row: (request.answer_format, tokens[row])
        for row, request in enumerate(requests)
        if request.answer_format is not None and not (done and done[row]) and row not in rules.forced
    }
    if not biased and not formats:
        return rules
    pairs = np.array([pair[:2] for pair in biased], np.int64).reshape(-1, 2)
    return replace(rules, biased=pairs, bias=np.array([pair[2] for pair in biased], np.float32), formats=formats)


def _following(text: np.ndarray, ids: np.ndarray, size: int) -> list[int]:
    """Ids that follow in `text` on the last `size - 1` of `ids`; none where either is too short."""
    if len(text) < size or len(ids) + 1 < size:
        return []
    windows = np.lib.stride_tricks.sliding_window_view(text, size)
    same = (windows[:, :-1] == ids[len(ids) + 1 - size :]).all(1)
    found: list[int] = windows[same, -1].tolist()
    return found


def _ids(ids: Iterable[int]) -> tuple[np.ndarray, frozenset[int]]:
    return np.array(sorted(ids), np.int64), frozenset(ids)


def _unsuppressed(forced: int | tuple[int, ...] | None, suppressed: Collection[int]) -> tuple[int, ...]:
    """The forced ids that are not suppressed; all of them where none is left, since something has to come."""
    ids = () if forced is None else (forced,) if isinstance(forced, int) else forced
    return tuple(sorted(i for i in ids if i not in suppressed)) or ids


def _padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """int64 [rows, longest], each row filled up with its first id."""
    longest = max(map(len, rows))
    return np.stack([np.concatenate([row, np.full(longest - len(row), row[0], np.int64)]) for row in rows])
