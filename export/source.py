"""A source: an adapter or an ONNX file as it was read, with the tokenizers, settings and hashes that came with it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxport.errors import CheckpointError
from onnxport.export.adapters import Adapter, CausalLM, Encoder, Seq2Seq
from onnxport.export.description import SelfDescribing
from onnxport.export.exported import ChatTemplate
from onnxport.export.sentence_transformers import TextSettings
from onnxport.export.tokenizers.folder import tokenizer_bytes, vocabulary_problem


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file that was read without its external data, whose files are all there.

    folders: where files beside it are looked for, in turn. config: of a config.json beside it. texts: what sentence-transformers' files
    beside it say.
    """

    path: Path
    proto: onnx.ModelProto
    config: dict[str, Any]
    texts: TextSettings
    folders: tuple[Path, ...] = ()

    @property
    def opset(self) -> int:
        """The version of the standard operators."""
        return max((entry.version for entry in self.proto.opset_import if entry.domain in ("", "ai.onnx")), default=0)


@dataclass(frozen=True)
class Source:
    """What the exporter starts from.

    task: of the source itself, None for the usual one. hashes: file, module or class → sha256. tokenizers: `source` and `target` →
    bytes of a tokenizer.json. settings: the model's settings, ready for JSON. owned: nobody else holds the adapter's modules.
    goldens: golden answers of this source that are known already. notes: what is left out or taken for something, a sentence each.
    assumed: such a sentence about the task, for callers that name none. texts: of its user, that a language model is judged on beside the
    kit's.
    """

    adapter: Adapter | SelfDescribing | OnnxFile
    name: str
    family: str
    task: str | None = None
    hashes: dict[str, str] = field(default_factory=dict)
    tokenizers: dict[str, bytes] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    chat: ChatTemplate | None = None
    owned: bool = False
    goldens: dict[str, np.ndarray] | None = None
    notes: tuple[str, ...] = ()
    assumed: str | None = None
    texts: tuple[str, ...] = ()


def read_tokenizers(adapter: Seq2Seq | CausalLM | Encoder) -> dict[str, bytes]:
    """Bytes of a tokenizer.json by `source` and `target`. CheckpointError when one knows ids that its table of embeddings has not."""
    shared = adapter.tokenizer
    if isinstance(adapter, Seq2Seq):
        tokenizers = {"source": adapter.source_tokenizer or shared, "target": adapter.target_tokenizer or shared}
        tables = {"source": adapter.source_embedding, "target": adapter.target_embedding or adapter.source_embedding}
    else:
        tokenizers = {"source": shared, "target": shared}
        tables = {"source": adapter.embedding, "target": adapter.embedding}
    result = {side: tokenizer_bytes(value) for side, value in tokenizers.items() if value is not None}
    problems = []
    for side, data in result.items():
        rows = getattr(tables[side], "num_embeddings", None)  # what is no embedding is refused with the other parts
        if rows is not None and (problem := vocabulary_problem(data, rows, side)):
            problems.append(problem)
    if problems:
        raise CheckpointError("; ".join(dict.fromkeys(problems)))
    return result


def for_task(found: Source, task: str | None) -> Source:
    """The source as it does a task, where its adapter can leave its head out for it."""
    adapter = found.adapter
    return replace(found, adapter=adapter.for_task(task)) if hasattr(adapter, "for_task") else found
