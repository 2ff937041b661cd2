"""A family of transformers, as the reader of Hugging Face's folders asks for it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from onnxport.export.description import CausalModel, EncoderModel, Seq2SeqModel


class Decoding(NamedTuple):
    """How a folder's model is decoded: pad, bos, eos and start as a bundle names them, and the settings of its search."""

    ids: dict[str, Any]
    search: dict[str, Any]


class Adapter(Protocol):
    """A loaded model with what its decoding needs. `kind`, as of its family, and what every side of a comparison has to know."""

    @property
    def model(self) -> Any:
        """The loaded module."""

    @property
    def max_length(self) -> int | None:
        """Positions; None where there is no bound."""

    def describe(self) -> Seq2SeqModel | CausalModel | EncoderModel:
        """The model as one of the three kinds."""


class Family(Protocol):
    """A module of this package has one, called FAMILY.

    kind: of all its models. prefix: of tensor names, which a model that was saved without its head leaves out. settings: keys of
    config.json that a bundle's manifest repeats.
    """

    @property
    def model_type(self) -> str: ...

    @property
    def kind(self) -> Literal["seq2seq", "causal", "encoder"]: ...

    @property
    def prefix(self) -> str: ...

    @property
    def settings(self) -> frozenset[str]: ...

    def problems(self, given: Mapping[str, Any]) -> list[str]:
        """Everything in a config.json that the canonical model would not reproduce."""

    def class_name(self, given: Mapping[str, Any]) -> str:
        """The class of transformers that a folder with this config.json is loaded with."""

    def optional_tensors(self, given: Mapping[str, Any]) -> tuple[str, ...]:
        """Patterns of tensor names that may be there or not, and do not matter."""

    def task(self, given: Mapping[str, Any]) -> str | None:
        """Its task; None for the usual one of its kind."""

    def vocabularies(self, config: Any) -> dict[str, int]:
        """Rows of the tables by `source` and `target`, from transformers' config."""

    def adapter(self, model: Any, folder: Path, decoding: Decoding | None) -> Adapter:
        """An adapter around a loaded model; `decoding` is None for the kind "encoder". CheckpointError."""
