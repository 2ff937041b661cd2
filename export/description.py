"""The user's own class behind plain functions of ids: golden answers come from here, never from the canonical model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from onnxport.export.canonical.graphs import Built
from onnxport.export.trace.tracer import Shapes


class Seq2SeqOriginal(Protocol):
    """Any encoder-decoder of the user's. `source_rows`: ids it takes; `target_rows`: ids that it can both answer and take."""

    modules: list[Any]
    source_rows: int
    target_rows: int

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """int64 and int32 [batch, source] → memory [batch, source, d]."""

    def decode(self, target_ids: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """int64 [batch, target], memory and mask as in `encode` → logits [batch, target, vocabulary]."""

    def forward(self, ids: Tensor, mask: Tensor, target_ids: Tensor) -> Tensor:
        """Teacher-forced logits [batch, target, vocabulary] through the class's own forward."""


class CausalOriginal(Protocol):
    """Any language model of the user's. `rows`: ids that it can both answer and take."""

    modules: list[Any]
    rows: int

    def causal(self, ids: Tensor) -> Tensor:
        """int64 [batch, length] → logits [batch, length, vocabulary]; rows are padded on the right, where nothing real looks."""


Arrays = dict[str, Tensor]  # by the names that the graph's inputs and outputs have


@dataclass(frozen=True)
class Seq2SeqModel:
    """An encoder-decoder. `ids` and `extras` go into the bundle's generation settings; `max_length` None: no bound."""

    original: Seq2SeqOriginal
    build: Callable[[], Built]
    ids: dict[str, Any]
    max_length: int | None
    extras: dict[str, Any] = field(default_factory=dict)
    tasks = ("text2text", "translation", "summarization")


@dataclass(frozen=True)
class CausalModel:
    """A language model. `ids`, `max_length` and `extras` as in Seq2SeqModel."""

    original: CausalOriginal
    build: Callable[[], Built]
    ids: dict[str, Any]
    max_length: int | None
    extras: dict[str, Any] = field(default_factory=dict)
    tasks = ("text-generation",)


@dataclass(frozen=True)
class EncoderModel:
    """A model that answers in one pass.

    answer: the original: `input_ids`, `attention_mask` and, with `types` > 0 kinds of tokens, `token_type_ids`, int64 [batch, sequence]
    → outputs by name. outputs: their names and shapes. rows: ids it takes. build: its canonical graph, role `encoder`; None: its one module
    is traced directly.
    encoding: what the bundle tells the runtime beside max_length, pad_id and vocab_size. tasks: what it can do, its usual task first.
    """

    modules: list[Any]
    answer: Callable[[Arrays], Arrays]
    build: Callable[[], Built] | None
    outputs: Shapes
    rows: int
    pad_id: int
    max_length: int | None
    tasks: tuple[str, ...]
    types: int = 0
    encoding: Mapping[str, Any] = field(default_factory=dict)

    def reading(self) -> dict[str, Any]:
        """A bundle's `encoding`. With a single kind of tokens, what a tokenizer tells of kinds is not read."""
        told = {"max_length": self.max_length, "vocab_size": self.rows, "pad_id": self.pad_id}
        return told | ({"kinds": False} if self.types == 1 else {}) | dict(self.encoding)


class Described(Protocol):
    """An adapter that describes itself, such as those of Hugging Face folders."""

    def described(self) -> Seq2SeqModel | CausalModel | EncoderModel:
        """The model as one of the three kinds."""
