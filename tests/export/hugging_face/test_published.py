"""Folders as they are published: code that transformers has taken over, its older keys, and tensors and tokens that no class reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import dynamic_module_utils

from onnxport.export.resolve import resolve
from support import causal_folders, encoder_folders, hf_folders, quantized_folders
from support.refusals import assert_refused

PHI3 = {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
NOMIC = {
    "activation_function": "swiglu",
    "architectures": ["NomicBertModel"],
    "auto_map": {
        "AutoConfig": "nomic-ai/nomic-bert-2048--configuration_hf_nomic_bert.NomicBertConfig",
        "AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel",
    },
    "causal": False,
    "layer_norm_epsilon": 1e-6,
    "max_trained_positions": 2048,
    "mlp_fc1_bias": False,
    "model_type": "nomic_bert",
    "n_embd": 32,
    "n_head": 4,
    "n_inner": 48,
    "n_layer": 1,
    "n_positions": 8192,
    "prenorm": False,
    "qkv_proj_bias": False,
    "rotary_emb_base": 77,
    "rotary_emb_fraction": 1.0,
    "rotary_scaling_factor": None,
    "use_flash_attn": True,
    "vocab_size": 60,
}
IDS = torch.tensor([[5, 17, 2, 40, 8, 9]])


@pytest.fixture(scope="module")
def phi3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phi3")
    model = transformers.Phi3ForCausalLM(transformers.Phi3Config(**causal_folders.TINY)).eval()
    causal_folders.randomize(model)
    model.save_pretrained(folder)
    (folder / "modeling_phi3.py").write_text("raise SystemExit('it ran')")
    return folder


@pytest.fixture(scope="module")
def nomic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nomic")
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "intermediate_size": 48, "vocab_size": 60}
    config = transformers.NomicBertConfig(**sizes, layer_norm_eps=1e-6, rope_theta=77.0)
    model = transformers.NomicBertModel(config).eval()
    encoder_folders.randomize(model)
    model.save_pretrained(folder)
    with torch.no_grad():
        torch.save(model(IDS).last_hidden_state, folder / "answer.ref")
    return folder


def test_code_that_transformers_has_taken_over_is_not_needed(phi3: Path) -> None:
    quantized_folders.set_config(phi3, auto_map=PHI3, attention_bias=False)
    found = resolve(phi3)
    assert found.notes[0] == "the folder's own code (auto_map) is not run: transformers has it as Phi3ForCausalLM"
    with torch.no_grad():
        theirs = transformers.Phi3ForCausalLM.from_pretrained(phi3)(IDS).logits
        assert torch.equal(found.adapter.model(IDS).logits, theirs)


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"attention_bias": True}, ["attention_bias not read by transformers' own class", "--allow-remote-code"]),
        ({"auto_map": PHI3 | {"AutoModelForCausalLM": "modeling_phi3.Other"}}, ["auto_map: AutoConfig, AutoModelForCausalLM", "not run"]),
        ({"auto_map": PHI3 | {"AutoConfig": "configuration_phi3.Other"}}, ["not run"]),
        ({"auto_map": {"AutoModelForCausalLM": "x/y--modeling_phi3.Other"}}, ["not run", "hf download x/y --include '*.py'"]),
    ],
)
def test_other_code_still_has_to_be_allowed(phi3: Path, values: dict[str, Any], parts: list[str]) -> None:
    quantized_folders.set_config(phi3, **{"auto_map": PHI3, "attention_bias": False} | values)
    assert_refused(phi3, *parts)


def test_keys_of_the_first_code(nomic: Path) -> None:
    (nomic / "config.json").write_text(json.dumps(NOMIC))
    found = resolve(nomic)
    config = found.adapter.model.config
    assert (config.max_position_embeddings, config.rope_parameters["rope_theta"], config.layer_norm_eps) == (8192, 77, 1e-6)
    with torch.no_grad():
        assert torch.equal(found.adapter.model(IDS).last_hidden_state, torch.load(nomic / "answer.ref"))


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"qkv_proj_bias": True}, "qkv_proj_bias is True, expected False"),
        ({"activation_function": "gelu"}, "activation_function is 'gelu', expected 'swiglu'"),
        ({"rotary_scaling_factor": 2.0}, "rotary_scaling_factor is 2.0, expected None"),
        ({"new_gate": "x"}, "new_gate not read"),
    ],
)
def test_what_the_first_code_does_and_the_class_does_not(nomic: Path, values: dict[str, Any], part: str) -> None:
    (nomic / "config.json").write_text(json.dumps(NOMIC | values))
    assert_refused(nomic, part)


def test_code_from_elsewhere_that_was_copied_into_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    folder = causal_folders.write(tmp_path / "model_copied", "llama")
    (folder / "loud.py").write_text("from transformers import LlamaForCausalLM\n\nclass Loud(LlamaForCausalLM):\n    pass\n")
    quantized_folders.set_config(folder, architectures=["Loud"], auto_map={"AutoModelForCausalLM": "org/code--loud.Loud"})
    assert type(resolve(folder, allow_remote_code=True).adapter.model).__name__ == "Loud"


def test_a_pooler_that_the_class_has_not(tmp_path: Path) -> None:
    folder = encoder_folders.write(tmp_path, encoder_folders.make("roberta", "single"), "roberta")
    path = folder / "model.safetensors"
    pooler = {"roberta.pooler.dense.weight": torch.ones(40, 40), "roberta.pooler.dense.bias": torch.ones(40)}
    save_file(load_file(path) | pooler, path, {"format": "pt"})
    assert resolve(folder).task == "classification"
    save_file(load_file(path) | {"roberta.other.weight": torch.ones(2)}, path, {"format": "pt"})
    assert_refused(folder, "unexpected tensors: roberta.other.weight")


def test_masks_that_older_versions_saved_as_infinity(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 60}
    transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**sizes)).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    kept = {"gpt_neox.layers.0.attention.masked_bias": torch.tensor(-torch.inf), "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 8, 8)}
    save_file(load_file(path) | kept, path, {"format": "pt"})
    assert resolve(tmp_path).task == "text-generation"


def test_a_mask_without_a_row(tmp_path: Path) -> None:
    folder = hf_folders.bart(tmp_path, vocab_size=40)
    words = ["<s>", "<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(36)), "<mask>"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"mask_token": "<mask>", "unk_token": "<unk>", "pad_token": "<pad>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    assert "the model has no row for <mask>: a text with such a token is refused" in resolve(folder).notes
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    assert_refused(folder, "the source tokenizer has ids up to 40 and the source vocabulary 40 rows")


def test_several_ends_in_a_traced_models_config(tmp_path: Path) -> None:
    from onnxport.export import export

    model = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**causal_folders.TINY | {"eos_token_id": [1, 5], "head_dim": 8}))
    model.save_pretrained(tmp_path)
    exported = export(tmp_path)
    assert exported.route == "attention-interface"
