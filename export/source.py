"""What the user named → one Source."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from onnxport.errors import CheckpointError
from onnxport.export.adapters import Adapter, CausalLM, Encoder, Seq2Seq
from onnxport.export.tokenizers.folder import tokenizer_bytes, vocabulary_problem

if TYPE_CHECKING:
    from onnxport.export.description import Described


@dataclass
class Source:
    """An adapter and where it came from. `task` is what the source says itself; `settings` are ready for JSON. `owned`: nobody else holds
    the adapter's modules."""

    adapter: Adapter | Described | OnnxFile
    name: str
    family: str
    task: str | None = None
    hashes: dict[str, str] = field(default_factory=dict)
    tokenizers: dict[str, bytes] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    chat: dict[str, Any] | None = None
    owned: bool = False


def read_tokenizers(adapter: Seq2Seq | CausalLM | Encoder) -> dict[str, bytes]:
    """`source` and `target` tokenizer bytes; CheckpointError when one knows ids that its table has not."""
    shared = getattr(adapter, "tokenizer", None)
    given = {"source": getattr(adapter, "source_tokenizer", None) or shared, "target": getattr(adapter, "target_tokenizer", None) or shared}
    if not isinstance(adapter, Seq2Seq):
        given = {"source": shared, "target": shared}
    result = {side: tokenizer_bytes(value) for side, value in given.items() if value is not None}
    if isinstance(adapter, Seq2Seq):
        tables = {"source": adapter.source_embedding, "target": adapter.target_embedding or adapter.source_embedding}
    else:
        tables = {"source": adapter.embedding, "target": adapter.embedding}
    problems = []
    for side, data in result.items():
        rows = getattr(tables[side], "num_embeddings", None)  # what is no embedding is refused with the other parts
        if rows is not None and (problem := vocabulary_problem(data, rows, side)):
            problems.append(problem)
    if problems:
        raise CheckpointError("; ".join(dict.fromkeys(problems)))
    return result


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file that was read without its external data, whose files are all there. config: of a config.json beside it."""

    path: Path
    proto: onnx.ModelProto
    config: dict[str, Any]
    encoding: dict[str, Any]

    @property
    def opset(self) -> int:
        """Of the standard operators."""
        return max((entry.version for entry in self.proto.opset_import if entry.domain in ("", "ai.onnx")), default=0)
