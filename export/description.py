"""Descriptions of models: what the exporter needs to know of one, whatever class or library it comes from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import Tensor

from onnxport.errors import UsageError
from onnxport.export.canonical.graphs import CanonicalModel
from onnxport.export.trace.tracer import Shapes
from onnxport.runtime.bundle.manifest import EncodingConfig

Arrays = dict[str, Tensor]  # by the names that the graph's inputs and outputs have


class Seq2SeqOriginal(Protocol):
    """The user's own encoder-decoder as functions of ids; golden answers come from here, never from the canonical model.

    `source_rows`: ids that it takes as a source; `target_rows`: ids that it can both answer and take.
    """

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
    """The user's own language model as a function of ids. `rows`: ids that it can both answer and take."""

    modules: list[Any]
    rows: int

    def causal(self, ids: Tensor, last: int | None = None) -> Tensor:
        """int64 [batch, length] → logits [batch, length, vocabulary]; rows are padded on the right, where nothing real looks.

        last: only this many positions at the end of the rows are answered.
        """


@dataclass(frozen=True)
class Seq2SeqModel:
    """An encoder-decoder. `ids` and `search` go into the bundle's generation settings; `max_length` None: no bound; `max_source_length`:
    of sources, None where that is theirs too. build: None where its one module, a class of transformers, is traced through the attention
    interface."""

    original: Seq2SeqOriginal
    build: Callable[[], CanonicalModel] | None
    ids: dict[str, Any]
    max_length: int | None
    search: dict[str, Any] = field(default_factory=dict)
    max_source_length: int | None = None
    tasks = ("text2text", "translation", "summarization")


@dataclass(frozen=True)
class CausalModel:
    """A language model. `ids`, `max_length` and `search` as in Seq2SeqModel. build: None where its one module, a class of transformers, is
    traced through the attention interface."""

    original: CausalOriginal
    build: Callable[[], CanonicalModel] | None
    ids: dict[str, Any]
    max_length: int | None
    search: dict[str, Any] = field(default_factory=dict)
    tasks = ("text-generation",)


@dataclass(frozen=True)
class EncoderModel:
    """A model that answers in one pass.

    answer: the original as a function of `input_ids`, `attention_mask` and, with `types` > 0 token types, `token_type_ids`, int64
    [batch, sequence] → outputs by name. outputs: their names and shapes. rows: ids it takes. build: its canonical form, with the one role
    `encoder`; None: its one module is traced directly. encoding: how the runtime handles texts, to which `encoding_config` adds sizes.
    tasks: what it can do, its usual task first. end_id: what every text must end with, if anything.
    layers: arrays of what follows the pooling.
    """

    modules: list[Any]
    answer: Callable[[Arrays], Arrays]
    build: Callable[[], CanonicalModel] | None
    outputs: Shapes
    rows: int
    pad_id: int
    max_length: int | None
    tasks: tuple[str, ...]
    types: int = 0
    encoding: EncodingConfig = EncodingConfig()
    end_id: int | None = None
    layers: tuple[Mapping[str, Any], ...] = ()

    def encoding_config(self) -> EncodingConfig:
        """`encoding` with the model's sizes. Where all tokens are of one type, the types that a tokenizer gives are not read."""
        sized = replace(self.encoding, max_length=self.max_length, vocab_size=self.rows, pad_id=self.pad_id)
        return replace(sized, token_types=False) if self.types == 1 else sized


Model = Seq2SeqModel | CausalModel | EncoderModel


class SelfDescribing(Protocol):
    """An adapter that describes itself, such as those of Hugging Face folders."""

    def describe(self) -> Model:
        """Its model."""


def choose_task(possible: tuple[str, ...], task: str | None, model: str) -> str:
    """The wanted task, or the first possible one where none is wanted. UsageError when `model` cannot do it."""
    if task is None:
        return possible[0]
    if task not in possible:
        raise UsageError(f"task {task} is not possible for this {model}; possible: {', '.join(possible)}")
    return task
