"""What families have in common that are only what transformers makes of them, and are decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnxport.export.config_checks import DEPTH

OPTIONAL_TENSORS = (r"\.rotary_emb\.inv_freq$", r"\.attn\.(masked_)?bias$", r"\.attention\.(masked_)?bias$")  # buffers of older versions
COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_experts", "num_local_experts", "n_routed_experts")
LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length")


@dataclass(frozen=True)
class OtherFamily:
    """A family without a table of weights. chosen: the class to load; classes: those that a folder may name."""

    model_type: str
    chosen: str
    classes: tuple[str, ...]
    base_prefix: str
    settings: frozenset[str] = field(default_factory=frozenset)

    @property
    def prefix(self) -> str:
        """Of the tensors of the class without a head in the class with one."""
        return f"{self.base_prefix}."

    def class_name(self, config: Mapping[str, Any]) -> str:
        """The class with a head; a model without one is loaded into it too."""
        return self.chosen

    def optional_tensors(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """Buffers."""
        return OPTIONAL_TENSORS


def code_problems(config: Mapping[str, Any]) -> list[str]:
    """That a config.json names code of the folder."""
    return ["auto_map names the folder's own code, which is not run"] if config.get("auto_map") else []


def depth_problems(config: Mapping[str, Any], keys: Sequence[str], where: str = "") -> list[str]:
    """More layers or experts than can be: the class is built with as many before its weights are held against it.

    where: what stands before the names of keys, of a configuration inside another.
    """
    found = {key: value for key in keys if isinstance(value := config.get(key), int) and value > DEPTH}
    return [f"{where}{key} is {value}, expected at most {DEPTH}" for key, value in found.items()]
