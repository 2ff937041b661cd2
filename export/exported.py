"""The result of an export: standard graphs with golden answers, and what a bundle must know besides."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxport.runtime.bundle.manifest import EncodingConfig, GenerationConfig


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template of conversations. tokens: texts of the special tokens that it may use, by name."""

    text: str
    tokens: Mapping[str, str]


@dataclass(frozen=True)
class Exported:
    """Standard graphs with golden answers of the user's own class.

    graphs: role → standard ONNX. goldens: `case/name` → array. generation: of a model that generates. encoding: of an encoder of texts.
    tokenizers: `source` and `target` → bytes of a tokenizer.json. source_hashes: file, module or class → sha256. expected: role → fusion
    rule → how often it must apply. settings: the model's settings, ready for JSON. notes: what was left out or assumed, a sentence each.
    layers: arrays of what follows the pooling of an embedding model.
    """

    name: str
    task: str
    family: str
    route: str
    opset: int
    graphs: dict[str, ir.Model]
    goldens: dict[str, np.ndarray]
    generation: GenerationConfig | None = None
    encoding: EncodingConfig | None = None
    chat: ChatTemplate | None = None
    tokenizers: dict[str, bytes] = field(default_factory=dict)
    source_hashes: dict[str, str] = field(default_factory=dict)
    expected: dict[str, dict[str, int]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    layers: tuple[Mapping[str, np.ndarray], ...] = ()
