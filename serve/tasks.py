"""The tasks of bundles: the method of the runtime that answers each, its options, and its answers as `onnxport run --json` tells them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from onnxport.runtime import Generation, Model

Answer = dict[str, Any]
Kinds = Mapping[str, tuple[type, ...]]
WHOLE, NUMBER, TEXT, FLAG = (int,), (float,), (str,), (bool,)
SEARCH: Kinds = {
    "beam": WHOLE, "max_new_tokens": WHOLE, "min_new_tokens": WHOLE, "temperature": NUMBER, "top_k": WHOLE, "top_p": NUMBER,
    "repetition_penalty": NUMBER, "no_repeat_ngram": WHOLE, "seed": WHOLE, "stop": (str, list), "length_penalty": NUMBER,
    "early_stopping": (bool, str), "src_lang": TEXT, "tgt_lang": TEXT, "lookup": WHOLE, "n_best": WHOLE, "long": TEXT,
    "response_format": (dict, list), "logit_bias": (dict,), "stop_token_ids": (list,),
}  # fmt: skip
STRIDE: Kinds = {"stride": WHOLE}
TURN = 64  # inputs that a model answers before another request has its turn
GENERATED = ("text", "tokens", "score", "finish_reason")


@dataclass(frozen=True)
class Task:
    """How inputs of a task are answered.

    method: of the model; with an `a` in front of it awaited. options: of the method, with their types. told: the members of a result.
    inputs: what one consists of, by the members of an object; a text alone stands for the first where it has one member or the others are
    optional.
    """

    method: str
    options: Kinds
    told: Callable[[Any], Answer]
    inputs: tuple[str, ...] = ("text",)
    optional: tuple[str, ...] = ()

    def arguments(self, inputs: list[tuple[str, ...]]) -> Answer:
        """The method's arguments for inputs, whose texts are in the order of `inputs` and `optional`."""
        if self.method == "answer":
            return {"question": [question for question, _ in inputs], "context": [context for _, context in inputs]}
        texts = [one if len(one) > 1 else one[0] for one in inputs]
        return {"inputs" if self.method == "generate" else "texts": texts}

    async def answers(self, model: Model, inputs: list[tuple[str, ...]], options: Answer) -> list[Answer]:
        """The answers to inputs, awaited. Models that answer in one pass take many inputs in turns, so that others come in between."""
        turn = len(inputs) if self.method == "generate" else TURN
        found: list[Answer] = []
        for start in range(0, len(inputs), turn):
            results = await getattr(model, f"a{self.method}")(**self.arguments(inputs[start : start + turn]), **options)
            found += [self.told(one) for one in results]
        return found


def generated(result: Generation) -> Answer:
    """The members of an answer of a model that generates."""
    told = {name: getattr(result, name) for name in GENERATED}
    return told | ({"alternatives": [generated(one) for one in result.alternatives]} if result.alternatives else {})


def _label(one: Any) -> Answer:
    return {"label": one.label, "scores": one.scores, "labels": list(one.labels)}


def _span(one: Any) -> Answer:
    told = asdict(one)
    others = [{name: value for name, value in other.items() if name != "alternatives"} for other in told.pop("alternatives")]
    return told | ({"alternatives": others} if others else {})


GENERATE = Task("generate", SEARCH, generated)
CANDIDATES: Kinds = {"candidates": (list,), **STRIDE}
ZERO_SHOT: Kinds = {**CANDIDATES, "hypothesis_template": TEXT, "multi_label": FLAG}
POOLED: Kinds = {"prompt": TEXT, "prompt_name": TEXT, "normalize_embeddings": FLAG, "truncate_dim": WHOLE, **STRIDE}
SPANS: Kinds = {"n_best": WHOLE, "max_answer_tokens": WHOLE, "no_answer": FLAG, "window": WHOLE, **STRIDE}
TASKS = {
    "translation": GENERATE,
    "summarization": GENERATE,
    "text2text": GENERATE,
    "text-generation": GENERATE,
    "embedding": Task("encode", POOLED, lambda vector: {"embedding": vector.tolist()}),
    "classification": Task("classify", ZERO_SHOT, _label, optional=("pair",)),
    "multiple-choice": Task("classify", CANDIDATES, _label),
    "token-classification": Task(
        "entities", {"aggregation": TEXT, "ignore_labels": (list,), **STRIDE}, lambda found: {"entities": [asdict(one) for one in found]}
    ),
    "fill-mask": Task("fill", {"top_k": WHOLE, "targets": (str, list), **STRIDE}, lambda found: {"fills": [asdict(one) for one in found]}),
    "question-answering": Task("answer", SPANS, _span, inputs=("question", "context")),
}
