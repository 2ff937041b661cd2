"""Bundles of language models with mixtures of experts that know the kit's texts: sensitive ones are protected, a search finds plans."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from onnxport.build.stages import add_variant, build
from onnxport.export import golden
from onnxport.quantize.auto import kernel_times, plan_quality
from onnxport.quantize.plan import scheme
from onnxport.runtime.bundle.reader import Bundle
from support import causal_folders

SIZES = {"intermediate_size": 64, "max_position_embeddings": 96, "num_experts_per_tok": 2}
EXPERTS = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64},
}
BOTH = ("gate_up_proj", "down_proj")


@pytest.fixture(autouse=True)
def knowing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models with random weights are taken for such that know the texts."""
    monkeypatch.setattr(golden, "KNOWN", 1000.0)


def written(folder: Path, family: str, spiky: int | None = None, layers: int = 1) -> Path:
    """A folder with a tokenizer of bytes. spiky: the layer of which an expert has large weights among small ones; others add little."""
    characters = {character: i + 3 for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE({"<pad>": 0, "<s>": 1, "</s>": 2} | characters, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model = causal_folders.make(family, vocab_size=len(characters) + 3, num_hidden_layers=layers, **SIZES, **EXPERTS[family])
    if spiky is not None:
        with torch.no_grad():
            for number, layer in enumerate(model.model.layers):
                layer.self_attn.o_proj.weight *= 0.05
                layer.mlp.experts.down_proj *= 0.05 if number != spiky else 1
            model.model.layers[spiky].mlp.experts.gate_up_proj[0, :, ::16] *= 30
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def sums(bundle: Bundle, variant: str) -> dict[str, str]:
    return {name: bundle.files[name].sha256 for name in bundle.variants[variant].files}


def experts(bundle: Bundle, variant: str) -> dict[str, str]:
    """Schemes by the names of experts' weights."""
    return {name: found for name, found in bundle.variants[variant].plan.items() if name.endswith(BOTH) and ".experts." in name}


def test_an_expert_that_is_sensitive_has_its_mixture_protected(tmp_path: Path) -> None:
    folder = written(tmp_path / "mixtral", "mixtral", spiky=1, layers=2)
    made = build(str(folder), tmp_path / "out", precision=("fp32", "int4"))
    found = experts(made, "int4")
    assert {found[f"model.layers.1.mlp.experts.{name}"] for name in BOTH} == {"int8-blocks32"}
    assert {found[f"model.layers.0.mlp.experts.{name}"] for name in BOTH} == {"int4-blocks32-asym"}
    (tmp_path / "plan.json").write_bytes((tmp_path / "out/int4/plan.json").read_bytes())
    again = add_variant(tmp_path / "out", "int4", plan=tmp_path / "plan.json", force=True)
    assert sums(again, "int4") == sums(made, "int4")


def test_a_search_quantizes_experts_within_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are those of a table: a mixture takes by far the most of an answer."""
    asked: dict[str, set[str]] = {}

    def kernel(shape: kernel_times.Shape, schemes: set[str], *_: object) -> dict[str, float]:
        asked.setdefault(shape.key, set()).update(schemes)
        return {scheme(name).kernel: shape.values * scheme(name).bits / 1e9 for name in schemes}

    def answer(bundle: Bundle, names: list[str], *_: object) -> dict[str, list[float]]:
        bits = {name: [scheme(one).bits for one in bundle.variants[name].plan.values() if one != "int8"] for name in names}
        return {name: [sum(found) / len(found)] * 8 for name, found in bits.items()}

    monkeypatch.setattr(kernel_times, "measure", kernel)
    monkeypatch.setattr(plan_quality, "seconds", answer)
    monkeypatch.setattr("onnxport.quantize.auto.search.MOST_PLANS", 4)
    data = tmp_path / "texts.txt"
    data.write_text("".join(f"line {i} of a text that is read {'again ' * (i % 4)}\n" for i in range(24)))
    build(str(written(tmp_path / "qwen", "qwen2_moe")), tmp_path / "out", precision=("fp32",))
    made = add_variant(tmp_path / "out", "auto", calibrate=data, budget="kl<=0.05")
    assert made.variants["auto"].evidence["budget"]["value"] <= 0.05
    found = experts(made, "auto")
    assert len(found) == 2 and len(set(found.values())) == 1 and "fp32" not in found.values()
    assert set(made.variants["auto"].evidence["sensitivity"]["modules"]["model.layers.*.mlp.experts 0"]) == {
        "int8-blocks32",
        "int4-blocks32-asym",
    }
    assert {"fp32", "int8-blocks32", "int4-blocks32-asym"} in [names for key, names in asked.items() if key.startswith("2of4x32x128x64:")]
    (tmp_path / "plan.json").write_bytes((tmp_path / "out/auto/plan.json").read_bytes())
    again = add_variant(tmp_path / "out", "auto", plan=tmp_path / "plan.json", calibrate=data, force=True)
    assert sums(again, "auto") == sums(made, "auto")
