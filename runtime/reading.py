"""The manifest's parts about texts: how an encoder reads them and answers, and how a conversation becomes a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnxport.errors import BundleError
from onnxport.runtime.manifest import MANIFEST, Reader

POOLINGS = ("mean", "cls", "last")
PROBLEMS = ("single", "multi", "regression")


@dataclass(frozen=True)
class EncodingConfig:
    """How texts become inputs, and outputs answers, in an encoder-only bundle; every field has a default.

    max_length: of a text, with its special tokens. labels: names in the order of the logits. problem: what logits mean, "single" (one label
    of several), "multi" or "regression". kinds: texts tell the kinds of their tokens, else all are of kind 0. question_first: before its
    context, as models read it whose tokenizers pad on the right.
    """

    max_length: int | None = None
    pad_id: int = 0
    pad_type_id: int = 0
    vocab_size: int | None = None
    pooling: str = "mean"
    normalize: bool = True
    labels: tuple[str, ...] = ()
    problem: str = "single"
    kinds: bool = True
    question_first: bool = True


@dataclass(frozen=True)
class ChatConfig:
    """How a conversation becomes a prompt. template: path of a Jinja template; tokens: special tokens by name, which it may use."""

    template: str
    tokens: Mapping[str, str]


def encoding(value: object) -> EncodingConfig:
    """The `encoding` section; defaults when it is null. BundleError."""
    r = Reader({} if value is None else value, "encoding")
    labels = r.get("labels", (list, type(None)), None) or []
    if not all(isinstance(label, str) for label in labels) or len(set(labels)) < len(labels):
        raise BundleError(f"{MANIFEST}: encoding.labels must hold texts, each once; export the model again")
    config = EncodingConfig(
        max_length=r.natural("max_length", None, 1, null=True),
        pad_id=r.natural("pad_id", 0, null=True) or 0,
        pad_type_id=r.natural("pad_type_id", 0),
        vocab_size=r.natural("vocab_size", None, 1, null=True),
        pooling=r.get("pooling", str, "mean"),
        normalize=r.get("normalize", bool, True),
        labels=tuple(labels),
        problem=r.get("problem", (str, type(None)), None) or ("regression" if len(labels) == 1 else "single"),
        kinds=r.get("kinds", bool, True),
        question_first=r.get("question_first", bool, True),
    )
    for name, value, known in (("pooling", config.pooling, POOLINGS), ("problem", config.problem, PROBLEMS)):
        if value not in known:
            raise BundleError(f"{MANIFEST}: encoding.{name} is {value!r}, expected one of {', '.join(known)}; upgrade onnxport")
    if config.vocab_size is not None and config.pad_id >= config.vocab_size:
        raise BundleError(
            f"{MANIFEST}: encoding.pad_id {config.pad_id} is outside a vocabulary of {config.vocab_size}; export the model again"
        )
    return config


def chat(value: object) -> ChatConfig | None:
    """The `chat` section; None for models without a template. BundleError."""
    if value is None:
        return None
    r = Reader(value, "chat")
    return ChatConfig(r.get("template", str), r.strings("tokens"))
