"""Folders whose tensors transformers renames, splits or joins as it loads them, and classes with tables of integers of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from onnxport.build.stages import build
from onnxport.errors import CheckpointError
from onnxport.runtime import load
from support import encoder_folders as folders

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "intermediate_size": 40,
    "max_position_embeddings": 48,
    "pad_token_id": 1,
}
OWN = {"EsmModel": {"position_embedding_type": "rotary", "mask_token_id": 32}, "MraModel": {"block_per_row": 2}}


def write(folder: Path, name: str) -> Path:
    """A tiny random folder of a class, with the names of tensors that published folders have."""
    cls = getattr(transformers, name)
    known = cls.config_class().to_dict().keys()
    config: dict[str, Any] = {key: value for key, value in SIZES.items() if key in known} | OWN.get(name, {})
    model = cls(cls.config_class(**config)).eval()
    folders.randomize(model)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["NomicBertModel", "GteModel", "EsmModel", "MraModel"])
def test_folders_as_they_are_published(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "source", name)
    bundle = build(str(folder), tmp_path / "bundle", precision=("fp32",))
    model = getattr(transformers, name).from_pretrained(folder).eval()
    random = np.random.default_rng(1)
    for lengths in ([5, 9], [1], [17, 2, 12]):
        mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
        ids = np.where(mask > 0, random.integers(4, 30, mask.shape), 1)
        with torch.no_grad():
            wanted = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))["last_hidden_state"].numpy()
        found = load(bundle.path).run({"input_ids": ids, "attention_mask": mask})["last_hidden_state"]
        np.testing.assert_allclose(found[mask > 0], wanted[mask > 0], atol=1e-4)


def test_names_are_those_of_published_folders(tmp_path: Path) -> None:
    """Else the test above would say nothing: the class calls its tensors otherwise."""
    folder = write(tmp_path / "source", "NomicBertModel")
    names = set(load_file(folder / "model.safetensors"))
    assert not names <= set(transformers.NomicBertModel.from_pretrained(folder).state_dict())


def test_a_tensor_that_is_missing_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "source", "NomicBertModel")
    tensors = load_file(folder / "model.safetensors")
    gone = next(name for name in sorted(tensors) if "out_proj" in name or "o_proj" in name)
    del tensors[gone]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="transformers could not load all.*missing_keys.*o_proj"):
        build(str(folder), tmp_path / "bundle", precision=("fp32",))
