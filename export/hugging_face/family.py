"""Protocols of the families of transformers: what the reader of Hugging Face's folders asks of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from onnxport.export.description import Model
from onnxport.export.sentence_transformers import TextSettings


class Decoding(NamedTuple):
    """How a folder's model is decoded: pad, bos, eos and start as a bundle names them, and the settings of its search."""

    ids: dict[str, Any]
    search: dict[str, Any]


class Adapter(Protocol):
    """A loaded model with what its decoding needs."""

    @property
    def model(self) -> Any:
        """The loaded module."""

    @property
    def max_length(self) -> int | None:
        """Positions; None where there is no bound."""

    def describe(self) -> Model:
        """Its description."""


class Family(Protocol):
    """Models of one model_type; those with a table of weight names stand in `onnxport.export.families`."""

    @property
    def model_type(self) -> str:
        """Its name in a config.json."""

    @property
    def kind(self) -> Literal["seq2seq", "causal", "encoder"]:
        """What all its models are."""

    @property
    def prefix(self) -> str:
        """The start of tensor names that a model saved without its head leaves out."""

    @property
    def settings(self) -> frozenset[str]:
        """Keys of config.json that a bundle's manifest repeats."""

    def problems(self, config: Mapping[str, Any]) -> list[str]:
        """Everything in a config.json that the canonical model would not reproduce."""

    def class_name(self, config: Mapping[str, Any]) -> str:
        """The class of transformers that a folder with this config.json is loaded with."""

    def optional_tensors(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """Patterns of tensor names that may be there or not, and do not matter."""

    def task(self, config: Mapping[str, Any]) -> str | None:
        """Its task; None for the usual one of its kind."""

    def vocabularies(self, config: Any) -> dict[str, int]:
        """Rows of the tables by `source` and `target`, from transformers' config."""

    def adapter(self, model: Any, folder: Path, decoding: Decoding | None, texts: TextSettings) -> Adapter:
        """An adapter around a loaded model; `decoding` is None for the kind "encoder", `texts` are for that alone. CheckpointError."""
