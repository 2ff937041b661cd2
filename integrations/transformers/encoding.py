"""The pipelines of models that answer in one pass: classification, entities, answers in a context, masks, vectors of tokens."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from onnxport.errors import TextError, UsageError
from onnxport.integrations.transformers.base import EncoderPipeline, Options, texts
from onnxport.runtime.encoder import finite
from onnxport.runtime.options import whole
from onnxport.runtime.tasks import classification, embedding, fill_mask, question_answering, token_classification
from onnxport.runtime.tasks.classification import SCORES, Candidates
from onnxport.runtime.tasks.question_answering import WINDOW
from onnxport.runtime.tasks.token_classification import WORDS, Span
from onnxport.runtime.tokenizer import SHARED

Record = dict[str, Any]
FUNCTIONS = {"sigmoid": SCORES["multi"], "softmax": SCORES["single"], "none": SCORES["regression"]}
MISSING: Any = object()  # of an argument for which None says something
CUT = frozenset({"truncation", "max_length", "padding"})


class TextClassificationPipeline(EncoderPipeline):
    """Labels of texts, or of pairs as {"text": ..., "text_pair": ...}: the best {"label", "score"}, or with top_k a list of them.

    A text alone without top_k gives a list of one, as there. function_to_apply: "sigmoid", "softmax" or "none"; by default what the
    model's problem type asks for. Without truncation=True a text beyond the model is read in windows, whose logits are merged.
    """

    task = "text-classification"
    bundle_tasks = ("classification",)
    arguments = frozenset({"top_k", "function_to_apply", *CUT})
    advice: ClassVar[Mapping[str, str]] = {"return_all_scores": "give top_k=None for all labels"}

    def __call__(self, inputs: Any, *args: Any, **options: Any) -> Any:
        """As of all pipelines."""
        found = super().__call__(inputs, *args, **options)
        return [found] if isinstance(inputs, str) and "top_k" not in options else found

    def _answers(self, inputs: list[Any], options: Options, batch_size: int) -> list[Any]:
        encoder = self._encoder(options.get("truncation"), options.get("max_length"))
        config = encoder.config
        name = options.get("function_to_apply")
        if name is not None and name not in FUNCTIONS:
            raise UsageError(f"function_to_apply is {name!r:.60}, expected one of {', '.join(FUNCTIONS)}")
        apply, top_k = FUNCTIONS[name] if name else SCORES[config.problem], options.get("top_k", MISSING)
        if top_k not in (None, MISSING):
            whole("top_k", top_k, 0)
        found = []
        for logits in classification.text_logits(encoder, [_text_or_pair(one) for one in inputs], batch_size, None):
            labels = config.labels or tuple(f"LABEL_{i}" for i in range(len(logits)))
            records: list[Record] = [{"label": label, "score": float(score)} for label, score in zip(labels, apply(logits), strict=True)]
            records.sort(key=lambda record: -record["score"])
            found.append(records[0] if top_k is MISSING else records[:top_k])
        return found


def _text_or_pair(one: Any) -> Any:
    """TextError for what is neither."""
    if isinstance(one, Mapping) and {"text"} <= set(one) <= {"text", "text_pair"}:
        return one["text"] if one.get("text_pair") is None else (one["text"], one["text_pair"])
    if isinstance(one, list) and len(one) == 1 and isinstance(one[0], list) and len(one[0]) == 2:  # an older form, which is still taken
        return one[0][0], one[0][1]
    if isinstance(one, str):
        return one
    raise TextError(f"found {one!r:.60}, expected a text, or a pair as {{'text': ..., 'text_pair': ...}}")


class ZeroShotClassificationPipeline(EncoderPipeline):
    """Labels of the caller's own, by a model of entailment: {"sequence", "labels", "scores"}, best first. Long texts are cut, as there."""

    task = "zero-shot-classification"
    bundle_tasks = ("classification",)
    arguments = frozenset({"candidate_labels", "hypothesis_template", "multi_label"})

    def __call__(self, inputs: Any = None, *args: Any, **options: Any) -> Any:
        """As of all pipelines; candidate_labels may be the second argument."""
        inputs = options.pop("sequences", inputs)
        if len(args) == 1 and "candidate_labels" not in options:
            options, args = {**options, "candidate_labels": args[0]}, ()
        return super().__call__(inputs, *args, **options)

    def _answers(self, inputs: list[Any], options: Options, batch_size: int) -> list[Record]:
        if "candidate_labels" not in options:
            raise UsageError("candidate_labels is missing, expected texts")
        wanted = Candidates.of(options["candidate_labels"], options.get("hypothesis_template"), bool(options.get("multi_label")))
        sequences, encoder = texts(inputs), self._encoder(truncation=True, pairs="only_first")
        found = classification.choose(encoder, sequences, [wanted] * len(sequences), batch_size, None)
        return [
            {"sequence": text, "labels": list(one.scores), "scores": list(one.scores.values())}
            for text, one in zip(sequences, found, strict=True)
        ]


class TokenClassificationPipeline(EncoderPipeline):
    """Labels of tokens, or entities with an aggregation_strategy.

    "none" (the default): {"entity", "score", "index", "word", "start", "end"} a token; else {"entity_group", "score", "word", "start",
    "end"} an entity. Texts beyond the model are cut, or with stride read in windows that share so many tokens.
    """

    task = "token-classification"
    bundle_tasks = ("token-classification",)
    arguments = frozenset({"aggregation_strategy", "ignore_labels", "stride"})
    advice: ClassVar[Mapping[str, str]] = {
        "grouped_entities": "give aggregation_strategy",
        "is_split_into_words": "give the words as one text, or use onnxport.load(...).tags",
    }

    def _answers(self, inputs: list[Any], options: Options, batch_size: int) -> list[list[Record]]:
        strategy, stride = str(options.get("aggregation_strategy") or "none").lower(), options.get("stride")
        given = options.get("ignore_labels")
        ignored = token_classification.ignored_labels("O" if given is None else given)
        if stride is not None and strategy == "none":
            raise UsageError("stride is given, which needs an aggregation_strategy other than 'none'")
        found = token_classification.spans(self._encoder(truncation=stride is None), texts(inputs), strategy, ignored, batch_size, stride)
        return [[self._record(span, strategy) for span in spans] for spans in found]

    def _record(self, span: Span, strategy: str) -> Record:
        entity, tokenizer = span.entity, self.model.encoding().tokenizer
        assert tokenizer is not None  # the text was read with it
        place = {"start": entity.start, "end": entity.end}
        if strategy == "none":
            return {"entity": entity.label, "score": entity.score, "index": span.index, "word": span.names[0][0]} | place
        parts = [tokenizer.written(word) for word in span.names] if strategy in WORDS else [name for word in span.names for name in word]
        return {"entity_group": entity.label, "score": entity.score, "word": tokenizer.written(parts)} | place


class FillMaskPipeline(EncoderPipeline):
    """The best tokens for a text's mask: a list of {"score", "token", "token_str", "sequence"}; a list for each mask of several."""

    task = "fill-mask"
    bundle_tasks = ("fill-mask",)
    arguments = frozenset({"top_k", "targets", "tokenizer_kwargs"})

    def __call__(self, inputs: Any, *args: Any, **options: Any) -> Any:
        """As of all pipelines, but that a list of one text gives what the text gives."""
        found = super().__call__(inputs, *args, **options)
        return found[0] if isinstance(inputs, list) and len(inputs) == 1 else found

    def _answers(self, inputs: list[Any], options: Options, batch_size: int) -> list[Any]:
        reading = dict(options.get("tokenizer_kwargs") or {})
        if unknown := set(reading) - CUT:
            raise UsageError(f"tokenizer_kwargs has {min(unknown)}, which is not followed; expected some of {', '.join(sorted(CUT))}")
        encoder = self._encoder(reading.get("truncation"), reading.get("max_length"))
        top_k, targets = options.get("top_k"), options.get("targets")
        wanted = [targets] if isinstance(targets, str) else targets
        found = []
        for fills in fill_mask.fill(encoder, texts(inputs), 5 if top_k is None else top_k, wanted, batch_size, None):
            rows: list[list[Record]] = [[] for _ in range(1 + fills[-1].mask)]
            for one in fills:
                rows[one.mask].append({"score": one.score, "token": one.id, "token_str": one.token, "sequence": one.text})
            found.append(rows[0] if len(rows) == 1 else rows)
        return found


class FeatureExtractionPipeline(EncoderPipeline):
    """The model's last hidden state of a text, as lists [1][tokens][size]; return_tensors=True: a tensor of torch.

    TextError for a text beyond the model without truncation=True.
    """

    task = "feature-extraction"
    bundle_tasks = ("embedding",)
    arguments = frozenset({"return_tensors", "tokenize_kwargs", *CUT})

    def _answers(self, inputs: list[Any], options: Options, batch_size: int) -> list[Any]:
        reading = {**(options.get("tokenize_kwargs") or {}), **{name: options[name] for name in CUT if name in options}}
        if unknown := set(reading) - CUT:
            raise UsageError(f"tokenize_kwargs has {min(unknown)}, which is not followed; expected some of {', '.join(sorted(CUT))}")
        encoder = self._encoder(reading.get("truncation"), reading.get("max_length"))
        windows = encoder.windows(texts(inputs), None)
        owners = [window.owner for window in windows]
        if len(windows) > len(inputs):
            long = next(owner for owner in owners if owners.count(owner) > 1)
            raise TextError(f"text {long} is longer than the {encoder.config.max_length} tokens that the model reads; give truncation=True")
        states: list[np.ndarray] = [np.empty(0)] * len(inputs)
        for window, outputs in encoder.each(windows, batch_size):
            states[window.owner] = finite(outputs[embedding.STATE][None, : len(window)], window.owner)
        if not options.get("return_tensors"):
            return [state.tolist() for state in states]
        try:
            torch = importlib.import_module("torch")
        except ImportError:
            raise UsageError("return_tensors=True needs torch, which is not installed; leave it out for lists") from None
        return [torch.from_numpy(np.ascontiguousarray(state)) for state in states]


class QuestionAnsweringPipeline(EncoderPipeline):
    """Answers to questions in contexts: {"score", "start", "end", "answer"}; with top_k above 1 a list of them.

    Called with question= and context= (texts, or lists of them), with {"question", "context"}, or a list of such. Of the spans of all
    windows those with the same text are one answer, whose score is their sum, as there.
    """

    task = "question-answering"
    bundle_tasks = ("question-answering",)
    arguments = frozenset(
        {"top_k", "topk", "doc_stride", "max_answer_len", "max_seq_len", "max_question_len", "handle_impossible_answer", "padding"}
    )
    advice: ClassVar[Mapping[str, str]] = {"align_to_words": "answers are whole words, as by default"}

    def __call__(self, inputs: Any = None, *args: Any, **options: Any) -> Any:
        """As of all pipelines. UsageError for inputs in another form."""
        if options.get("align_to_words") in (True, None):
            options.pop("align_to_words", None)
        question, context = options.pop("question", inputs), options.pop("context", None)
        if len(args) == 1 and context is None:
            context, args = args[0], ()
        if context is not None:
            several = isinstance(question, list) or isinstance(context, list)
            questions = question if isinstance(question, list) else [question]
            contexts = context if isinstance(context, list) else [context] * len(questions)
            if len(questions) != len(contexts):
                raise UsageError(f"found {len(questions)} questions and {len(contexts)} contexts, expected as many")
            pairs = [{"question": one, "context": other} for one, other in zip(questions, contexts, strict=True)]
            question = pairs if several and len(pairs) > 1 else pairs[0]
        elif isinstance(question, list) and len(question) == 1:
            question = question[0]
        return super().__call__(question, *args, **options)

    def _answers(self, inputs: list[Any], options: Options, batch_size: int) -> list[Any]:
        given = {name: value for name, value in options.items() if value is not None}
        top_k = whole("top_k", given.get("top_k", given.get("topk", 1)), 1)
        longest = whole("max_answer_len", given.get("max_answer_len", 15), 1)
        empty, encoder, stride = bool(options.get("handle_impossible_answer")), self._encoder(), options.get("doc_stride")
        window = min(size for size in (options.get("max_seq_len") or WINDOW, encoder.config.max_length) if size is not None)
        found = question_answering.candidates(
            encoder, [_question(one) for one in inputs], 2 * top_k + 10, longest, batch_size,
            min(window // 2, SHARED) if stride is None else stride, window,
        )  # fmt: skip
        results = []
        for one, (spans, null) in zip(inputs, found, strict=True):
            records: dict[str, Record] = {}
            for (start, end), score in spans:
                text = one["context"][start:end]
                record = records.setdefault(text.lower(), {"score": 0.0, "start": start, "end": end, "answer": text})
                record["score"] += score
            answers = [*records.values(), *([{"score": null, "start": 0, "end": 0, "answer": ""}] if empty or not records else [])]
            answers.sort(key=lambda record: -record["score"])
            results.append(answers[0] if len(answers[:top_k]) == 1 else answers[:top_k])
        return results


def _question(one: Any) -> tuple[str, str]:
    if not isinstance(one, Mapping) or {"question", "context"} - set(one):
        raise TextError(f"found {one!r:.60}, expected {{'question': ..., 'context': ...}}")
    return one["question"], one["context"]
