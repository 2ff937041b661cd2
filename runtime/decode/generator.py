"""The way from a call's inputs to its results: ids, limits, a batch shared with other calls, search, text."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from onnxport.errors import TextError, UsageError
from onnxport.runtime.bundle.manifest import GenerationConfig, Languages
from onnxport.runtime.decode.batch import Request
from onnxport.runtime.decode.beam import BeamBatch, Beams, Hypothesis
from onnxport.runtime.decode.constraints import Constraints
from onnxport.runtime.decode.engine import Engine
from onnxport.runtime.decode.sampling import Row, RowBatch, decode
from onnxport.runtime.decode.scheduler import SharedBatch
from onnxport.runtime.options import Options, Search, Watch, is_ordered
from onnxport.runtime.tokenizer import TextStream, TextTokenizer, check_ids, check_text

DEFAULT_NEW_TOKENS = 128
AT_ONCE = 1 << 18  # characters that are tokenized between two looks at the clock

Input = str | Sequence[int]


@dataclass(frozen=True)
class Generation:
    """An answer.

    text: None where the bundle has no tokenizer. tokens: new ids without the final eos. token_logprobs: one a token. score: the sum of all
    log-probabilities, eos counted; with beams divided by (tokens, eos counted) ** length_penalty. finish_reason: "eos", "length",
    "stop" (text is cut before the stop string, tokens are not) or "empty" (an empty input).
    alternatives: the next best beams, with n_best. segments: how many a long text was answered in.
    """

    text: str | None
    tokens: list[int]
    score: float
    token_logprobs: list[float]
    finish_reason: str
    alternatives: tuple[Generation, ...] = ()
    segments: int = 1


class Generator:
    """Answers inputs with an engine; many threads may use it, and calls that search alike share their batches.

    config: the engine's by default; another, such as `config.plain()`, searches the model by other rules.
    """

    def __init__(
        self, engine: Engine, source: TextTokenizer | None, target: TextTokenizer | None, config: GenerationConfig | None = None
    ) -> None:
        self._engine, self._config = engine, config or engine.config
        self._source, self._target = source or target, target or source
        self._shared_batches: dict[Search, SharedBatch[Any]] = {}
        self._lock = threading.Lock()

    @property
    def config(self) -> GenerationConfig:
        """The model's settings that it searches by."""
        return self._config

    def generate(self, inputs: Sequence[Input], prefix: Sequence[Input] | None, options: Options, watch: Watch) -> list[Generation]:
        """One Generation an input, in order."""
        search = self._search(options)
        requests = self._requests(inputs, prefix, options, search, watch)
        results = [self._empty() for _ in inputs]
        # Long ones first: a batch never has to make its sources longer, and what is left at the end is short.
        ordered = sorted(requests, key=lambda one: (-len(one.source), -len(one.prefix), one.index))
        constraints = Constraints(self._config, search)
        if search.beam > 1:
            make = partial(BeamBatch, self._engine, search, constraints, self._target)
            for beams in self._run(search, make, [Beams(request) for request in ordered], lambda one: Beams(one.request), watch):
                best = [self._of_beam(h, search) for h in beams.finished[: search.n_best]]
                results[beams.request.index] = replace(best[0], alternatives=tuple(best[1:]))
        else:
            new_row = self._rows(search)
            batch = partial(RowBatch, self._engine, search, constraints)
            for row in self._run(search, batch, [new_row(request) for request in ordered], lambda one: new_row(one.request), watch):
                results[row.request.index] = self._of_row(row)
        return results

    def _run(
        self, search: Search, make: Callable[[], Any], decodings: list[Any], again: Callable[[Any], Any], watch: Watch
    ) -> Sequence[Any]:
        """The decodings, done, in a batch shared with other threads' calls that search alike."""
        if not self._engine.admits_while_running:  # no request could join later: a batch of its own, beside those of other threads
            shared = SharedBatch(make)
            return shared.run(shared.enter(decodings, again), watch)
        key = replace(search, seed=None, n_best=1, max_new_tokens=None)
        with self._lock:
            self._shared_batches = {k: shared for k, shared in self._shared_batches.items() if not shared.idle or k == key}
            shared = self._shared_batches.setdefault(key, SharedBatch(make))
            call = shared.enter(decodings, again)
        return shared.run(call, watch)

    def _rows(self, search: Search, streaming: bool = False) -> Callable[[Request], Row]:
        """Makes rows: with a stream of text where every step needs text, and random numbers of their own."""
        seed = int.from_bytes(os.urandom(8), "little") >> 1 if search.seed is None else search.seed

        def make(request: Request) -> Row:
            stream = TextStream(self._target, search.stop) if self._target is not None and (streaming or search.stop) else None
            return Row(request, stream, np.random.default_rng([seed, request.index]) if search.sampling else None)

        return make

    def stream(self, one: Input, prefix: Input | None, options: Options, watch: Watch, ready: Callable[[], object]) -> Stream:
        """The answer to one input, a piece of text at a time; `ready` raises where the model may not be used any more.

        UsageError with beams, TextError without a tokenizer.
        """
        search = self._search(options)
        if search.beam > 1:
            raise UsageError(f"beam is {search.beam}, expected 1 to stream: beams are not certain before the end")
        if self._target is None:
            raise TextError("the bundle has no tokenizer, so there is no text to stream; use generate with token ids")
        requests = self._requests([one], None if prefix is None else [prefix], options, search, watch)
        return Stream(self._pieces(requests, search, watch) if requests else iter([self._empty()]), ready)

    def _pieces(self, requests: list[Request], search: Search, watch: Watch) -> Iterator[str | Generation]:
        row = self._rows(search, streaming=True)(requests[0])
        for _ in decode(RowBatch(self._engine, search, Constraints(self._config, search)), [row], watch):
            if row.piece:
                yield row.piece
        yield self._of_row(row)

    def _search(self, options: Options) -> Search:
        """The search, with the language of answers. UsageError for a language that the model has not."""
        search = options.resolve(self._config.search)
        for option in ("src_lang", "tgt_lang"):
            if (code := getattr(options, option)) is not None:
                language = self._languages(option, code).id_of(option, code)
                if option == "tgt_lang" and self._languages(option, code).target == "forced":
                    search = replace(search, forced_bos_id=language)
        return search

    def _languages(self, option: str, code: str) -> Languages:
        if self._config.languages is None:
            raise UsageError(f"{option} is {code!r:.60}, but this bundle names no languages; leave it out")
        return self._config.languages

    def _start(self, options: Options) -> int:
        """The id that answers of an encoder-decoder start with."""
        languages = self._config.languages
        if languages is not None and options.tgt_lang is not None and languages.target == "start":
            return languages.id_of("tgt_lang", options.tgt_lang)
        return self._config.decoder_start_id or 0

    def _around(self, options: Options) -> tuple[list[int], list[int]] | None:
        """Ids around sources of the language that the caller names; None where he names none."""
        languages = self._config.languages
        if languages is None or options.src_lang is None:
            return None
        return languages.around(languages.id_of("src_lang", options.src_lang))

    def _requests(
        self, inputs: Sequence[Input], prefix: Sequence[Input] | None, options: Options, search: Search, watch: Watch
    ) -> list[Request]:
        if prefix is not None and len(prefix) != len(inputs):
            raise UsageError(f"prefix has {len(prefix)} entries, expected one for each of {len(inputs)} inputs")
        if options.stop and self._target is None:
            raise UsageError("stop needs text, but the bundle has no tokenizer; stop at token ids yourself")
        seq2seq = self._config.kind == "seq2seq"
        vocabulary = self._config.source_vocab_size if seq2seq else self._config.vocab_size
        around = self._around(options)
        ids = self._ids(inputs, self._source, vocabulary or self._config.vocab_size, "", around is None, watch)
        if around is not None:
            ids = [
                [*around[0], *one, *around[1]] if isinstance(given, str) and one else one for given, one in zip(inputs, ids, strict=True)
            ]
        starts: list[list[int]] = [[]] * len(inputs)
        if prefix is not None:
            starts = self._ids(prefix, self._target, self._config.vocab_size, "prefix ", False, watch)
        requests = []
        for i, (one, start) in enumerate(zip(ids, starts, strict=True)):
            if one:
                begin = [self._start(options), *start] if seq2seq else [*one, *start]
                requests.append(Request(i, one if seq2seq else (), begin, self._limit(one, begin, options, search, _where(i, len(inputs)))))
        return requests

    def _ids(
        self, inputs: Sequence[Input], tokenizer: TextTokenizer | None, vocabulary: int, what: str, special: bool, watch: Watch
    ) -> list[list[int]]:
        texts: list[str] = []
        for i, one in enumerate(inputs):
            if not (is_ordered(one) and hasattr(one, "__len__")):
                _located(check_text, one, where=what + _where(i, len(inputs)))
                if one and tokenizer is None:
                    raise TextError(f"{what}{_where(i, len(inputs))}is text, but the bundle has no tokenizer; give token ids")
                if one:
                    texts.append(str(one))
        encoded = _encoded(tokenizer, texts, special, watch) if tokenizer is not None else iter(())
        result = []
        for i, one in enumerate(inputs):
            if isinstance(one, str):
                ids = next(encoded) if one else []
                result.append(_located(check_ids, ids, vocabulary, where=what + _where(i, len(inputs))))
            else:
                result.append(_located(check_ids, one, vocabulary, where=what + _where(i, len(inputs))))
        return result

    def _limit(self, source: Sequence[int], begin: Sequence[int], options: Options, search: Search, where: str) -> int:
        """The most new tokens: the caller's limit or the model's, within the model's positions (the last new token is never read).

        UsageError where the caller's own min_new_tokens are more; the model's give way.
        """
        if self._config.kind == "seq2seq" and (bound := self._config.source_length) is not None and len(source) > bound:
            raise TextError(f"{where}has {len(source)} tokens, the model takes at most {bound}; shorten or split it")
        most, usual = self._config.max_length, max(DEFAULT_NEW_TOKENS, search.least(len(begin)))
        preferred = options.max_new_tokens or self._config.max_new_tokens or self._left(len(begin), where)
        if most is None:
            limit = preferred or usual
        else:
            if len(begin) > most:  # a prompt begins it, too
                raise TextError(f"{where}has {len(begin)} tokens, the model takes at most {most}; shorten or split it")
            limit = min(preferred or usual, most - len(begin) + 1)
        if options.min_new_tokens is not None and limit < options.min_new_tokens:
            raise UsageError(f"min_new_tokens is {options.min_new_tokens}, but {where}has room for {limit} new tokens")
        return limit

    def _left(self, begun: int, where: str) -> int | None:
        """New tokens behind a prompt of `begun`, where the model bounds both together. TextError: the prompt leaves no room."""
        total = self._config.max_total_tokens
        if total is not None and begun >= total:
            raise TextError(
                f"{where}has {begun} tokens, and the model's own max_length of prompt and answer is {total}; "
                "give max_new_tokens, or shorten it"
            )
        return None if total is None else total - begun

    def _empty(self) -> Generation:
        return Generation(self._text([]), [], 0.0, [], "empty")

    def _text(self, tokens: Sequence[int]) -> str | None:
        return None if self._target is None else self._target.decode(tokens)

    def _of_row(self, row: Row) -> Generation:
        end = len(row.tokens) - (row.reason == "eos")
        text = row.stream.text if row.stream is not None else self._text(row.tokens[:end])
        return Generation(text, row.tokens[:end], float(sum(row.logprobs)), row.logprobs[:end], row.reason)

    def _of_beam(self, hypothesis: Hypothesis, search: Search) -> Generation:
        end = len(hypothesis.tokens) - (hypothesis.reason == "eos")
        text = self._text(hypothesis.tokens[:end])
        if hypothesis.reason == "stop" and text is not None:
            text = text[: min(i for i in map(text.find, search.stop) if i >= 0)]
        return Generation(text, hypothesis.tokens[:end], hypothesis.score, hypothesis.logprobs[:end], hypothesis.reason)


class Stream:
    """Iterates over pieces of text; afterwards `result` is the whole Generation."""

    def __init__(self, parts: Iterator[str | Generation], ready: Callable[[], object]) -> None:
        self._parts, self._ready = parts, ready
        self.result: Generation | None = None

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> str:
        self._ready()
        part = next(self._parts)
        if isinstance(part, Generation):
            self.result = part
            raise StopIteration
        return part


def _encoded(tokenizer: TextTokenizer, texts: Sequence[str], special: bool, watch: Watch) -> Iterator[list[int]]:
    """The ids of each text; nothing ends a tokenizer early, so it gets a part of them at a time."""
    start = 0
    while start < len(texts):
        watch.check()
        end, size = start + 1, len(texts[start])
        while end < len(texts) and size + len(texts[end]) <= AT_ONCE:
            size += len(texts[end])
            end += 1
        yield from tokenizer.encode(texts[start:end], special)
        start = end


def _where(index: int, count: int) -> str:
    return f"input {index} " if count > 1 else "the input "


def _located(check, *arguments, where: str):  # type: ignore[no-untyped-def]
    """`check` with the input's place in front of its message."""
    try:
        return check(*arguments)
    except TextError as e:
        raise TextError(f"{where.rstrip()}: {e}") from None
