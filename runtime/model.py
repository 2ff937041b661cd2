"""The class that applications hold: `load` a bundle, then call the method of its task, such as generate, encode or classify."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, Unpack

import numpy as np

from onnxport.errors import DataError, DeviceError, TextError, UsageError, one_line
from onnxport.progress import Progress, silent
from onnxport.runtime.bundle.reader import Bundle, unreplaced
from onnxport.runtime.bundle.variant_names import for_device, named, split
from onnxport.runtime.decode.engine import BatchBounds, Engine
from onnxport.runtime.decode.generator import Generation, Generator, Input, Job, Stream
from onnxport.runtime.options import Flag, GenerateOptions, Memory, Options, SearchOptions, Watch, many
from onnxport.runtime.other_names import hint, suggesting
from onnxport.runtime.sessions import CPU, Sessions, check_version, required_device
from onnxport.runtime.shown import table
from onnxport.runtime.tokenizer import TextStream, TextTokenizer, check_text

if TYPE_CHECKING:
    from onnxport.runtime.asynchronous import AsyncStream, Background
    from onnxport.runtime.encoder import Encoder, Text
    from onnxport.runtime.tasks.chat import ChatTemplate
    from onnxport.runtime.tasks.classification import Classification
    from onnxport.runtime.tasks.fill_mask import Fill
    from onnxport.runtime.tasks.question_answering import Answer
    from onnxport.runtime.tasks.reranking import Ranked
    from onnxport.runtime.tasks.scoring import Likelihood, Scored, Scorer
    from onnxport.runtime.tasks.token_classification import Entity

P = ParamSpec("P")
R = TypeVar("R")
NO_MEMORY = Memory()
Conversation = Sequence[Mapping[str, Any]]


@suggesting
def load(
    path: str | Path,
    precision: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    verify: bool = False,
    draft: str | None = None,
    prefix_cache_mb: int | None = None,
    batch_rows: int | None = None,
    batch_cache_mb: int | None = None,
) -> Model:
    """Load a bundle.

    Args:
        path: the bundle's folder.
        precision: a variant's name; None is the bundle's default.
        device: "cpu" or "cuda", whose own variant is taken where there is one: int8 means int8@cuda there.
        threads: of one operator; None is all this process may use.
        verify: check every file's hash too.
        draft: another variant, which guesses tokens that this one checks: the same answers, sooner where it is much smaller.
        prefix_cache_mb: memory (MiB) in which a language model keeps keys and values of prompts and answers, so that a prompt that begins
            as another did is read from where they part; None keeps none.
        batch_rows: of a model that generates, the most rows (texts times beams) that decode together in one batch; what is more waits, and
            a text that is over a bound by itself is answered alone. None: a call's batch_size bounds them.
        batch_cache_mb: memory (MiB) that the keys and values of these rows may come to, likewise.

    Raises:
        BundleError: the bundle is damaged or foreign, or needs a newer onnxruntime.
        UsageError: the precision or the device is unknown.
        DeviceError: the device cannot be had.
    """
    memory = Memory(prefix_cache_mb, batch_rows, batch_cache_mb)
    return unreplaced([path], lambda: _loaded(path, precision, device, threads, verify, draft, memory))


def _loaded(
    path: str | Path,
    precision: str | None,
    device: str,
    threads: int | None,
    verify: bool,
    draft: str | None,
    memory: Memory,
) -> Model:
    bundle = Bundle.open(path, verify)
    model = _variant(bundle, "precision", bundle.default if precision is None else precision, device, threads, memory)
    if draft is not None:
        model.draft = model.checked_draft(_variant(bundle, "draft", draft, device, threads))
    return model


def _variant(bundle: Bundle, option: str, name: str, device: str, threads: int | None, memory: Memory = NO_MEMORY) -> Model:
    name = for_device(name, device, bundle.variants)
    if name not in bundle.variants:
        raise UsageError(
            f"{option} is {name!r}, this bundle has {', '.join(bundle.variants)}; choose one or add it with `onnxport quantize`"
            + hint("precision", name)
        )
    sessions = Sessions.on(device, threads)
    variant, precision = bundle.variants[name], split(name)[0]
    makes = f"make one for {device}: onnxport quantize {bundle.path} --precision {named(precision, device)}"
    if device != CPU.name and variant.target == CPU.name:
        raise DeviceError(f"variant {name} of {bundle.path} is made of the {CPU.name}'s kernels, asked for {device}; {makes}")
    advice = "upgrade onnxruntime" if device in (CPU.name, variant.target) else f"upgrade onnxruntime, or {makes}"
    check_version(variant.min_onnxruntime, f"variant {name} of {bundle.path}", advice)
    required = required_device(variant.target)
    if required is not None and required.name != device:
        raise DeviceError(
            f"variant {name} of {bundle.path} runs on {required.name} only, asked for {device}; "
            f"use device {required.name} or another variant"
        )
    return Model(bundle, name, sessions, threads, memory)


def in_background(method: Callable[Concatenate[Model, P], R]) -> Callable[Concatenate[Model, P], Coroutine[Any, Any, R]]:
    """The method, awaited: it runs in the model's background thread, where calls have their turns."""

    async def awaited(self: Model, /, *arguments: P.args, **options: P.kwargs) -> R:
        return await self._ready()._background().run(partial(method, self, *arguments, **options))

    awaited.__name__, awaited.__doc__ = f"a{method.__name__}", f"`{method.__name__}`, awaited: it runs in the model's background thread."
    awaited.__qualname__ = f"Model.{awaited.__name__}"
    return awaited


class Model:
    """A loaded variant of a bundle. Safe to use from many threads at once; not across a fork: load it in the child.

    draft: the model that guesses for it, if one was loaded with it.
    It pickles as its path and options. A context manager; `close` frees the sessions (in a forked child it only forgets them: to free them
    there would wait for ever).
    """

    def __init__(
        self, bundle: Bundle, precision: str, sessions: Sessions, asked_threads: int | None = None, memory: Memory = NO_MEMORY
    ) -> None:
        self.bundle, self.precision, self.device, self.threads = bundle, precision, sessions.device, sessions.threads
        self._process, self._closed = os.getpid(), False
        self._asked_threads, self._memory = asked_threads, memory
        self._lock, self._calls = threading.Lock(), None  # type: threading.Lock, Background | None
        self.draft: Model | None = None
        self._tokenizers: dict[str, TextTokenizer] = {}
        known: dict[str, TextTokenizer] = {}
        for role, file in bundle.tokenizers.items():
            self._tokenizers[role] = known.setdefault(file, known.get(file) or TextTokenizer(bundle.file(file)))
        self._generator: Generator | None = None
        self._template = None if bundle.chat is None else bundle.content(bundle.chat.template)
        self._chat: ChatTemplate | None = None
        self._encoder: Encoder | None = None
        variant = bundle.variants[precision]
        if variant.reduced and bundle.provenance.get("route") == "canonical":  # others may hold products that no plan names
            sessions = replace(sessions, exact=False)
        if bundle.generation is not None:
            bounds = BatchBounds(memory.batch_rows, _bytes(memory.batch_cache_mb))
            self.engine: Engine | None = Engine(bundle, variant, sessions, _bytes(memory.prefix_cache_mb), bounds)
            self._generator = Generator(self.engine, self._tokenizers.get("source"), self._tokenizers.get("target"))
        elif memory.given:
            raise UsageError(f"{memory.given[0]} is for models that generate; this bundle's task is {bundle.task}")
        else:
            from onnxport.runtime.encoder import Encoder

            self.engine = None
            self._encoder = Encoder.open(bundle, variant, sessions, self._source())

    def __repr__(self) -> str:
        what = {"task": self.bundle.task, "precision": self.precision, "device": self.device, "threads": self.threads}
        return f"Model({self.bundle.name!r}, {', '.join(f'{name}={value!r}' for name, value in what.items())})"

    def _repr_html_(self) -> str:
        variant = self.bundle.variants[self.precision]
        rows = {
            "name": self.bundle.name,
            "task": self.bundle.task,
            "family": self.bundle.family,
            "precision": f"{self.precision}, of {', '.join(self.bundle.variants)}",
            "size": f"{variant.bytes / 1e6:.2f} MB",
            "device": f"{self.device}, threads: {self.threads}",
            "bundle": str(self.bundle.path),
        }
        return table(rows.items())

    def generate(
        self,
        inputs: str | Sequence[Input],
        *,
        prefix: str | Sequence[Input] | None = None,
        n_best: int = 1,
        long: str | None = None,
        batch_size: int = 32,
        timeout: float | None = None,
        cancel: Flag | None = None,
        **options: Unpack[SearchOptions],
    ) -> list[Generation]:
        """Answer texts or lists of token ids; a single text gives a list of one, an empty one an empty result ("empty").

        Greedy, beams with `beam` > 1, sampling when temperature (0 is greedy), top_k or top_p is given. None leaves an option to the model:
        the search is then that of transformers' `generate` with the model's generation config; beam=1 makes it greedy. The options are
        those of onnxport.runtime.options.SearchOptions.

        Args:
            inputs: a text, or texts and lists of token ids.
            prefix: what answers begin with (texts or ids; not part of the result).
            n_best: beams to give, the others as `alternatives`.
            long: how texts beyond the model's positions are translated or summarized: "segments" of whole sentences as long as the model
                takes, or "sentences" one by one (for models that were trained so); the answers are put together with the text's own lines
                and paragraphs.
            batch_size: inputs that decode together.
            timeout: seconds, after which GenerationTimeout is raised between steps.
            cancel: an Event; Cancelled is raised between steps once it is set.
            options: of the search.

        Raises:
            UsageError: a parameter is wrong.
            TextError: an input cannot be read.
        """
        watch = Watch(timeout, cancel)
        job = self._job(inputs, watch, prefix=prefix, n_best=n_best, long=long, batch_size=batch_size, **options)
        return self.generating().answer(job, watch)

    async def agenerate(
        self,
        inputs: str | Sequence[Input],
        *,
        prefix: str | Sequence[Input] | None = None,
        n_best: int = 1,
        long: str | None = None,
        batch_size: int = 32,
        timeout: float | None = None,
        cancel: Flag | None = None,
        **options: Unpack[SearchOptions],
    ) -> list[Generation]:
        """`generate`, awaited: no thread waits, and the inputs share the batches of all other calls. A cancelled task leaves at once."""
        watch = Watch(timeout, cancel)
        return await self._answer(
            partial(self._job, inputs, watch, prefix=prefix, n_best=n_best, long=long, batch_size=batch_size, **options), watch
        )

    async def _answer(self, prepare: Callable[[], Job], watch: Watch) -> list[Generation]:
        """The results of a job that is prepared in the background."""
        from onnxport.runtime.asynchronous import generate

        generator = self.generating()
        return await generate(generator, await self._background().run(prepare), watch)

    def _job(
        self,
        inputs: str | Sequence[Input],
        watch: Watch,
        *,
        prefix: str | Sequence[Input] | None = None,
        n_best: int = 1,
        long: str | None = None,
        batch_size: int = 32,
        **options: Unpack[SearchOptions],
    ) -> Job:
        """What `generate` answers, under a watch that may have begun before."""
        generator = self.generating()
        search = self._options("generate", options, n_best=n_best, batch_size=batch_size)
        items = listed(inputs, "inputs")
        if long is None:
            return generator.prepare(items, None if prefix is None else listed(prefix, "prefix"), search, watch)
        if prefix is not None:
            raise UsageError("long takes no prefix: an answer is put together from many")
        from onnxport.runtime.tasks import long_text

        segments, search, together = long_text.prepare(self._source(), generator.config, self.task, items, long, search, watch)
        job = generator.prepare(segments, None, search, watch)
        return replace(job, results=lambda done: together(job.results(done)))

    def stream(
        self,
        text: Input,
        *,
        prefix: Input | None = None,
        timeout: float | None = None,
        cancel: Flag | None = None,
        **options: Unpack[SearchOptions],
    ) -> Stream:
        """Pieces of the answer as they become certain; joined they are the text `generate` gives. `result` holds it all at the end.

        Parameters and errors are those of `generate`; beams are refused, since nothing of theirs is certain before the end, and a model's
        own do not apply.
        """
        options.setdefault("beam", 1)
        return self.generating().stream(text, prefix, self._options("stream", options), Watch(timeout, cancel), self._ready)

    def _options(self, method: str, options: SearchOptions, **more: Any) -> Options:
        """The options of a call, with the engines that guess. UsageError where a way to guess does not fit this model."""
        draft, ours = options.get("draft"), dict(options)
        if draft is None or draft is False:
            ours["draft"] = None
        else:
            ours["draft"] = self.checked_draft(draft).engine
        if options.get("lookup"):
            self._check_guessable("lookup")
        own = None if self.draft is None or draft is False else self.draft.engine
        return Options.of(method, ours, own_draft=own, **more)  # type: ignore[arg-type]

    def checked_draft(self, draft: object) -> Model:
        """A model that can guess for this one. UsageError for any other."""
        if not isinstance(draft, Model):
            raise UsageError(f"draft is {type(draft).__name__}, expected a loaded Model; `load(path, draft=VARIANT)` takes a name")
        ours, theirs = self._check_guessable("draft").config, draft.generating().config
        for what, mine, other in (
            ("kind", ours.kind, theirs.kind),
            ("vocabulary", ours.vocab_size, theirs.vocab_size),
            ("tokenizer", self._tokenizer_hashes(), draft._tokenizer_hashes()),
        ):
            if mine != other:
                told = "" if what == "tokenizer" else f" ({other}, not {mine})"
                raise UsageError(f"the draft has another {what}{told}; choose a model that was made with the same tokenizer")
        return draft

    def _check_guessable(self, option: str) -> Engine:
        """The engine. UsageError where it cannot check guesses."""
        self.generating()
        assert self.engine is not None  # it generates
        if not self.engine.checks_guesses:
            raise UsageError(
                f"{option}: the decoder of variant {self.precision} gives the logits of one position only, so that no guess can be "
                "checked; export the model again"
            )
        return self.engine

    def _tokenizer_hashes(self) -> dict[str, str]:
        return {role: self.bundle.files[file].sha256 for role, file in self.bundle.tokenizers.items()}

    def astream(
        self,
        text: Input,
        *,
        prefix: Input | None = None,
        timeout: float | None = None,
        cancel: Flag | None = None,
        **options: Unpack[SearchOptions],
    ) -> AsyncStream:
        """`stream` for `async for`: no thread waits. It ends early with its task, by `aclose`, or as an asynchronous context manager.

        Errors of an input come with the first piece.
        """
        from onnxport.runtime.asynchronous import AsyncStream

        options.setdefault("beam", 1)
        generator, search, watch = self.generating(), self._options("astream", options), Watch(timeout, cancel)
        prepare = partial(generator.prepare_stream, text, prefix, search, watch)
        return AsyncStream(generator, prepare, self._background(), watch, self._ready)

    def chat(self, messages: Conversation | Sequence[Conversation], **options: Unpack[GenerateOptions]) -> list[Generation]:
        """The next answer of a conversation, or of each of several: lists of messages {"role": ..., "content": ...}.

        options: those of `generate`. Errors: as `generate`; UsageError where the bundle has no chat template or jinja2 is not installed.
        """
        watch = Watch(options.get("timeout"), options.get("cancel"))
        return self.generating().answer(self._chat_job(messages, watch, options), watch)

    async def achat(self, messages: Conversation | Sequence[Conversation], **options: Unpack[GenerateOptions]) -> list[Generation]:
        """`chat`, awaited; see `agenerate`."""
        watch = Watch(options.get("timeout"), options.get("cancel"))
        return await self._answer(partial(self._chat_job, messages, watch, options), watch)

    def _chat_job(self, messages: Conversation | Sequence[Conversation], watch: Watch, options: GenerateOptions) -> Job:
        items: list[Any] = many(messages, "messages", "a list of messages, or of such lists")
        prompts = [self._prompt(one, watch) for one in ([items] if items and isinstance(items[0], Mapping) else items)]
        rest: dict[str, Any] = {name: value for name, value in options.items() if name not in ("timeout", "cancel")}
        return self._job(prompts, watch, **rest)

    def prompt(self, messages: Conversation, *, tools: Conversation | None = None, continue_final: bool = False) -> list[int]:
        """The token ids that `chat` gives the model for a conversation; `stream` takes them too.

        tools: what the model may call, as its chat template reads it: {"type": "function", "function": {"name", "description",
        "parameters"}}. A call is text of the answer, in the form that the template asks for. continue_final: the answer goes on with the
        last message. Errors: as `chat`; TextError where the template knows no tools.
        """
        return self._prompt(messages, Watch(), tools, continue_final)

    def prompt_text(self, messages: Conversation, *, tools: Conversation | None = None, continue_final: bool = False) -> str:
        """The text of `prompt`, with its special tokens as the template writes them. Errors: as `prompt`."""
        return self._prompt_text(messages, Watch(), tools, continue_final)

    def _prompt(self, messages: Conversation, watch: Watch, tools: Conversation | None = None, continue_final: bool = False) -> list[int]:
        text, tokenizer = self._prompt_text(messages, watch, tools, continue_final), self._source()
        assert tokenizer is not None  # there is a template
        return tokenizer.encode([text], special=False)[0]

    def _prompt_text(self, messages: Conversation, watch: Watch, tools: Conversation | None, continue_final: bool) -> str:
        chat = self._ready().bundle.chat
        if chat is None or self._template is None or self._source() is None:
            raise UsageError("this bundle has no chat template; use generate with a text")
        if self._chat is None:
            from onnxport.runtime.tasks.chat import ChatTemplate

            self._chat = ChatTemplate.parse(self._template, chat.tokens)
        return self._chat.render(messages, watch.check, tools, continue_final)

    @suggesting
    def encode(
        self,
        texts: str | Sequence[str],
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        stride: int | None = None,
    ) -> np.ndarray:
        """Vectors float32 [texts, size] of an embedding bundle: pooled over tokens, and of length 1 where the bundle says so.

        The options are sentence-transformers'. prompt: stands before every text; prompt_name: one of the bundle's own, whose default holds
        where neither is given (prompt="" leaves it out). truncate_dim: the first numbers of each vector. normalize_embeddings: vectors are
        brought to length 1, after that. show_progress_bar: how many windows are done, on standard error.
        Texts may be longer than the model: windows that share `stride` tokens (None: 128, at most half a window) are merged by a mean
        weighted by their tokens; so too in `classify`. Errors: UsageError, TextError, DataError (the model answers NaN).
        """
        from onnxport.runtime.tasks.embedding import Wishes, encode

        items = listed(texts, "texts", TEXTS)
        _check_single(items)
        wishes = Wishes(prompt, prompt_name, normalize_embeddings, truncate_dim)
        with progress_bar(bool(show_progress_bar)) as progress:
            return encode(self.encoding(), items, batch_size, stride, wishes, progress)

    @suggesting
    def classify(
        self,
        texts: Text | Sequence[Text],
        *,
        candidates: str | Sequence[str] | None = None,
        hypothesis_template: str | None = None,
        multi_label: bool = False,
        batch_size: int = 32,
        stride: int | None = None,
    ) -> list[Classification]:
        """Labels with their probabilities, of texts or of pairs; a single one gives a list of one.

        A pair is a tuple of two texts; in a list of inputs a list of two texts is one too.
        candidates: labels of the caller's own (zero-shot), with a model of entailment: each one in `hypothesis_template` ("This example is
        {}.") is a hypothesis about the text; multi_label: any number of them may hold. Of a multiple-choice bundle they are the choices.

        Errors: as `encode`.
        """
        from onnxport.runtime.tasks.classification import Candidates, choose, classify

        if candidates is None:
            if hypothesis_template is not None or multi_label:
                raise UsageError("hypothesis_template and multi_label go with candidates")
            items = [texts] if isinstance(texts, tuple) else listed(texts, "texts", f"{TEXTS}, or of pairs of texts (tuples)")
            return classify(self.encoding(), items, batch_size, stride)
        given = candidates if isinstance(candidates, str) else many(candidates, "candidates", TEXTS)
        wanted = Candidates.of(given, hypothesis_template, multi_label)
        items = listed(texts, "texts", TEXTS)
        _check_single(items)
        return choose(self.encoding(), items, [wanted] * len(items), batch_size, stride)

    @suggesting
    def entities(
        self,
        texts: str | Sequence[str],
        *,
        aggregation: str = "first",
        ignore_labels: Sequence[str] = ("O",),
        batch_size: int = 32,
        stride: int | None = None,
    ) -> list[list[Entity]]:
        """Spans of texts with their labels, of a token-classification bundle: a list of Entity a text.

        aggregation: "none", "simple", "first", "average" or "max", as the strategies of transformers' pipeline: see
        onnxport.runtime.tasks.token_classification. Of longer texts, windows that share `stride` tokens are read. Errors: as `encode`.
        """
        from onnxport.runtime.tasks.token_classification import entities, ignored_labels

        items = listed(texts, "texts", TEXTS)
        _check_single(items)
        return entities(self.encoding(), items, aggregation, ignored_labels(ignore_labels), batch_size, stride)

    @suggesting
    def tags(self, sentences: Sequence[Sequence[str]], *, batch_size: int = 32, stride: int | None = None) -> list[list[str]]:
        """The label of each word of sentences that are lists of words, by the word's first token. Errors: as `encode`."""
        from onnxport.runtime.tasks.token_classification import tags

        rows = [many(words, "each of sentences", "a list of words") for words in many(sentences, "sentences", "a list of lists of words")]
        if not all(rows):
            raise TextError("a sentence has no words, expected at least one; leave it out")
        return tags(self.encoding(), rows, batch_size, stride)

    @suggesting
    def fill(
        self,
        texts: str | Sequence[str],
        *,
        top_k: int = 5,
        targets: str | Sequence[str] | None = None,
        batch_size: int = 32,
        stride: int | None = None,
    ) -> list[list[Fill]]:
        """The best tokens for the masks of texts, of a fill-mask bundle: for each text `top_k` of its first mask, then of its second.

        The mask is the model's own, such as [MASK] or <mask>. targets: tokens to choose among. Errors: as `encode`.
        """
        from onnxport.runtime.tasks.fill_mask import fill

        items = listed(texts, "texts", TEXTS)
        _check_single(items)
        wanted = None if targets is None else listed(targets, "targets", TEXTS)
        return fill(self.encoding(), items, top_k, wanted, batch_size, stride)

    @suggesting
    def rerank(
        self, query: str, documents: Sequence[str], *, top_k: int | None = None, batch_size: int = 32, stride: int | None = None
    ) -> list[Ranked]:
        """Documents of a query, best first, of a classification bundle with one output: index and score of each, at most `top_k`.

        Scores are those of `classify` for the pair of query and document. Errors: as `encode`.
        """
        from onnxport.runtime.tasks.reranking import rerank

        if isinstance(documents, str):
            raise UsageError("documents is a text, expected a list of texts")
        items = many(documents, "documents", "a list of texts")
        _check_single([query, *items])
        return rerank(self.encoding(), query, items, top_k, batch_size, stride)

    @suggesting
    def answer(
        self,
        *,
        question: str | Sequence[str],
        context: str | Sequence[str],
        n_best: int = 1,
        max_answer_tokens: int = 30,
        no_answer: bool = False,
        batch_size: int = 32,
        stride: int | None = None,
        window: int | None = None,
    ) -> list[Answer]:
        """Spans of contexts that answer questions: an Answer a question; one context may serve them all.

        n_best: answers to give, the others as `alternatives`. no_answer: the empty answer may win. Contexts may be of any length: windows
        of `window` tokens (None: 384 or what the model takes, question included) share `stride` tokens (None: 128, at most half a window).
        Errors: as `encode`.
        """
        from onnxport.runtime.tasks.question_answering import answer

        questions = listed(question, "question", TEXTS)
        contexts = [context] * len(questions) if isinstance(context, str) else listed(context, "context", TEXTS)
        if len(contexts) != len(questions):
            raise UsageError(f"context has {len(contexts)} entries, expected one for each of {len(questions)} questions, or one text")
        pairs = list(zip(questions, contexts, strict=True))
        return answer(self.encoding(), pairs, n_best, max_answer_tokens, no_answer, batch_size, stride, window)

    aencode = in_background(encode)
    aclassify = in_background(classify)
    aentities = in_background(entities)
    afill = in_background(fill)
    arerank = in_background(rerank)
    aanswer = in_background(answer)

    def score(self, inputs: str | Sequence[Input], targets: str | Sequence[Input], *, top: int = 0, batch_size: int = 32) -> list[Scored]:
        """Scores of answers under a model that generates: the log-probability of each target's tokens, a Scored a target.

        inputs: texts or lists of ids: sources of an encoder-decoder; prompts of a language model, which may be empty (its bos then stands
        before the target; without one the first token has nothing before it and scores NaN). targets: texts or ids. A text is tokenized on
        its own: for an encoder-decoder with its end, as it would be learned, for a language model without special tokens. Ids are taken as
        they are. top: also the so many most probable tokens in every place. batch_size: rows that are scored together, of like length.
        Errors: UsageError, TextError (also longer than the model), DataError (the model answers NaN).
        """
        return self._scorer().score(listed(inputs, "inputs"), listed(targets, "targets"), top, batch_size)

    def likelihoods(
        self, texts: str | Sequence[Input], *, window: int | None = None, stride: int | None = None, batch_size: int = 32
    ) -> list[Likelihood]:
        """The negative log-likelihood of each text and the number of tokens it is of, for bundles that continue a text.

        A text's first token has nothing before it and is not counted. Longer texts are read in windows of `window` tokens (None: what the
        model takes, at most 1024) that begin every `stride` tokens (None: half a window; less gives more context and takes longer): each
        scores the tokens that the one before did not reach (transformers' documentation, "Perplexity of fixed-length models").
        Errors: as `score`.
        """
        return self._scorer().likelihoods(listed(texts, "texts"), window, stride, batch_size)

    def perplexity(
        self, texts: str | Sequence[Input], *, window: int | None = None, stride: int | None = None, batch_size: int = 32
    ) -> float:
        """exp of the mean negative log-likelihood a token, over all tokens of all texts; the rest as `likelihoods`."""
        from onnxport.runtime.tasks.scoring import perplexity

        return perplexity(self.likelihoods(texts, window=window, stride=stride, batch_size=batch_size))

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Raw arrays in, raw arrays out, by name, for encoder and tensor bundles. DataError for a wrong name, dtype, rank or size."""
        encoder = self.encoding()
        if not isinstance(inputs, Mapping):
            raise UsageError(f"inputs is {type(inputs).__name__}, expected arrays by name, as in {{'input_ids': array}}")
        return encoder.run({str(name): _array(str(name), value) for name, value in inputs.items()})

    def tokenize(self, text: str) -> list[int]:
        """The ids the model reads for a text, special tokens included. TextError without a tokenizer."""
        check_text(text)
        return self.tokenize_all([text])[0]

    def text_stream(self) -> TextStream:
        """What makes text of an answer's tokens, one after the other: `push` gives what a token adds. TextError without a tokenizer."""
        return TextStream(self._answers())

    def token_text(self, token: int, after: int | None = None) -> str:
        """The text of one token of an answer, `after` another or at the beginning, special ones by their names.

        The tokenizer's own name for it where it is no whole characters. TextError without a tokenizer.
        """
        tokenizer = self._answers()
        before = "" if after is None else tokenizer.decode([after], special=True)
        both = tokenizer.decode([*([] if after is None else [after]), token], special=True)
        text = both[len(before) :] if both.startswith(before) else tokenizer.decode([token], special=True)
        return (tokenizer.token(token) or text) if "\ufffd" in text else text

    def _answers(self) -> TextTokenizer:
        tokenizer = self._ready()._tokenizers.get("target") or self._source()
        if tokenizer is None:
            raise TextError("the bundle has no tokenizer, so its tokens have no text")
        return tokenizer

    def tokenize_all(self, texts: Sequence[str], *, special: bool = True, most: int | None = None) -> list[list[int]]:
        """`tokenize` for many texts at once. special: with special tokens. most: tokens after which a text is cut (None: nowhere)."""
        tokenizer = self._ready()._source()
        if tokenizer is None:
            raise TextError("the bundle has no tokenizer; give token ids")
        if most is not None:
            tokenizer = tokenizer.truncating(most)
        return tokenizer.encode(listed(texts, "texts", TEXTS), special) if texts else []

    atokenize_all = in_background(tokenize_all)
    aprompt = in_background(prompt)
    arun = in_background(run)

    @property
    def task(self) -> str:
        """The bundle's task."""
        return self.bundle.task

    @property
    def padding(self) -> float:
        """Share of the positions computed by generate and stream so far that were padding or a finished row's, 0 to 1."""
        return 0.0 if self.engine is None else self.engine.positions.padding

    def generating(self) -> Generator:
        """The generator of a bundle that generates. UsageError for others."""
        self._ready()
        if self._generator is None:
            raise UsageError(f"this bundle's task is {self.bundle.task}, it does not generate; use run or encode")
        return self._generator

    def encoding(self) -> Encoder:
        """The encoder of a bundle that does not generate. UsageError for others."""
        self._ready()
        if self._encoder is None:
            raise UsageError(f"this bundle's task is {self.bundle.task}; use generate or stream")
        return self._encoder

    def close(self) -> None:
        """Free the sessions; later calls are a UsageError."""
        if self.draft is not None:
            self.draft.close()
        self._closed, self._generator, self._encoder, self.engine, self.draft = True, None, None, None, None
        if self._calls is not None and os.getpid() == self._process:
            self._calls.close()

    def _background(self) -> Background:
        from onnxport.runtime.asynchronous import Background

        with self._lock:
            self._calls = self._calls or Background()
            return self._calls

    def __reduce__(self) -> tuple[Any, ...]:
        """A model pickles as its path and options, and opens again where it lands."""
        self._ready()
        draft = None if self.draft is None else self.draft.precision
        return load, (
            os.path.abspath(self.bundle.path),
            self.precision,
            self.device,
            self._asked_threads,
            False,
            draft,
            *astuple(self._memory),
        )

    def __enter__(self) -> Model:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _scorer(self) -> Scorer:
        from onnxport.runtime.tasks.scoring import Scorer, stepped

        self.generating()
        assert self.engine is not None  # it generates
        return Scorer(self.engine.config, self._tokenizers.get("source"), self._tokenizers.get("target"), partial(stepped, self.engine))

    def _source(self) -> TextTokenizer | None:
        return self._tokenizers.get("source") or self._tokenizers.get("target")

    def _ready(self) -> Model:
        if self._closed:
            raise UsageError("this model was closed; load it again")
        if os.getpid() != self._process:  # the worker threads of ONNX Runtime stayed in the parent: a call would hang
            raise UsageError(
                f"this model was loaded in process {self._process} and is used after a fork in {os.getpid()}; load it in the child"
            )
        return self


def _bytes(mebibytes: int | None) -> int | None:
    return None if mebibytes is None else mebibytes << 20


TEXTS = "a text or a list of texts"


def _check_single(items: Sequence[Any]) -> None:
    """TextError where an item is what an encoder would read as a pair."""
    for i, text in enumerate(items):
        if isinstance(text, tuple | list):
            raise TextError(f"text {i} is a {type(text).__name__}, expected a text (str)")


@contextmanager
def progress_bar(shown: bool) -> Iterator[Progress]:
    """Progress as a line on standard error that is written over, with an end; nothing where it is not shown."""
    if not shown:
        yield silent
        return
    try:
        yield lambda stage: print(f"\r{stage}", end="", file=sys.stderr, flush=True)
    finally:
        print(file=sys.stderr)


def listed(value: Any, name: str, expected: str = f"{TEXTS} or of lists of token ids") -> list[Any]:
    """A list of what a caller gave: a single text, or many inputs. UsageError for what is neither."""
    return [value] if isinstance(value, str) else many(value, name, expected)


def _array(name: str, value: object) -> np.ndarray:
    """DataError for what is no array: lists of different lengths, objects."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{name} is {type(value).__name__}, expected an array ({one_line(error, 100)})") from None
    if array.dtype.hasobject:
        raise DataError(f"{name} is {type(value).__name__}, expected an array of numbers")
    return array
