"""LoRA adapters are merged: the answers are those of the base with the adapter's products beside its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from onnxport.errors import UsageError
from onnxport.export.resolve import resolve
from support import causal_folders, quantized_folders
from support.refusals import assert_refused

IDS = torch.tensor([[5, 17, 2, 40, 33, 8]])
RANK = 4
SETTINGS = {
    "peft_type": "LORA",
    "base_model_name_or_path": "org/base",
    "r": RANK,
    "lora_alpha": 12,
    "use_rslora": False,
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "alpha_pattern": {},
    "bias": "none",
    "use_dora": False,
    "target_modules": ["q_proj", "down_proj"],
    "task_type": "CAUSAL_LM",
    "megatron_core": "megatron.core",
    "qalora_group_size": 16,
}


def matrices(model: Any, modules: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """A [rank, inputs] and B [outputs, rank] for each module."""
    generator = torch.Generator().manual_seed(1)
    found = {}
    for name in modules:
        module = model.get_submodule(name)
        rows, columns = module.weight.shape
        if not isinstance(module, nn.Linear | nn.Embedding):  # Conv1D
            rows, columns = columns, rows
        if isinstance(module, nn.Embedding):
            rows, columns = columns, rows
        found[name] = 0.3 * torch.randn(RANK, columns, generator=generator), 0.3 * torch.randn(rows, RANK, generator=generator)
    return found


def write_adapter(folder: Path, pairs: dict[str, tuple[Tensor, Tensor]], extra: dict[str, Tensor] | None = None, **settings: Any) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(SETTINGS | settings))
    tensors = dict(extra or {})
    for name, (a, b) in pairs.items():
        table = name.endswith(("embed_tokens", "wte"))
        ends = ("lora_embedding_A", "lora_embedding_B") if table else ("lora_A.weight", "lora_B.weight")
        tensors |= {f"base_model.model.{name}.{ends[0]}": a, f"base_model.model.{name}.{ends[1]}": b}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def beside(model: Any, pairs: dict[str, tuple[Tensor, Tensor]], scale: dict[str, float]) -> None:
    """The adapter as PEFT runs it unmerged: its product is added to what a module answers."""

    def hook(name: str):
        a, b = pairs[name]

        def added(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            (x,) = inputs
            more = F.embedding(x, a.t()) @ b.t() if isinstance(module, nn.Embedding) else x @ a.t() @ b.t()
            return output + scale[name] * more

        return added

    for name in pairs:
        model.get_submodule(name).register_forward_hook(hook(name))


def check(tmp_path: Path, model: Any, pairs: dict[str, tuple[Tensor, Tensor]], scale: dict[str, float], **settings: Any) -> Any:
    model.save_pretrained(tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter", pairs, **settings)
    found = resolve(tmp_path / "base", lora=adapter)
    beside(model, pairs, scale)
    with torch.no_grad():
        wanted, got = model(IDS).logits, found.adapter.model(IDS).logits
    assert (wanted - got).abs().max() < 2e-5 * wanted.abs().max()
    return found


MODULES = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"]


@pytest.mark.parametrize(
    ("settings", "scales"),
    [
        ({}, [3.0, 3.0]),
        ({"use_rslora": True}, [6.0, 6.0]),
        ({"alpha_pattern": {"down_proj": 2}}, [3.0, 0.5]),
        ({"fan_in_fan_out": True}, [3.0, 3.0]),  # PEFT sets it right by the layer's class
    ],
)
def test_products_are_added(tmp_path: Path, settings: dict[str, Any], scales: list[float]) -> None:
    model = causal_folders.make("llama")
    found = check(tmp_path, model, matrices(model, MODULES), dict(zip(MODULES, scales, strict=True)), **settings)
    assert found.settings["adapter"] == {"base": "org/base", "rank": RANK}
    assert {"config.json", "model.safetensors", "adapter/adapter_config.json", "adapter/adapter_model.safetensors"} <= set(found.hashes)
    assert any("org/base" in note and "2 of" in note for note in found.notes)


def test_layers_whose_weights_have_inputs_first(tmp_path: Path) -> None:
    model = causal_folders.make("gpt2")
    modules = ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_proj"]
    check(tmp_path, model, matrices(model, modules), dict.fromkeys(modules, 3.0), fan_in_fan_out=True)


@pytest.mark.parametrize("tied", [False, True])
def test_an_embedding_and_its_tied_head(tmp_path: Path, tied: bool) -> None:
    model = causal_folders.make("llama", tie_word_embeddings=tied)
    modules = ["model.embed_tokens"]
    found = check(tmp_path, model, matrices(model, modules), dict.fromkeys(modules, 3.0))
    assert any("two tables" in note for note in found.notes) == tied


def test_modules_that_are_saved_whole(tmp_path: Path) -> None:
    model = causal_folders.make("llama", tie_word_embeddings=True)
    head = torch.randn(97, 32, generator=torch.Generator().manual_seed(3))
    model.save_pretrained(tmp_path / "base")
    extra = {"base_model.model.lm_head.weight": head}
    adapter = write_adapter(tmp_path / "adapter", matrices(model, MODULES), extra, modules_to_save=["lm_head"])
    found = resolve(tmp_path / "base", lora=adapter).adapter.model
    assert torch.equal(found.lm_head.weight, head)
    assert torch.equal(found.model.embed_tokens.weight, model.model.embed_tokens.weight)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"use_dora": True}, ["use_dora is True", "merge_and_unload"]),
        ({"peft_type": "LOHA"}, ["peft_type is 'LOHA', expected LORA"]),
        ({"init_lora_weights": "pissa_niter_4"}, ["changes the base"]),
        ({"alora_invocation_tokens": [1, 2]}, ["alora_invocation_tokens is [1, 2]"]),
        ({"a_key_of_tomorrow": {"x": 1}}, ["a_key_of_tomorrow"]),
        ({"alpha_pattern": {"(a+)+b": 3}}, ["alpha_pattern"]),
        ({"lora_alpha": "x"}, ["lora_alpha is 'x', expected a number"]),
    ],
)
def test_what_a_merge_would_not_reproduce_is_refused(tmp_path: Path, settings: dict[str, Any], parts: list[str]) -> None:
    model = causal_folders.make("llama")
    model.save_pretrained(tmp_path / "base")
    adapter = write_adapter(tmp_path / "adapter", matrices(model, MODULES), **settings)
    assert_refused(tmp_path / "base", *parts, lora=adapter)


def test_an_adapter_of_another_base(tmp_path: Path) -> None:
    causal_folders.make("llama").save_pretrained(tmp_path / "base")
    other = causal_folders.make("llama", hidden_size=48, num_hidden_layers=3)
    wide = write_adapter(tmp_path / "wide", matrices(other, ["model.layers.0.self_attn.q_proj"]))
    assert_refused(tmp_path / "base", "q_proj.weight with shape [48, 48], expected [32, 32]", lora=wide)
    deep = write_adapter(tmp_path / "deep", matrices(other, ["model.layers.2.self_attn.q_proj"]))
    assert_refused(tmp_path / "base", "model.layers.2.self_attn.q_proj.lora_A.weight has no place", lora=deep)
    assert_refused(tmp_path / "base", "has no adapter_config.json", lora=tmp_path / "base")


def test_an_adapter_of_a_quantized_base(tmp_path: Path) -> None:
    base = tmp_path / "base"
    quantized_folders.write(base, quantized_folders.gptq(), {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False})
    model = resolve(base).adapter.model
    pairs = matrices(model, MODULES)
    found = resolve(base, lora=write_adapter(tmp_path / "adapter", pairs))
    beside(model, pairs, dict.fromkeys(MODULES, 3.0))
    with torch.no_grad():
        wanted, got = model(IDS).logits, found.adapter.model(IDS).logits
    assert (wanted - got).abs().max() < 2e-5 * wanted.abs().max()
    assert found.settings["quantization"] == "gptq" and found.name == "base"
    assert {"config.json", "model.safetensors", "adapter/adapter_model.safetensors"} <= set(found.hashes)


def test_only_weights_of_hugging_face_take_an_adapter(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", {})
    (tmp_path / "model.onnx").write_bytes(b"")
    assert_refused(tmp_path / "model.onnx", "--adapter", "is an ONNX file", error=UsageError, lora=adapter)
    assert_refused("mymodel:build", "--adapter", error=UsageError, lora=adapter)
    assert_refused(tmp_path / "adapter", "holds an adapter of 'org/base'", "--adapter", lora=adapter)
