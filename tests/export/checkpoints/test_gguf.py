"""GGUF files: weights of every block type, config, tokenizer and chat template as transformers reads them, and what it would pass over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from onnxport.export.resolve import resolve

pytest.importorskip("gguf")
from gguf import GGMLQuantizationType as Kind

from support import gguf_files

IDS = torch.tensor([[5, 17, 2, 40, 33, 8]])


def theirs(path: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("kind", [Kind.F16, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0], ids=lambda kind: kind.name)
def test_a_file_answers_as_transformers_reads_it(tmp_path: Path, kind: Kind) -> None:
    path = gguf_files.write(tmp_path / "tiny.gguf", gguf_files.trained({}), kind)
    found = resolve(path)
    assert torch.equal(logits(found.adapter.model), logits(theirs(path)))
    assert (found.name, found.family, found.task, list(found.hashes)) == ("tiny", "llama", "text-generation", ["tiny.gguf"])
    assert any(kind.name in note for note in found.notes)
