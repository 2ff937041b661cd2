"""What an export needs of a model, whatever it came from: one description for each of three kinds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from onnxport.export.canonical import Built
from onnxport.export.original import CausalOriginal, Seq2SeqOriginal
from onnxport.export.trace import Shapes

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
