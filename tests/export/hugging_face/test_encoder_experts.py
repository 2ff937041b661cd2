"""Encoders with experts: all of them are traced, so that no branch on values stands in the way, and the chosen ones answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers

from onnxport.build.stages import build
from onnxport.runtime import load
from support import encoder_folders as folders

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 40,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 2,
}


def test_an_encoder_with_experts(tmp_path: Path) -> None:
    model = transformers.OpenAIPrivacyFilterModel(transformers.OpenAIPrivacyFilterConfig(**SIZES)).eval()
    folders.randomize(model)
    model.save_pretrained(tmp_path / "source")
    bundle = build(str(tmp_path / "source"), tmp_path / "bundle", precision=("fp32",))
    assert bundle.variants["fp32"].fusions["experts"] == 1
    assert not any("every expert is computed" in note for note in bundle.provenance["notes"])
    theirs = transformers.OpenAIPrivacyFilterModel.from_pretrained(tmp_path / "source").eval()
    random = np.random.default_rng(1)
    for lengths in ([5, 9], [1], [17, 2, 12]):
        mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
        ids = np.where(mask > 0, random.integers(4, 60, mask.shape), 0)
        with torch.no_grad():
            wanted = theirs(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).last_hidden_state.numpy()
        found = load(bundle.path).run({"input_ids": ids, "attention_mask": mask})["last_hidden_state"]
        np.testing.assert_allclose(found[mask > 0], wanted[mask > 0], atol=1e-4)
