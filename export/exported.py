"""The result of an export: standard graphs with golden answers, and what a bundle must know besides."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir


@dataclass(frozen=True)
class Exported:
    """Standard graphs with golden answers of the user's own class.

    `graphs`: role → standard ONNX; `goldens`: `case/name` → array; `generation`: what a search loop must know, or None;
    `tokenizers`: `source` and `target` → tokenizer.json's bytes; `source_hashes`: file or class → sha256;
    `expected`: role → fusion rule → how often it must apply; `settings`: the model's settings, ready for JSON;
    `chat`: `template`, a text, and `tokens`, its special tokens by name.
    """

    name: str
    task: str
    family: str
    route: str
    opset: int
    graphs: dict[str, ir.Model]
    goldens: dict[str, np.ndarray]
    generation: dict[str, Any] | None
    tokenizers: dict[str, bytes] = field(default_factory=dict)
    source_hashes: dict[str, str] = field(default_factory=dict)
    expected: dict[str, dict[str, int]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    chat: dict[str, Any] | None = None
