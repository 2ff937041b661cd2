"""The way from a call's inputs to its results: ids, limits, a batch shared with other calls, search, text."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np

from onnxport.errors import TextError, UsageError
from onnxport.runtime.bundle.manifest import GenerationConfig, Languages
from onnxport.runtime.decode.batch import Request
from onnxport.runtime.decode.beam import BeamBatch, Beams, Hypothesis
from onnxport.runtime.decode.constraints import Constraints
from onnxport.runtime.decode.engine import Engine
from onnxport.runtime.decode.sampling import Row, RowBatch
from onnxport.runtime.decode.scheduler import SharedBatch, SharedCall
from onnxport.runtime.options import Options, Search, Watch, is_ordered
from onnxport.runtime.shown import Shown
from onnxport.runtime.structured.formats import grammar
from onnxport.runtime.structured.matcher import AnswerFormat, Vocabulary
from onnxport.runtime.tokenizer import TextStream, TextTokenizer, check_ids, check_text

DEFAULT_NEW_TOKENS = 128
AT_ONCE = 1 << 18  # characters that are tokenized between two looks at the clock

Input = str | Sequence[int]


@dataclass(frozen=True, repr=False)
class Generation(Shown):
    """An answer.

    text: None where the bundle has no tokenizer. tokens: new ids without the final eos. token_logprobs: one a token. score: the sum of all
    log-probabilities, eos counted; with beams divided by (tokens, eos counted) ** length_penalty. finish_reason: "eos", "length",
    "stop" (a stop string: text is cut before it, tokens are not; a stop token, which is no part of the answer; the end of a format) or
    "empty" (an empty input). top_logprobs: for each token the best ones that there were, best first, as (id, log-probability), where asked.
    alternatives: the next best beams, with n_best. segments: how many a long text was answered in. guessed: tokens that `lookup` or a draft
    guessed and the model checked; accepted: how many of them came true. passes: of the model, where it checked guesses, each of
    which gave one token or more; else 0. cached_tokens: of the prompt, known from the prompt cache.
    """

    text: str | None
    tokens: list[int]
    score: float
    token_logprobs: list[float]
    finish_reason: str
    alternatives: tuple[Generation, ...] = ()
    segments: int = 1
    guessed: int = 0
    accepted: int = 0
    passes: int = 0
    cached_tokens: int = 0
    top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)


@dataclass(frozen=True)
class Job:
    """Inputs of a call, ready to be searched: decodings in the order in which they begin.

    make: an empty batch for them. again: of a decoding one that can begin in another batch. results: of all decodings, done.
    """

    search: Search
    decodings: list[Any]
    make: Callable[[], Any]
    again: Callable[[Any], Any]
    results: Callable[[Sequence[Any]], list[Generation]]


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
        self._vocabulary: Vocabulary | None = None
        self._lock, self._reading = threading.Lock(), threading.Lock()

    @property
    def config(self) -> GenerationConfig:
        """The model's settings that it searches by."""
        return self._config

    def generate(self, inputs: Sequence[Input], prefix: Sequence[Input] | None, options: Options, watch: Watch) -> list[Generation]:
        """One Generation an input, in order."""
        return self.answer(self.prepare(inputs, prefix, options, watch), watch)

    def answer(self, job: Job, watch: Watch) -> list[Generation]:
        """The results of a job."""
        shared, call = self.enter(job, self.alone)
        return job.results(shared.run(call, watch))

    @property
    def alone(self) -> bool:
        """Whether a call that has a thread gets a batch of its own, beside those of others, since it could not join one that runs."""
        return not self._engine.admits_while_running

    def prepare(self, inputs: Sequence[Input], prefix: Sequence[Input] | None, options: Options, watch: Watch) -> Job:
        """The inputs as they are searched; `enter` puts them into a batch. Raises what `generate` raises."""
        search = self._search(options)
        requests = self._requests(inputs, prefix, options, search, watch)
        # Long ones first: a batch never has to make its sources longer, and what is left at the end is short.
        ordered = sorted(requests, key=lambda one: (-len(one.source), -len(one.prefix), one.index))
        if search.beam == 1:
            return self._job_of_rows(ordered, search, len(inputs))
        make = partial(BeamBatch, self._engine, search, Constraints(self._config, search), self._target)

        def results(done: Sequence[Beams]) -> list[Generation]:
            found = [self.empty() for _ in inputs]
            for beams in done:
                best = [self._of_beam(beams.request, h, search) for h in beams.finished[: search.n_best]]
                found[beams.request.index] = replace(best[0], alternatives=tuple(best[1:]), cached_tokens=beams.cached_tokens)
            return found

        return Job(search, [Beams(request) for request in ordered], make, lambda one: Beams(one.request), results)

    def _job_of_rows(self, requests: Sequence[Request], search: Search, inputs: int, streaming: bool = False) -> Job:
        new_row, eos = self._rows(search, streaming), self._engine.config.eos_ids

        def results(done: Sequence[Row]) -> list[Generation]:
            found = [self.empty() for _ in range(inputs)]
            for row in done:
                found[row.request.index] = self._of_row(row)
            return found

        make = partial(RowBatch, self._engine, search, Constraints(self._config, search))
        rows = [new_row(request) for request in requests]
        return Job(search, rows, make, lambda row: new_row(row.request).replay(row, eos), results)

    def enter(
        self, job: Job, apart: bool = False, each_step: bool = False, moved: Callable[[], None] | None = None
    ) -> tuple[SharedBatch[Any], SharedCall[Any]]:
        """Put a job into the batch of all jobs that search alike, see SharedBatch.enter. apart: into one of its own."""
        if apart:
            shared: SharedBatch[Any] = SharedBatch(job.make)
            return shared, shared.enter(job.decodings, job.again, each_step, moved)
        key = replace(job.search, seed=None, n_best=1, max_new_tokens=None)
        if key.beam == 1:
            key = replace(key, sampling=None, stop=(), stop_token_ids=())  # a row has its own
        with self._lock:
            self._shared_batches = {k: shared for k, shared in self._shared_batches.items() if not shared.idle or k == key}
            shared = self._shared_batches.setdefault(key, SharedBatch(job.make))
            return shared, shared.enter(job.decodings, job.again, each_step, moved)

    def _rows(self, search: Search, streaming: bool) -> Callable[[Request], Row]:
        """Makes rows: with a stream of text where every step needs text, and random numbers of their own."""
        seed = int.from_bytes(os.urandom(8), "little") >> 1 if search.seed is None else search.seed

        def make(request: Request) -> Row:
            stream = TextStream(self._target, search.stop) if self._target is not None and (streaming or search.stop) else None
            return Row(request, stream, np.random.default_rng([seed, request.index]) if search.sampling else None)

        return make

    def stream(self, one: Input, prefix: Input | None, options: Options, watch: Watch, ready: Callable[[], object]) -> Stream:
        """The answer to one input, a piece of text at a time; `ready` raises where the model may not be used any more.

        Errors: as `prepare_stream`.
        """
        return Stream(self, self.prepare_stream(one, prefix, options, watch), watch, ready)

    def prepare_stream(self, one: Input, prefix: Input | None, options: Options, watch: Watch) -> Job:
        """One input as it is streamed. UsageError with beams, TextError without a tokenizer."""
        search = self._search(options)
        if search.beam > 1:
            raise UsageError(f"beam is {search.beam}, expected 1 to stream: beams are not certain before the end")
        if self._target is None:
            raise TextError("the bundle has no tokenizer, so there is no text to stream; use generate with token ids")
        requests = self._requests([one], None if prefix is None else [prefix], options, search, watch)
        return self._job_of_rows(requests, search, 1, streaming=True)

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
        ends, bias, grammars = frozenset(search.stop_token_ids), self._bias(options), self._grammars(options, len(inputs))
        if wrong := [i for i in ends if i >= self._config.vocab_size]:
            raise UsageError(f"stop_token_ids holds {wrong[0]}, expected ids below {self._config.vocab_size}, the size of the vocabulary")
        starts: list[list[int]] = [[]] * len(inputs)
        if prefix is not None:
            starts = self._ids(prefix, self._target, self._config.vocab_size, "prefix ", False, watch)
        requests = []
        for i, (one, start) in enumerate(zip(ids, starts, strict=True)):
            if one:
                begin = [self._start(options), *start] if seq2seq else [*one, *start]
                limit = self._limit(one, begin, options, search, _where(i, len(inputs)))
                answer_format = self._format(grammars[i], search, begin)
                source = one if seq2seq else ()
                top = options.top_logprobs or 0
                requests.append(Request(i, source, begin, limit, ends, bias, answer_format, top, search.sampling))
        return requests

    def _grammars(self, options: Options, inputs: int) -> list[str | None]:
        """The grammar of each input's answer; None where it may be any text. UsageError for a response_format that is none."""
        form = options.response_format
        if not is_ordered(form):
            return [grammar(form)] * inputs
        found = [grammar(one) for one in form]
        if len(found) != inputs:
            raise UsageError(f"response_format has {len(found)} entries, expected one for each of {inputs} inputs")
        return found

    def _format(self, grammar: str | None, search: Search, begin: Sequence[int]) -> AnswerFormat | None:
        """What one answer must be. UsageError where the model cannot write it."""
        if grammar is None:
            return None
        if self._target is None:
            raise UsageError("response_format needs text, but the bundle has no tokenizer")
        with self._reading:  # may take seconds, in which others enter their batches
            if self._vocabulary is None:
                self._vocabulary = Vocabulary(self._target, self._config.vocab_size, self._config.eos_ids)
        forced = self._config.search.forced_bos_id if search.forced_bos_id is None else search.forced_bos_id
        return self._vocabulary.begin(grammar, int(forced is not None and len(begin) == 1))

    def _bias(self, options: Options) -> tuple[tuple[int, float], ...]:
        """Ids with what is added to their logits. UsageError for a text that is no single token, and for an id that is none."""
        if options.logit_bias and not self._engine.takes_bias:
            raise UsageError(
                "logit_bias: the search graphs of this bundle, which an older onnxport made, take none; export the model again"
            )
        found: dict[int, float] = {}
        for token, value in options.logit_bias:
            i = self._token(token) if isinstance(token, str) else int(token)
            if not 0 <= i < self._config.vocab_size:
                raise UsageError(f"logit_bias names token id {i}, outside the vocabulary of {self._config.vocab_size}")
            found[i] = float(value)
        return tuple(sorted(found.items()))

    def _token(self, text: str) -> int:
        """The id of a text that is one token, or of a token by its name."""
        if self._target is None:
            raise UsageError("logit_bias names a text, but the bundle has no tokenizer; give token ids")
        if (named := self._target.id_of(text)) is not None:
            return named
        ids = _located(self._target.encode, [text], False, where="logit_bias: ")[0]
        if len(ids) != 1:
            raise UsageError(f"logit_bias: {text!r:.60} is {len(ids)} tokens, expected the text of one; give token ids")
        return int(ids[0])

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

    def empty(self) -> Generation:
        """The answer to nothing."""
        return Generation(self._text([]), [], 0.0, [], "empty")

    def unfinished(self, row: Row) -> Generation:
        """What a row has so far, also while another thread steps it: tokens whose log-probabilities are there too."""
        count = min(len(row.logprobs), len(row.told)) if row.request.top else len(row.logprobs)
        tokens = row.tokens[:count]
        end = self._end(row.request, tokens)
        text = "" if row.stream is None else row.stream.text
        return Generation(text, tokens[:end], float(sum(row.logprobs[:count])), row.logprobs[:end], row.reason, top_logprobs=row.told[:end])

    def _text(self, tokens: Sequence[int]) -> str | None:
        return None if self._target is None else self._target.decode(tokens)

    def _of_row(self, row: Row) -> Generation:
        end = self._end(row.request, row.tokens)
        text = row.stream.text if row.stream is not None else self._text(row.tokens[:end])
        return Generation(
            text,
            row.tokens[:end],
            float(sum(row.logprobs)),
            row.logprobs[:end],
            row.reason,
            guessed=row.guessed,
            accepted=row.accepted,
            passes=row.passes if row.guessed else 0,
            cached_tokens=row.cached_tokens,
            top_logprobs=row.told[:end],
        )

    def _end(self, request: Request, tokens: Sequence[int]) -> int:
        """How many tokens are the answer: a last one that ended it is not."""
        return len(tokens) - bool(tokens and (tokens[-1] in self._config.eos_ids or tokens[-1] in request.ends))

    def _of_beam(self, request: Request, hypothesis: Hypothesis, search: Search) -> Generation:
        end = self._end(request, hypothesis.tokens)
        text = self._text(hypothesis.tokens[:end])
        if hypothesis.reason == "stop" and text is not None:
            text = text[: min((i for i in map(text.find, search.stop) if i >= 0), default=len(text))]
        told = list(hypothesis.told[:end])
        return Generation(text, hypothesis.tokens[:end], hypothesis.score, hypothesis.logprobs[:end], hypothesis.reason, top_logprobs=told)


class Streamed:
    """The text of a job of one input, as far as it is certain: what streams of every kind share."""

    def __init__(self, generator: Generator, job: Job) -> None:
        self.generator, self.job = generator, job
        self.shared: SharedBatch[Any] | None = None
        self.call: SharedCall[Any] | None = None
        self._given = 0  # characters

    def enter(self, apart: bool = False, moved: Callable[[], None] | None = None) -> tuple[SharedBatch[Any], SharedCall[Any]]:
        """Its place in a batch, from the first time on; see Generator.enter."""
        if self.shared is None or self.call is None:
            self.shared, self.call = self.generator.enter(self.job, apart, each_step=True, moved=moved)
        return self.shared, self.call

    def more(self) -> bool:
        """Whether there is text that was not given."""
        return self.call is not None and any(row.emitted > self._given for row in self.call.decodings)

    def piece(self) -> str:
        """The text that was not given; "" where there is none."""
        text = "" if self.call is None else "".join(row.stream.text for row in self.call.decodings)
        piece, self._given = text[self._given :], len(text)
        return piece

    def so_far(self) -> Generation:
        """The answer up to the newest token, also while it is made; its text is `text`, which is all that is certain."""
        row = None if self.call is None or not self.call.decodings else self.call.decodings[0]
        return self.generator.empty() if row is None else self.generator.unfinished(row)

    def result(self) -> Generation | None:
        """The whole answer, once there are no more tokens to come and all text was given; None for one that was given up."""
        done = self.call is not None and not self.call.left and not self.call.gone and not self.more()
        return self.job.results(self.call.decodings)[0] if done and self.call is not None else None

    def leave(self) -> None:
        """Take it out of its batch."""
        if self.shared is not None and self.call is not None:
            self.shared.leave(self.call)


class Stream:
    """Iterates over pieces of text; afterwards `result` is the whole Generation.

    `close` gives up what is left, from any thread; leaving the stream as a context manager does so too. It is in its batch from the first
    piece on.
    """

    def __init__(self, generator: Generator, job: Job, watch: Watch, ready: Callable[[], object]) -> None:
        self._streamed, self._watch, self._ready = Streamed(generator, job), watch, ready
        self._over = False
        self.result: Generation | None = None

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> str:
        if not self._over:
            try:
                self._ready()
                shared, call = self._streamed.enter(self._streamed.generator.alone)
                shared.advance(call, self._watch, self._streamed.more)
                if piece := self._streamed.piece():
                    return piece
                self.result = self._streamed.result()
            except BaseException:
                self.close()
                raise
            self.close()
        raise StopIteration

    def close(self) -> None:
        """Take no more of it: its row makes room at once. `result` stays None where it was not at its end."""
        self._over = True
        self._streamed.leave()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


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
