"""Folders with code of their own: refused with the risk named, and where the user allows it run, traced and checked as any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import dynamic_module_utils

from onnxport.export import export
from onnxport.export.resolve import resolve
from support import causal_folders, quantized_folders
from support.refusals import assert_refused

DECODER = """
from transformers import LlamaForCausalLM

class Loud(LlamaForCausalLM):
    def forward(self, input_ids=None, past_key_values=None, position_ids=None, **kwargs):
        found = super().forward(input_ids=input_ids, past_key_values=past_key_values, position_ids=position_ids, **kwargs)
        found.logits = 3.0 * found.logits
        return found
"""
ENCODER = """
from torch import nn
from transformers import BertConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

class Rows(PreTrainedModel):
    config_class = BertConfig
    base_model_prefix = "rows"

    def __init__(self, config):
        super().__init__(config)
        self.table = nn.Embedding(config.vocab_size, config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None):
        return BaseModelOutput(last_hidden_state=self.out(self.table(input_ids).tanh()))
"""


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


def decoder(folder: Path, **values: Any) -> Path:
    causal_folders.write(folder, "llama")
    (folder / "loud.py").write_text(DECODER)
    quantized_folders.set_config(folder, architectures=["Loud"], auto_map={"AutoModelForCausalLM": "loud.Loud"} | values)
    return folder


def test_code_is_not_run_unless_it_is_allowed(tmp_path: Path) -> None:
    folder = decoder(tmp_path / "model")
    (folder / "loud.py").write_text("raise SystemExit('it ran')")
    message = assert_refused(folder, "the folder's own code (auto_map: AutoModelForCausalLM)", "not run", "--allow-remote-code")
    assert "whatever you can" in message


def test_a_language_model_of_a_folders_own(tmp_path: Path) -> None:
    folder = decoder(tmp_path / "model_loud")
    found = resolve(folder, allow_remote_code=True)
    ids = torch.tensor([[5, 17, 2, 40]])
    plain = transformers.LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        assert torch.allclose(found.adapter.model(ids).logits, 3 * plain(ids).logits, rtol=1e-5)
    exported = export(folder, allow_remote_code=True)
    assert exported.route == "attention-interface" and exported.task == "text-generation"


def test_an_encoder_of_a_folders_own(tmp_path: Path) -> None:
    folder = tmp_path / "model_rows"
    config = transformers.BertConfig(vocab_size=60, hidden_size=16, max_position_embeddings=32)
    space: dict[str, Any] = {}
    exec(ENCODER, space)
    space["Rows"](config).save_pretrained(folder)
    (folder / "rows.py").write_text(ENCODER)
    quantized_folders.set_config(folder, architectures=["Rows"], auto_map={"AutoModel": "rows.Rows"})
    exported = export(folder, allow_remote_code=True)
    assert exported.route == "direct" and "case0/out/last_hidden_state" in exported.goldens


@pytest.mark.parametrize(
    ("references", "parts"),
    [
        (
            {"AutoModelForCausalLM": "org/elsewhere--other.Loud"},
            ["--other.Loud", "nothing is fetched", "hf download org/elsewhere"],
        ),
        ({"AutoModelForCausalLM": "missing.Loud"}, ["missing.py"]),
        ({"AutoModelForCausalLM": 3}, ["expected names of loaders"]),
        ({"AutoConfig": "loud.Config"}, ["names no class that can be exported"]),
    ],
)
def test_code_that_cannot_be_used(tmp_path: Path, references: dict[str, Any], parts: list[str]) -> None:
    folder = decoder(tmp_path / "model")
    quantized_folders.set_config(folder, auto_map=references)
    assert_refused(folder, *parts, allow_remote_code=True)
