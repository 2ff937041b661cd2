"""A model that the exporter read itself is in memory once while it is traced; a user's own stays as it was."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from onnxport.export import stages
from onnxport.export.canonical import load_weights
from onnxport.export.routes import canonical
from onnxport.export.weights import page_out, release
from support import tiny_torch


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


@pytest.mark.skipif(sys.platform != "linux", reason="pages of a process are counted in /proc")
def test_what_is_mapped_leaves_memory_and_keeps_its_values(tmp_path: Path) -> None:
    path = tmp_path / "mapped.safetensors"
    save_file({name: torch.randn(1024, 4096) for name in "ab"}, path)  # 16 MB each
    os.sync()  # pages that are not written yet cannot go
    tensors = load_file(path)
    own, before = torch.randn(1024, 4096), {name: tensor.sum().item() for name, tensor in tensors.items()}
    held = _resident(path)
    assert held >= 32 << 20
    assert page_out([own, own.t()]) == 0
    assert 16 << 20 >= page_out([tensors["a"]]) > 15 << 20
    assert _resident(path) <= held - (15 << 20)
    assert before == {name: tensor.sum().item() for name, tensor in tensors.items()}


def _resident(path: Path) -> int:
    """Bytes of a mapped file that are in this process' physical memory."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0] and not line.split()[0].endswith(":"):
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


def test_an_exported_folder_is_released_and_its_layers_leave_memory_when_they_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed: list[int] = []
    layers: list[int] = []

    def watched_release(original, kept):
        freed.append(release(original, kept))
        return freed[-1]

    def watched_page_out(tensors: list[Tensor]) -> int:
        layers.append(page_out(tensors))
        return layers[-1]

    monkeypatch.setattr(canonical, "release", watched_release)
    monkeypatch.setattr(load_weights, "page_out", watched_page_out)
    folder = tiny_torch.write_folder(tmp_path / "translator")
    stages.export(folder)
    assert freed and freed[0] > 0
    config = json.loads((folder / "config.json").read_bytes())
    assert len(layers) == config["num_encoder_layers"] + 2 * config["num_decoder_layers"]  # cross attention has projections of its own
    assert sum(layers) > 0 or sys.platform != "linux"  # mapped files are named in /proc
