"""Scoring of texts: the log-probability of every token under a model, and the likelihood of long texts in windows.

The decoder gives the logits of one position a run, so rows go through the cache a token at a time, many rows together; no more than one
step's logits are ever held. What stands before the first scored token is prefilled in chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from numbers import Integral

import numpy as np

from onnxport.errors import DataError, TextError, UsageError
from onnxport.runtime.bundle.manifest import GenerationConfig
from onnxport.runtime.decode.engine import Engine
from onnxport.runtime.decode.generator import Input
from onnxport.runtime.decode.state import NO_IDS, DecoderState
from onnxport.runtime.options import is_ordered
from onnxport.runtime.shown import Shown
from onnxport.runtime.tokenizer import TextTokenizer, check_ids, check_text

POSITIONS = 8192  # of a batch, what is read before counted: more take memory and are no faster
WINDOW = 1024  # of a model without a length of its own


@dataclass(frozen=True, repr=False)
class Scored(Shown):
    """A target as the model sees it.

    tokens: its n ids. token_logprobs: float32 [n], log-softmax over the whole vocabulary, given the input and the tokens before; NaN for a
    first token that has nothing before it. top_ids int64 and top_logprobs float32 [n, top]: the most probable tokens in each place, best
    first (-1 and NaN where there is nothing before).
    """

    tokens: list[int]
    token_logprobs: np.ndarray
    top_ids: np.ndarray
    top_logprobs: np.ndarray

    @property
    def score(self) -> float:
        """The sum of the log-probabilities that are known."""
        return float(np.nansum(self.token_logprobs, dtype=np.float64))


@dataclass(frozen=True, repr=False)
class Likelihood(Shown):
    """Of a text: the negative log-likelihood (natural logarithm) of its tokens, summed, and how many were counted."""

    negative_log: float
    tokens: int


@dataclass
class Row:
    """Ids that are read before, ids that are scored, and where the results go: the last places of `found`."""

    index: int
    source: Sequence[int]
    prefix: Sequence[int]
    target: Sequence[int]
    found: Scored


Batch = Callable[[Sequence[Row], int], None]  # rows, the longest target first, and how many of the most probable tokens are wanted


class Scorer:
    """Makes rows of texts and has them scored by `batch`. source, target: the tokenizers; without any it takes ids only."""

    def __init__(self, config: GenerationConfig, source: TextTokenizer | None, target: TextTokenizer | None, batch: Batch) -> None:
        self._config, self._batch = config, batch
        self._source, self._target = source or target, target or source

    def score(self, inputs: Sequence[Input], targets: Sequence[Input], top: int, batch_size: int) -> list[Scored]:
        """See Model.score."""
        top = _whole("top", top, 0, self._config.vocab_size)
        if len(inputs) != len(targets):
            raise UsageError(f"targets has {len(targets)} entries, expected one for each of {len(inputs)} inputs")
        seq2seq = self._config.kind == "seq2seq"
        vocabulary = (self._config.source_vocab_size if seq2seq else None) or self._config.vocab_size
        rows, found = [], []
        for i, (before, after) in enumerate(zip(inputs, targets, strict=True)):
            source = _ids(before, self._source, vocabulary, f"input {i}", True)
            target = _ids(after, self._target, self._config.vocab_size, f"target {i}", seq2seq)
            if seq2seq:
                target = self._labels(target) if isinstance(after, str) else target
                if not source:
                    raise TextError(f"input {i} is empty, expected what the target answers; leave the pair out")
            start = self._config.decoder_start_id if seq2seq else self._config.bos_id
            prefix = ([] if start is None else [start]) if seq2seq or not source else source
            self._check_length(f"input {i}", source, prefix, target)
            found.append(_room(target, top))
            skipped = 0 if prefix else 1  # a first token with nothing before it
            if len(target) > skipped:
                rows.append(Row(i, source if seq2seq else (), prefix or target[:1], target[skipped:], found[i]))
        self._run(rows, top, batch_size)
        return found

    def likelihoods(self, texts: Sequence[Input], window: int | None, stride: int | None, batch_size: int) -> list[Likelihood]:
        """See Model.likelihoods."""
        if self._config.kind != "causal":
            raise UsageError("perplexity is of models that continue a text; use score(inputs, targets) for one that answers")
        most = self._config.max_length
        window = min(WINDOW, most or WINDOW) if window is None else _whole("window", window, 2, most)
        stride = max(1, window // 2) if stride is None else _whole("stride", stride, 1, window - 1)
        sums, counts = [0.0] * len(texts), [0] * len(texts)
        rows = self._windows(texts, window, stride)
        while group := list(islice(rows, 1024)):  # the rows of a book need not exist together
            self._run(group, 0, batch_size)
            for row in group:
                sums[row.index] -= row.found.score
                counts[row.index] += len(row.target)
        return [Likelihood(total, count) for total, count in zip(sums, counts, strict=True)]

    def _windows(self, texts: Sequence[Input], window: int, stride: int) -> Iterator[Row]:
        for i, text in enumerate(texts):
            ids = _ids(text, self._source, self._config.vocab_size, f"text {i}", True)
            for begin, first, end in windows(len(ids), window, stride):
                yield Row(i, (), ids[begin:first], ids[first:end], _room(ids[first:end], 0))

    def _labels(self, target: list[int]) -> list[int]:
        """A text's ids as the model writes them: without the start, which it does not write, and with the end, which it does."""
        ends = self._config.eos_ids
        if target and target[0] == self._config.decoder_start_id and target[0] not in ends:
            target = target[1:]
        return target if not ends or (target and target[-1] in ends) else [*target, ends[0]]

    def _check_length(self, where: str, source: Sequence[int], prefix: Sequence[int], target: Sequence[int]) -> None:
        for most, count in ((self._config.source_length, len(source)), (self._config.max_length, len(prefix) + len(target) - 1)):
            if most is not None and count > most:
                raise TextError(f"{where} has {count} tokens with its target, the model takes at most {most}; shorten it")

    def _run(self, rows: Sequence[Row], top: int, batch_size: int) -> None:
        """Fill in what is found, in batches whose targets are about equally long."""
        batch_size = _whole("batch_size", batch_size, 1, None)
        ordered = sorted(rows, key=lambda row: (-len(row.target), -len(row.prefix), -len(row.source)))
        done = 0
        while done < len(ordered):
            batch = ordered[done : done + batch_size]
            longest = max(len(row.prefix) + len(row.target) for row in batch)
            batch = batch[: max(1, POSITIONS // longest)]
            self._batch(batch, top)
            done += len(batch)


def stepped(engine: Engine, rows: Sequence[Row], top: int) -> None:
    """Scores rows, the one with the longest target first, step by step; rows that are done leave."""
    cross = engine.encode([row.source for row in rows]) if engine.encoder is not None else None
    state = DecoderState(engine, cross, [row.prefix for row in rows], len(rows[0].target))
    state.request_top(max(top, 1), NO_IDS)
    left = len(rows)
    for step in range(len(rows[0].target)):
        while len(rows[left - 1].target) <= step:
            left -= 1
            state.active[left] = False
        if 4 * left <= 3 * state.rows:
            state.compact(range(left))
        if step:
            state.ids[:left, 0] = [row.target[step - 1] for row in rows[:left]]
        state.advance()
        logits, best, places = state.logits.numpy(), state.best, np.arange(left)
        # The graph has the log-softmax of its best token: what it took off that logit goes off every other.
        shift = logits[places, best.token[:left, 0]] - best.logprob[:left, 0]
        scores = logits[places, [row.target[step] for row in rows[:left]]] - shift
        if np.isnan(scores).any():
            bad = rows[int(np.isnan(scores).argmax())].index
            raise DataError(f"text {bad}: the model's probabilities are not finite; try another precision, such as fp32")
        for i, row in enumerate(rows[:left]):
            place = len(row.found.tokens) - len(row.target) + step
            row.found.token_logprobs[place] = scores[i]
            row.found.top_ids[place], row.found.top_logprobs[place] = best.token[i, :top], best.logprob[i, :top]


def windows(length: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(begin, first, end) of windows over `length` tokens: begin..end is read, first..end is scored; every token but the first once.

    Windows begin every `stride` tokens; a window scores what the one before it did not, with all that it reads before as context.
    """
    begin, first = 0, 1
    while first < length:
        end = min(begin + window, length)
        yield begin, first, end
        begin, first = begin + stride, end


def perplexity(found: Sequence[Likelihood]) -> float:
    """exp of the mean negative log-likelihood of all tokens that were counted. TextError without any."""
    count = sum(one.tokens for one in found)
    if not count:
        raise TextError("the texts have no token beside their first, expected more to score; give longer texts")
    return float(np.exp(sum(one.negative_log for one in found) / count))


def _room(target: Sequence[int], top: int) -> Scored:
    shape = (len(target), top)
    values = np.full(len(target), np.nan, np.float32), np.full(shape, -1, np.int64), np.full(shape, np.nan, np.float32)
    return Scored(list(target), *values)


def _ids(text: Input, tokenizer: TextTokenizer | None, vocabulary: int, where: str, special: bool) -> list[int]:
    try:
        if is_ordered(text) and hasattr(text, "__len__"):
            return check_ids(text, vocabulary)
        check_text(text)
        if tokenizer is None:
            raise TextError("is text, but the bundle has no tokenizer; give token ids")
        return check_ids(tokenizer.encode([str(text)], special)[0], vocabulary)
    except TextError as error:
        raise TextError(f"{where}: {error}") from None


def _whole(name: str, value: object, least: int, most: int | None) -> int:
    number = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else least - 1
    if number < least or (most is not None and number > most):
        raise UsageError(f"{name} is {value!r}, expected a whole number from {least}" + ("" if most is None else f" to {most}"))
    return number
