"""Sources that are nearly one: a hub's name, an adapter, weights of a wrapper, a module of random answers; each is told what it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from onnxport.export import CausalLM, Encoder, Seq2Seq
from onnxport.export.user_code import _alike
from support import causal_folders, hf_folders
from support.refusals import assert_refused
from support.tiny_torch import encoder_stack

SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}


class Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5)


def test_a_name_of_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused("org/a-model.v2", "hf download org/a-model.v2 --local-dir a-model.v2")
    (tmp_path / "org").mkdir()
    assert "hf download" not in assert_refused("org/a-model.v2", "does not exist")


@pytest.mark.parametrize("name", ["gpt2", "bert-base-uncased", "Qwen2.5-0.5B"])
def test_a_name_of_a_hub_without_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(name, f"{name} does not exist", "a folder with config.json", f"hf download {name} --local-dir {name}`")


@pytest.mark.parametrize("name", ["missing.onnx", "model.gguf", "./gpt2", "a/b/c", "a b", "../gpt2", "/gpt2"])
def test_a_path_is_no_name_of_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert "hf download" not in assert_refused(name, "does not exist")


@pytest.mark.parametrize(
    ("url", "download"),
    [
        ("https://huggingface.co/org/a-model", "org/a-model --local-dir a-model`, then export a-model"),
        ("https://huggingface.co/org/a-model/", "org/a-model --local-dir a-model`"),
        ("https://huggingface.co/org/a-model/tree/main", "org/a-model --local-dir a-model`"),
        ("http://hf.co/org/a-model/resolve/v1.0/model.onnx?download=true", "org/a-model --revision v1.0 --local-dir a-model`"),
        ("https://huggingface.co/gpt2/tree/main", "gpt2 --local-dir gpt2`"),
        ("huggingface.co/gpt2", "gpt2 --local-dir gpt2`"),
    ],
)
def test_a_page_of_the_hub(url: str, download: str) -> None:
    assert_refused(url, f"{url} does not exist here", f"`hf download {download}")


@pytest.mark.parametrize("url", ["https://example.com/a//b/model.onnx", "https://huggingface.co/datasets/org/data", "s3://bucket/model"])
def test_another_url_is_not_fetched(url: str) -> None:
    assert "hf download" not in assert_refused(url, f"{url} is a URL", "nothing is fetched")


def test_an_adapter_and_its_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base", "peft_type": "LORA"}))
    assert_refused(tmp_path, "adapter of 'org/base'", "adapter_config.json", "--adapter")
    (tmp_path / "adapter_config.json").write_text("{}")
    assert_refused(tmp_path, "a model that it does not name", "--adapter")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_weights_of_a_wrapper(tmp_path: Path, prefix: str) -> None:
    path = hf_folders.marian(tmp_path) / "model.safetensors"
    tensors = load_file(path)
    save_file({f"{prefix}{name}": tensor for name, tensor in tensors.items()}, path, {"format": "pt"})
    assert_refused(tmp_path, f"every tensor's name begins with '{prefix}'", f"state_dict of its .{prefix[:-1]}")


def test_a_module_whose_answers_are_random() -> None:
    assert_refused((Random(), (torch.rand(2, 8),)), "answers otherwise each time", "F.dropout without training=self.training")


def adapter(kind: str) -> Seq2Seq | CausalLM | Encoder:
    table, ids = nn.Embedding(20, 16), {"pad_id": 0, "bos_id": 1, "eos_id": 2}
    random = {"activation": lambda x: F.dropout(x.relu(), 0.5)}
    if kind == "encoder":
        return Encoder(transformer=encoder_stack(**random), embedding=table)
    if kind == "causal":
        return CausalLM(transformer=encoder_stack(**random), embedding=table, **ids)
    return Seq2Seq(transformer=nn.Transformer(16, 2, 1, 1, 24, batch_first=True, **random), source_embedding=table, **ids)


@pytest.mark.parametrize("kind", ["encoder", "causal", "seq2seq"])
def test_an_adapter_whose_answers_are_random(kind: str) -> None:
    assert_refused(adapter(kind), "the model answers otherwise each time it runs")


@pytest.mark.parametrize("family", ["marian", "gpt2", "bert", "electra"])
def test_a_folder_whose_answers_are_random(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    if family == "marian":
        folder = hf_folders.marian(tmp_path)
    elif family == "gpt2":
        folder = causal_folders.write(tmp_path, family)
    else:
        config = transformers.AutoConfig.for_model(family, **SMALL)
        folder = tmp_path
        transformers.AutoModel.from_config(config).save_pretrained(folder)
    monkeypatch.setattr(F, "dropout", lambda x, *_, **__: x * torch.rand_like(x))
    assert_refused(folder, "answers otherwise each time it runs")


class Counting(nn.Module):
    """Gives one output more each time that it runs."""

    calls = 0

    def forward(self, x: Tensor) -> list[Tensor]:
        self.calls += 1
        return [x] * self.calls


def test_a_module_with_another_number_of_answers_each_time() -> None:
    assert_refused((Counting(), (torch.rand(2, 8),)), "answers otherwise each time")


def test_what_the_order_of_sums_does_is_no_other_answer() -> None:
    one = torch.tensor([1.0, 100.0, float("nan"), float("inf")])
    assert _alike(one, one * (1 + 1e-6)) and _alike(one.half(), one.half()) and _alike(one.to(torch.complex64), one.to(torch.complex64))
    assert not _alike(one, one * 1.01) and not _alike(one, one[:2]) and not _alike(one, one.nan_to_num()) and not _alike(one, None)
    whole = torch.tensor([100_000, 1])
    assert _alike(whole, whole.clone()) and not _alike(whole, whole + 1) and _alike(whole > 1, whole > 1)
