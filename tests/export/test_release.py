"""A model that the exporter read itself is in memory once while it is traced; a user's own stays as it was."""

from pathlib import Path

import causal_folders
import pytest
import torch
from torch import nn

from onnxport.export import pipeline
from onnxport.export.release import release


def test_only_what_is_not_shared_goes() -> None:
    original, shared, tied = nn.Linear(8, 4), nn.Linear(4, 4), nn.Linear(8, 4, bias=False)
    tied.weight = original.weight
    kept = nn.Module()
    kept.weight = shared.weight
    freed = release([original, shared, tied], [kept])
    assert freed == 4 * (8 * 4 + 4 + 4)
    assert original.weight.numel() == tied.weight.numel() == shared.bias.numel() == 0
    assert torch.equal(kept.weight, shared.weight) and shared.weight.numel() == 16
    assert release([original, shared, tied], [kept]) == 0


def test_an_exported_folder_is_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[int] = []

    def watched(original, kept):
        freed.append(release(original, kept))
        return freed[-1]

    monkeypatch.setattr(pipeline, "release", watched)
    folder = causal_folders.write(tmp_path / "llama", "llama")
    pipeline.export(folder)
    assert freed and freed[0] > 0
