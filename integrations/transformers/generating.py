"""The pipelines of models that generate: continuing a text or a chat, translating, summarizing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from onnxport.errors import TextError, UsageError
from onnxport.integrations.transformers.base import Options, Pipeline, texts
from onnxport.runtime import Generation
from onnxport.runtime.options import whole

Record = dict[str, Any]
# transformers' names of the options of a search → those of Model.generate
NAMES = {
    "max_new_tokens": "max_new_tokens", "min_new_tokens": "min_new_tokens", "num_beams": "beam", "repetition_penalty": "repetition_penalty",
    "no_repeat_ngram_size": "no_repeat_ngram", "length_penalty": "length_penalty", "early_stopping": "early_stopping", "seed": "seed",
    "stop_strings": "stop", "stop_sequence": "stop", "src_lang": "src_lang", "tgt_lang": "tgt_lang",
}  # fmt: skip
SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 1.0}  # what transformers samples by where nothing says
SEARCH = frozenset({*NAMES, *SAMPLING, "do_sample", "num_return_sequences", "max_length", "min_length"})
NEUTRAL = frozenset({"pad_token_id", "use_cache", "tokenizer", "padding", "return_text", "clean_up_tokenization_spaces"})
NEW_TOKENS, BEAMS = 256, 4  # the pipelines' own, where neither the caller nor the model says


class _GeneratingPipeline(Pipeline):
    """How the options of a search are read."""

    samples: ClassVar[bool] = False  # by default
    beams: ClassVar[int] = 1  # by default
    defaults: ClassVar[Mapping[str, Any]] = SAMPLING
    advice: ClassVar[Mapping[str, str]] = {
        "return_tensors": "use model.generate, whose results have tokens",
        "generation_config": "give its members as arguments",
        "assistant_model": "load the bundle with draft=VARIANT",
        "eos_token_id": "the model's own end an answer; give stop_strings for others",
    }

    def _search(self, options: Options, lengths: Sequence[int]) -> list[Options]:
        """The options of Model.generate for each input, of so many tokens. UsageError."""
        own = self.model.generating().config
        given = {name: value for name, value in options.items() if name in SEARCH and value is not None}
        found: Options = {NAMES[name]: value for name, value in given.items() if name in NAMES}
        own_sampling = any(value is not None for value in (own.search.temperature, own.search.top_k, own.search.top_p))
        sampling = given.get("do_sample", own_sampling or self.samples)
        if sampling:
            if found.get("beam", 1) > 1:
                raise UsageError(
                    f"{self.task}: num_beams is {found['beam']} while do_sample is on; choose beams, with do_sample=False, or sampling"
                )
            for name, value in self.defaults.items():
                at_hand = getattr(own.search, name)
                found[name] = given.get(name, value if at_hand is None else at_hand)
        elif own_sampling:
            found.setdefault("beam", max(own.search.beam, self.beams))
            found |= {"temperature": 0} if found["beam"] == 1 else {}
        elif own.search.beam == 1:
            found.setdefault("beam", self.beams)
        limits = [self._limits(given, length) for length in lengths]
        if all("max_new_tokens" not in limit for limit in limits) and own.max_new_tokens is None and own.max_total_tokens is None:
            limits = [{"max_new_tokens": NEW_TOKENS, **limit} for limit in limits]
        return [{**found, **limit} for limit in limits]

    def _limits(self, given: Options, length: int) -> Options:
        """Bounds on new tokens, of those that count the tokens before them too."""
        found: Options = {name: given[name] for name in ("max_new_tokens", "min_new_tokens") if name in given}
        if "max_length" in given and "max_new_tokens" not in given:
            most = whole("max_length", given["max_length"], 1) - length
            if most < 1:
                raise UsageError(f"max_length is {given['max_length']}, which leaves no new token behind {length}; give max_new_tokens")
            found["max_new_tokens"] = most
        if "min_length" in given and "min_new_tokens" not in given:
            found["min_new_tokens"] = max(0, whole("min_length", given["min_length"], 0) - length)
        return found

    def _generated(self, inputs: Sequence[Any], lengths: Sequence[int], options: Options, batch_size: int) -> list[list[Generation]]:
        """The answers to each input, as many as num_return_sequences asks for."""
        count = whole("num_return_sequences", options.get("num_return_sequences") or 1, 1)
        searches = self._search(options, lengths)
        found: list[list[Generation]] = [[] for _ in inputs]
        for search in {repr(one): one for one in searches}.values():  # inputs that are searched alike share batches
            places = [i for i, one in enumerate(searches) if one == search]
            beams = search.get("beam") or self.model.generating().config.search.beam
            if count == 1 or beams > 1:
                results = self.model.generate([inputs[i] for i in places], n_best=count, batch_size=batch_size, **search)
                for i, one in zip(places, results, strict=True):
                    found[i] = [one, *one.alternatives]
            elif "temperature" in search:
                repeated = [i for i in places for _ in range(count)]
                results = self.model.generate([inputs[i] for i in repeated], batch_size=batch_size, **search)
                for i, one in zip(repeated, results, strict=True):
                    found[i].append(one)
            else:
                raise UsageError(f"num_return_sequences is {count}, which needs num_beams or do_sample=True")
        return found

    def _text(self, one: Generation, options: Options) -> str:
        """An answer's text; a text that ended it belongs to it, as there."""
        if one.finish_reason != "stop":
            return one.text or ""
        stream = self.model.text_stream()
        return "".join(map(stream.push, one.tokens)) + stream.finish()


class TextGenerationPipeline(_GeneratingPipeline):
    """Continues texts, or chats (lists of {"role", "content"}): a list of {"generated_text"} an input.

    The text is prompt and answer, or with return_full_text=False the answer; of a chat the messages and the new one. A chat that ends with
    an assistant's message goes on with it. As there, answers are sampled (temperature 0.7) unless the model or do_sample=False says
    otherwise, and have at most 256 new tokens. seed: makes that repeatable.
    """

    task = "text-generation"
    bundle_tasks = ("text-generation",)
    samples = True
    defaults: ClassVar[Mapping[str, Any]] = SAMPLING | {"temperature": 0.7}
    arguments = (SEARCH - {"src_lang", "tgt_lang"}) | NEUTRAL | {
        "return_full_text", "return_type", "prefix", "add_special_tokens", "continue_final_message", "tools", "skip_special_tokens",
    }  # fmt: skip

    def _is_list(self, inputs: Any) -> bool:
        return isinstance(inputs, list | tuple) and not (inputs and is_message(inputs[0]))

    def _answers(self, inputs: list[Any], options: Options, batch_size: int) -> list[list[Record]]:
        full = options.get("return_full_text")
        kind = options.get("return_type", 2 if full is None or full else 1)  # transformers' numbers: 0 tensors, 1 new text, 2 full text
        if getattr(kind, "value", kind) not in (1, 2):
            raise UsageError(f"return_type is {kind!r:.60}, expected 1 (new text) or 2 (full text); {self.advice['return_tensors']}")
        if options.get("skip_special_tokens") is False:
            raise UsageError("skip_special_tokens is False, but answers have no special tokens; leave it out")
        prompts = [self._prompt(one, options) for one in inputs]
        found = self._generated(prompts, [len(ids) for ids in prompts], options, batch_size)
        full = getattr(kind, "value", kind) == 2
        return [
            [{"generated_text": self._joined(given, self._text(one, options), full, options)} for one in answers]
            for given, answers in zip(inputs, found, strict=True)
        ]

    def _prompt(self, given: Any, options: Options) -> list[int]:
        """Token ids of a text, or of a chat by the model's template; of an empty text the token that begins texts."""
        if isinstance(given, str):
            text = (options.get("prefix") or "") + given
            special = options.get("add_special_tokens")
            ids = self.model.tokenize_all([text], special=special is None or bool(special))[0]
            first = self.model.generating().config.bos_id
            if not ids and first is None:
                raise TextError("the text is empty, and the model has no token that begins texts; expected some words")
            return ids or [first]  # type: ignore[list-item]
        if isinstance(given, list | tuple) and given and is_message(given[0]):
            return self.model.prompt(given, tools=options.get("tools"), continue_final=continues(given, options))
        raise TextError(f"found {given!r:.60}, expected a text or a list of messages with role and content")

    def _joined(self, given: Any, answer: str, full: bool, options: Options) -> Any:
        if not full:
            return answer
        if isinstance(given, str):
            return given + answer
        if continues(given, options):
            return [*given[:-1], {**given[-1], "content": given[-1]["content"] + answer}]
        return [*given, {"role": "assistant", "content": answer}]


class Text2TextGenerationPipeline(_GeneratingPipeline):
    """Answers texts with an encoder-decoder: a list of {"generated_text"} a text; of a list of texts one record each.

    As there, the search has 4 beams where the model does not say another number, and at most 256 new tokens. Prefixes that T5's config
    has for a task (task_specific_params) are not put before texts: write them.
    """

    task = "text2text-generation"
    bundle_tasks = ("text2text", "translation", "summarization")
    beams = BEAMS
    arguments = (SEARCH - {"src_lang", "tgt_lang"}) | NEUTRAL | {"truncation"}
    key: ClassVar[str] = "generated_text"

    def __call__(self, inputs: Any, *args: Any, **options: Any) -> Any:
        """As of all pipelines."""
        found = super().__call__(inputs, *args, **options)
        return [one[0] for one in found] if self._is_list(inputs) and all(len(one) == 1 for one in found) else found

    def _answers(self, inputs: list[Any], options: Options, batch_size: int) -> list[list[Record]]:
        given: list[Any] = texts(inputs)
        if options.get("truncation"):
            given = self._cut(given, options)
        found = self._generated(given, [1] * len(given), options, batch_size)  # an answer's first token is the one that starts it
        return [[{self.key: self._text(one, options)} for one in answers] for answers in found]

    def _cut(self, given: list[str], options: Options) -> list[Any]:
        """Texts as ids, no longer than the model reads. UsageError where a language is asked for, which ids do not tell."""
        if options.get("src_lang") or options.get("tgt_lang"):
            raise UsageError("truncation is given together with src_lang or tgt_lang, which is not followed; cut the texts before")
        return self.model.tokenize_all(given, most=self.model.generating().config.source_length)


class SummarizationPipeline(Text2TextGenerationPipeline):
    """As text2text-generation, with {"summary_text"}."""

    task = "summarization"
    key = "summary_text"


class TranslationPipeline(Text2TextGenerationPipeline):
    """As text2text-generation, with {"translation_text"}; src_lang and tgt_lang for a model of several languages."""

    task = "translation"
    key = "translation_text"
    arguments = Text2TextGenerationPipeline.arguments | {"src_lang", "tgt_lang"}


def is_message(one: Any) -> bool:
    """Whether this is a message of a chat."""
    return isinstance(one, Mapping) and "role" in one and "content" in one


def continues(messages: Sequence[Mapping[str, Any]], options: Options) -> bool:
    """Whether the answer goes on with the last message."""
    asked = options.get("continue_final_message")
    return messages[-1].get("role") == "assistant" if asked is None else bool(asked)
