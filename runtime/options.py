"""Options of a search, checked once, and the watch that ends a call early."""

from __future__ import annotations

import time
from collections.abc import KeysView, Mapping, Sequence, Set
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, Protocol, TypedDict

from onnxport.errors import Cancelled, GenerationTimeout, UsageError
from onnxport.runtime.other_names import suggestion

NORMAL, LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # the range of normal float32, the search graphs' type
STEEPEST = 10.0  # of a length penalty: tokens ** 10 is still far from overflow
FOREVER = 1e9  # seconds, the longest timeout
LEAST = {
    "beam": 1,
    "n_best": 1,
    "batch_size": 1,
    "min_new_tokens": 0,
    "max_new_tokens": 1,
    "top_k": 0,
    "no_repeat_ngram": 0,
    "seed": 0,
    "lookup": 0,
    "top_logprobs": 0,
}
MOST_BIAS = 1e4  # of logits: beyond it a token always or never comes
RANGES = {
    "repetition_penalty": (NORMAL, LARGEST),
    "length_penalty": (-STEEPEST, STEEPEST),
    "temperature": (NORMAL, LARGEST),
    "top_p": (NORMAL, 1),
}


class Flag(Protocol):
    """What `cancel` must offer: threading.Event does."""

    def is_set(self) -> bool:
        """True when the call is to end."""
        ...


@dataclass(frozen=True)
class SearchConfig:
    """How a model is searched where the caller sets nothing, and its rules for tokens; the defaults are neutral.

    The meanings are those of transformers' generation config. temperature, top_k and top_p are there when the model samples by default.
    renormalize: log-probabilities are shares among the ids that may come, not of the whole vocabulary. min_total_tokens: of prompt and
    answer together. encoder_no_repeat_ngram: n-grams of that size that stand in the source do not come in an answer (0: all may).
    """

    beam: int = 1
    min_new_tokens: int = 0
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    encoder_no_repeat_ngram: int = 0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    renormalize: bool = False
    forced_bos_id: int | None = None
    forced_eos_ids: tuple[int, ...] = ()
    suppressed: tuple[int, ...] = ()
    begin_suppressed: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    min_total_tokens: int = 0


class SearchOptions(TypedDict, total=False):
    """The options that every way to generate takes; None or absent leaves one to the model.

    Sampling when `temperature`, `top_k` or `top_p` is given and temperature is not 0; else greedy, or beams with `beam` > 1.

    Attributes:
        beam: how many hypotheses are kept; 1 is greedy.
        max_new_tokens: by default the bundle's or 128; always within the positions.
        min_new_tokens: no end before so many.
        temperature: of sampling; 0 is greedy.
        top_k: only so many of the most probable tokens are sampled from.
        top_p: only the most probable tokens that come to this probability are sampled from.
        repetition_penalty: above 1 makes tokens that came before less probable.
        no_repeat_ngram: n-grams of that size come once (0: any number).
        seed: makes sampling repeatable: a row's random numbers depend on it and on the row's place in the inputs only. (Scores move in
            their last digits with the batch, so that a draw near a boundary can differ.)
        stop: texts that end an answer.
        length_penalty: means what it means in transformers: a finished hypothesis scores sum of log-probabilities / (new tokens with eos)
            ** length_penalty.
        early_stopping: True, False or "never", as in transformers.
        src_lang: the source's language, by its code, of a model that has several; token ids are read as they are. Without, it is the
            tokenizer's own.
        tgt_lang: the answer's. Without, it is what the model's generation config says, if anything.
        lookup: at most so many tokens are guessed each time from what the text said before, and checked in one pass of the model; answers
            stay the same.
        draft: another loaded model with the same vocabulary, such as a smaller variant, guesses, likewise; by default the one that `load`
            was given, False for none.
        response_format: what answers must be, as OpenAI's option of that name: {"type": "json_schema", "json_schema": {...}} (a schema, or
            one under "schema"), {"type": "json_object"}, {"type": "regex", "regex": ...} or {"type": "grammar", "grammar": ...} in Lark's
            notation; a list has one for each input, None for none. An answer ends where its format does (finish_reason "stop").
        stop_token_ids: ids that end an answer, which are no part of it.
        logit_bias: what is added to the logits of tokens, {id or text of one token: number}.
        top_logprobs: so many of the model's best tokens are told for each new one, with their log-probabilities before all rules.
    """

    beam: int | None
    max_new_tokens: int | None
    min_new_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    repetition_penalty: float | None
    no_repeat_ngram: int | None
    seed: int | None
    stop: str | Sequence[str] | None
    length_penalty: float | None
    early_stopping: bool | str | None
    src_lang: str | None
    tgt_lang: str | None
    lookup: int | None
    draft: Any
    response_format: Any
    logit_bias: Mapping[Any, float] | None
    stop_token_ids: Sequence[int] | None
    top_logprobs: int | None


class GenerateOptions(SearchOptions, total=False):
    """All keywords of `Model.generate`, which `Model.chat` hands on."""

    prefix: Any
    n_best: int
    long: str | None
    batch_size: int
    timeout: float | None
    cancel: Flag | None


@dataclass(frozen=True)
class Options:
    """Checked options of a search, as a caller gave them: `resolve` fills in what is None. UsageError for a bad one.

    Their meanings are those of SearchOptions. n_best: hypotheses to return. batch_size: inputs that decode together.
    """

    beam: int | None = None
    n_best: int = 1
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    length_penalty: float | None = None
    early_stopping: bool | str | None = None
    batch_size: int = 32
    src_lang: str | None = None
    tgt_lang: str | None = None
    lookup: int | None = None
    draft: Any = None  # the engine that guesses
    own_draft: Any = None  # the one that guesses where the caller says nothing
    response_format: Any = None  # as the caller gave it
    logit_bias: tuple[tuple[int | str, float], ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    top_logprobs: int | None = None

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if getattr(self, name) is not None or name in ("n_best", "batch_size"):
                object.__setattr__(self, name, whole(name, getattr(self, name), least))
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not (name == "temperature" and _is_zero(value)):
                _number(name, value, low, high)
        if not (self.early_stopping is None or isinstance(self.early_stopping, bool) or self.early_stopping == "never"):
            raise UsageError(f"early_stopping is {self.early_stopping!r}, expected True, False or 'never'")
        if None not in (self.max_new_tokens, self.min_new_tokens) and self.min_new_tokens > self.max_new_tokens:  # type: ignore[operator]
            raise UsageError(f"min_new_tokens is {self.min_new_tokens}, expected at most max_new_tokens ({self.max_new_tokens})")
        _code("src_lang", self.src_lang)
        _code("tgt_lang", self.tgt_lang)
        if not all(isinstance(s, str) and s for s in self.stop):
            raise UsageError(f"stop is {list(self.stop)!r}, expected non-empty texts")
        if self.beam is not None and self.beam > 1 and self._draws and self.temperature != 0:
            raise UsageError(f"beam is {self.beam} together with temperature, top_k or top_p; choose beams or sampling")
        self._check_guesses()
        self._check_tokens()

    def _check_tokens(self) -> None:
        for token, value in self.logit_bias:
            if not isinstance(token, str) and (isinstance(token, bool) or not isinstance(token, Integral)):
                raise UsageError(f"logit_bias has the key {token!r:.60}, expected a token's id or its text")
            _number(f"logit_bias of {token!r:.60}", value, -MOST_BIAS, MOST_BIAS)
        for token in self.stop_token_ids:
            whole("stop_token_ids", token, 0)

    def _check_guesses(self) -> None:
        if self._guesses and self.beam is not None and self.beam > 1:
            raise UsageError(f"beam is {self.beam} together with lookup or draft, which guess one answer; choose beams or guesses")
        if self.lookup and self.draft:
            raise UsageError("lookup and draft are two ways to guess the same tokens; choose one")

    @classmethod
    def of(cls, method: str, options: SearchOptions, **more: Any) -> Options:
        """From the keywords of `method`, with `more` beside them. TypeError for one that is no option."""
        for name in options:
            if name not in SearchOptions.__annotations__:
                ours = suggestion(name, GenerateOptions.__annotations__)
                raise TypeError(f"Model.{method}() got an unexpected keyword argument {name!r}{ours}")
        stop = options.get("stop")
        texts = () if stop is None else (stop,) if isinstance(stop, str) else tuple(many(stop, "stop", "a text or a list of texts"))
        ids, bias = options.get("stop_token_ids"), options.get("logit_bias")
        if not isinstance(bias, Mapping | None):
            raise UsageError(f"logit_bias is {type(bias).__name__}, expected a mapping of token ids or texts to numbers")
        of_tokens: dict[str, Any] = {
            "stop_token_ids": () if ids is None else tuple(many(ids, "stop_token_ids", "a list of token ids")),
            "logit_bias": tuple((bias or {}).items()),
        }
        return cls(**{**options, "stop": texts, **of_tokens, **more})

    @property
    def _draws(self) -> bool:
        """True when an option of sampling is set; temperature 0 is a way to ask for greedy."""
        return self.temperature is not None or bool(self.top_k) or self.top_p is not None

    @property
    def _guesses(self) -> bool:
        """True when the caller asks for guesses."""
        return bool(self.lookup or self.draft)

    def _draft(self, beam: int) -> Any:
        """The engine that guesses, None for none: one that stands by unless another way is asked for."""
        if self.draft is None and not self.lookup and beam == 1:
            return self.own_draft
        return self.draft or None

    def resolve(self, own: SearchConfig) -> Search:
        """The search: what the caller set, then what the model has of its own.

        Who sets an option of sampling, or asks for guesses, does not get the model's beams, and who asks for beams not its sampling.
        UsageError.
        """
        beam = _first(self.beam, 1 if self._draws or self._guesses else own.beam)
        drawn = {name: _first(getattr(self, name), getattr(own, name) if beam == 1 else None) for name in ("temperature", "top_k", "top_p")}
        samples = drawn["temperature"] is not None or bool(drawn["top_k"]) or drawn["top_p"] is not None
        sampling = Sampling(_first(drawn["temperature"], 1.0), _first(drawn["top_k"], 0), _first(drawn["top_p"], 1.0))
        if self.n_best > beam:
            raise UsageError(f"n_best is {self.n_best}, expected at most beam ({beam})")
        return Search(
            beam=beam,
            n_best=self.n_best,
            max_new_tokens=self.max_new_tokens,
            min_new_tokens=_first(self.min_new_tokens, own.min_new_tokens),
            min_total_tokens=own.min_total_tokens if self.min_new_tokens is None else 0,
            sampling=sampling if samples and drawn["temperature"] != 0 else None,
            repetition_penalty=_first(self.repetition_penalty, own.repetition_penalty),
            no_repeat_ngram=_first(self.no_repeat_ngram, own.no_repeat_ngram),
            seed=self.seed,
            stop=self.stop,
            length_penalty=_first(self.length_penalty, own.length_penalty),
            early_stopping=_first(self.early_stopping, own.early_stopping),
            batch_size=self.batch_size,
            lookup=self.lookup or 0,
            draft=self._draft(beam),
            stop_token_ids=tuple(sorted(set(map(int, self.stop_token_ids)))),
        )


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; top_k 0 and top_p 1 are off."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


@dataclass(frozen=True)
class Search:
    """Options that are all set. sampling: None for greedy search and beams. forced_bos_id: the first token of answers, None for what the
    model says. lookup: most tokens guessed from the text, 0 for none. draft: the engine that guesses."""

    beam: int
    n_best: int
    max_new_tokens: int | None
    min_new_tokens: int
    sampling: Sampling | None
    repetition_penalty: float
    no_repeat_ngram: int
    seed: int | None
    stop: tuple[str, ...]
    length_penalty: float
    early_stopping: bool | str
    batch_size: int
    min_total_tokens: int = 0
    forced_bos_id: int | None = None
    lookup: int = 0
    draft: Any = None
    stop_token_ids: tuple[int, ...] = ()

    def least(self, begun: int) -> int:
        """The fewest new tokens of an answer behind `begun` tokens that stand already."""
        return max(self.min_new_tokens, self.min_total_tokens - begun)


@dataclass(frozen=True)
class Memory:
    """Bounds on what a model that generates keeps in memory, as `load` takes them; None for none. UsageError for a bad one."""

    prefix_cache_mb: int | None = None
    batch_rows: int | None = None
    batch_cache_mb: int | None = None

    def __post_init__(self) -> None:
        for name in self.given:
            object.__setattr__(self, name, whole(name, getattr(self, name), 1))

    @property
    def given(self) -> list[str]:
        """Names of those that there are."""
        return [one.name for one in fields(self) if getattr(self, one.name) is not None]


class Watch:
    """Ends a call between two steps when its time is over or its caller asks for it."""

    def __init__(self, timeout: float | None = None, cancel: Flag | None = None) -> None:
        if timeout is not None:
            _number("timeout", timeout, NORMAL, FOREVER)
        if cancel is not None and not callable(getattr(cancel, "is_set", None)):
            raise UsageError(f"cancel is {type(cancel).__name__}, expected an object with is_set(), such as threading.Event")
        self._timeout, self._cancel = timeout, cancel
        self._end = None if timeout is None else time.monotonic() + timeout

    @property
    def limited(self) -> bool:
        """Whether it can end a call at all."""
        return self._cancel is not None or self._end is not None

    def check(self) -> None:
        """Raise Cancelled or GenerationTimeout when it is time to."""
        if self._cancel is not None and self._cancel.is_set():
            raise Cancelled("the generation was cancelled by its caller")
        if self._end is not None and time.monotonic() >= self._end:
            raise GenerationTimeout(f"the generation took more than {self._timeout} s; allow more time or fewer new tokens")


def is_ordered(value: object) -> bool:
    """Whether something holds items one after the other: a list, a tuple, an array, a generator; no text, bytes, mapping, set or table."""
    kinds = (str, bytes, bytearray, memoryview, Mapping, Set)
    unordered = isinstance(value, kinds) and not isinstance(value, KeysView)  # keys are a Set, in the order of their mapping
    return hasattr(value, "__iter__") and not unordered and not hasattr(value, "columns") and getattr(value, "ndim", 1) > 0


def many(value: Any, name: str, expected: str) -> list[Any]:
    """The items of what a caller gave as many; a set has no order, and a mapping or a table would give its names. UsageError."""
    if not is_ordered(value):
        raise UsageError(f"{name} is {type(value).__name__}, expected {expected}")
    return list(value)


def _first(value: Any, default: Any) -> Any:
    return default if value is None else value


def whole(name: str, value: object, least: int) -> int:
    """The number that a caller gave. UsageError for what is no whole number from `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise UsageError(f"{name} is {value!r}, expected a whole number from {least}")
    return int(value)


def _code(name: str, value: object) -> None:
    if not isinstance(value, str | None):
        raise UsageError(f"{name} is {value!r:.60}, expected the code of a language")


def _number(name: str, value: object, least: float, most: float) -> None:
    # Compared as they are, since a huge int has no float; NaN is in no range.
    if isinstance(value, bool) or not isinstance(value, Real) or not least <= value <= most:  # type: ignore[operator]
        greedy = "0 for greedy search or " if name == "temperature" else ""
        raise UsageError(f"{name} is {value!r}, expected {greedy}a number from {least:.4g} to {most:.4g}")


def _is_zero(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and value == 0
