"""Hugging Face's language models become bundles whose logits and greedy answers are those of transformers' own classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from onnxport.build.stages import build
from onnxport.errors import CheckpointError
from onnxport.export import golden
from onnxport.export.canonical.graphs import check_causal
from onnxport.export.hugging_face.any_decoder import TracedCausal
from onnxport.export.hugging_face.causal import HuggingFaceCausal
from onnxport.export.resolve import resolve
from onnxport.export.source import Source
from onnxport.export.user_code import evaluating
from onnxport.runtime import load
from support import causal_folders

# One bundle a family; between them heads of 20, 32, 80 and 128, one layer and two, tied heads or not, windows in all layers or in some.
BUNDLES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 40, "n_head": 2, "n_layer": 1},
    "llama": {"head_dim": 32, "num_hidden_layers": 1, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    "mistral": {"head_dim": 80, "num_hidden_layers": 1, "sliding_window": 8},
    "qwen2": {"head_dim": 20, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "qwen3": {"head_dim": 128, "num_hidden_layers": 1, "num_key_value_heads": 1},
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("gpt2", {"n_inner": 50, "activation_function": "gelu", "reorder_and_upcast_attn": True}),
    ("gpt2", {"n_embd": 128, "n_head": 1, "n_layer": 1, "tie_word_embeddings": False}),
    ("gpt2", {"n_embd": 160, "n_head": 2, "n_layer": 1}),
    ("llama", {"num_key_value_heads": 4, "hidden_act": "gelu"}),
    ("llama", {"num_key_value_heads": 1, "head_dim": 20}),
    ("llama", {"rope_parameters": LLAMA3 | {"rope_theta": 500.0}}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}),
    ("llama", {"rope_parameters": YARN | {"rope_theta": 10000.0}}),
    ("mistral", {"sliding_window": None, "head_dim": 12}),
    ("mistral", {"sliding_window": 3}),
    ("qwen2", {"use_sliding_window": False, "sliding_window": 4, "tie_word_embeddings": True}),
    ("qwen2", {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 3, "use_sliding_window": True}),
    ("qwen3", {"attention_bias": True, "head_dim": 20}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 0}),
]


def assert_canonical_equals_transformers(folder: Path, theirs: Any) -> Source:
    """The golden logits are the class's own, and the canonical model gives them by prefill and by cached steps."""
    found = resolve(folder)
    assert isinstance(found.adapter, HuggingFaceCausal)
    described = found.adapter.describe()
    with evaluating(found.adapter.model), torch.no_grad():
        goldens = golden.causal_goldens(described.original, described.ids, described.max_length)
        check_causal(described.build(), goldens)
        ids = torch.from_numpy(goldens["seq0/input_ids"])
        assert abs(goldens["seq0/logits"] - theirs(ids).logits.numpy()).max() < 1e-5
    return found


@pytest.mark.parametrize(("family", "settings"), SETTINGS, ids=lambda value: value if isinstance(value, str) else "-".join(value))
def test_every_setting_equals_transformers(tmp_path: Path, family: str, settings: dict[str, Any]) -> None:
    model = causal_folders.make(family, **settings)
    model.save_pretrained(tmp_path / "model")
    found = assert_canonical_equals_transformers(tmp_path / "model", model)
    assert (found.family, found.task) == (family, "text-generation")


@pytest.mark.parametrize("family", BUNDLES)
def test_greedy_answers_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    """64 tokens of one prompt, and of five of different lengths, padded on the left there and on the right here."""
    model = causal_folders.make(family, seed=1, **BUNDLES[family])
    model.save_pretrained(tmp_path / "model")
    bundle = build(tmp_path / "model", tmp_path / "bundle", precision=("fp32",))
    assert bundle.task == "text-generation" and bundle.variants["fp32"].parity["max_abs_diff"] < 1e-4
    assert bundle.variants["fp32"].fusions == {"group_query_attention": model.config.num_hidden_layers}
    padded = {"gpt2": [20, 24], "qwen2": [20, 32]}  # kernels take multiples of 8, and turn halves of multiples of 8
    assert bundle.manifest.value["settings"].get("padded_heads") == ({"decoder": padded[family]} if family in padded else None)
    runtime, random = load(tmp_path / "bundle", threads=1), np.random.default_rng(2)
    prompts = [random.integers(3, 97, length).tolist() for length in (9, 1, 17, 4, 12)]
    longest = max(map(len, prompts))
    padded = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    steps = {"min_new_tokens": 64, "max_new_tokens": 64, "do_sample": False}
    with torch.no_grad():
        alone = model.generate(torch.tensor(prompts[:1]), attention_mask=torch.ones(1, 9), **steps)[:, 9:].tolist()
        together = model.generate(padded, attention_mask=mask, **steps)[:, longest:].tolist()
    del steps["do_sample"]
    assert [found.tokens for found in runtime.generate(prompts[:1], **steps)] == alone
    assert [found.tokens for found in runtime.generate(prompts, **steps)] == together
    assert len({token for row in together for token in row}) > 20  # the models say different things


def test_int8_and_half_of_packed_and_gated_projections(tmp_path: Path) -> None:
    folder = causal_folders.write(tmp_path / "model", "qwen2", num_hidden_layers=1, tie_word_embeddings=True)
    bundle = build(folder, tmp_path / "bundle", precision=("fp32", "fp16", "int8", "int8-weight"))
    layer = "model.layers.0"
    linears = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
    plan = {f"{layer}.{name}.weight" for name in linears} | {"model.embed_tokens.weight"}
    assert bundle.variants["int8"].plan == dict.fromkeys(plan, "int8-rows")
    assert set(bundle.variants["int8-weight"].plan) == plan
    assert load(tmp_path / "bundle", precision="int8", threads=1).generate([[5, 6, 7]], max_new_tokens=4)[0].tokens


def test_conv1d_projections_become_int8(tmp_path: Path) -> None:
    folder = causal_folders.write(tmp_path / "model", "gpt2", n_layer=1)
    bundle = build(folder, tmp_path / "bundle", precision=("fp32", "int8"))
    names = [f"transformer.h.0.{name}.weight" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]
    assert bundle.variants["int8"].plan == dict.fromkeys([*names, "transformer.wte.weight"], "int8-rows")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_model_saved_without_its_head(tmp_path: Path, family: str) -> None:
    model = causal_folders.make(family, tie_word_embeddings=True)
    model.base_model.save_pretrained(tmp_path / "model")
    assert_canonical_equals_transformers(tmp_path / "model", model)


def test_shards(tmp_path: Path) -> None:
    model = causal_folders.make("qwen3")
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    assert_canonical_equals_transformers(tmp_path / "model", model)


def change(folder: Path, **changes: Any) -> Path:
    """Keys of config.json replaced; `...` drops one."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))
    return folder


@pytest.mark.parametrize(
    ("settings", "older"),
    [
        ({"rope_type": "default", "rope_theta": 700.0}, {"rope_theta": 700.0, "rope_scaling": None}),
        (LLAMA3 | {"rope_theta": 700.0}, {"rope_theta": 700.0, "rope_scaling": LLAMA3}),
        (
            {"rope_type": "linear", "factor": 2.0, "rope_theta": 700.0},
            {"rope_theta": 700.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
        ),
    ],
    ids=["theta", "llama3", "linear"],
)
def test_configs_of_transformers_4(tmp_path: Path, settings: dict[str, Any], older: dict[str, Any]) -> None:
    model = causal_folders.make("llama", rope_parameters=settings)
    model.save_pretrained(tmp_path / "model")
    change(tmp_path / "model", rope_parameters=..., dtype=..., torch_dtype="float32", transformers_version="4.40.0", **older)
    assert_canonical_equals_transformers(tmp_path / "model", model)


OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    ("gpt2", {"scale_attn_weights": False}),
    ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}),
    ("llama", {"partial_rotary_factor": 0.5}),
]


@pytest.mark.parametrize(("family", "changes"), OTHERS, ids=lambda value: value if isinstance(value, str) else "")
def test_what_the_canonical_form_lacks_is_traced_as_its_own_class(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    adapter = resolve(change(causal_folders.write(tmp_path / "model", family), **changes)).adapter
    assert isinstance(adapter, TracedCausal)
    assert adapter.describe().build is None


REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("gpt2", {"add_cross_attention": True}, "missing tensors: transformer.h.0.crossattention"),
    ("llama", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "transformers refuses"),
    ("llama", {"architectures": ["LlamaForSequenceClassification"]}, r"missing tensors: score\.weight"),
    ("qwen2", {"layer_types": ["sliding_attention"]}, "transformers refuses"),
]


@pytest.mark.parametrize(("family", "changes", "named"), REFUSALS, ids=lambda value: value if isinstance(value, str) else "")
def test_what_would_change_answers_is_refused_by_name(tmp_path: Path, family: str, changes: dict[str, Any], named: str) -> None:
    folder = change(causal_folders.write(tmp_path / "model", family), **changes)
    with pytest.raises(CheckpointError, match=named):
        resolve(folder)


@pytest.mark.parametrize(
    ("family", "buffers"),
    [
        ("gpt2", {"h.0.attn.bias": torch.ones(1, 1, 128, 128), "h.1.attn.masked_bias": torch.tensor(-1e4)}),
        ("llama", {"layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}),
    ],
    ids=["gpt2", "llama"],
)
def test_buffers_of_older_versions_are_left_alone(tmp_path: Path, family: str, buffers: dict[str, torch.Tensor]) -> None:
    """As in the first checkpoints: no head, no prefix, and masks and frequencies among the weights, in half precision."""
    model = causal_folders.make(family, tie_word_embeddings=True)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    model.base_model.save_pretrained(tmp_path / "model")
    path = tmp_path / "model/model.safetensors"
    halved = {name: tensor.bfloat16() for name, tensor in load_file(path).items()}
    save_file({**halved, **buffers}, path, {"format": "pt"})
    assert_canonical_equals_transformers(change(tmp_path / "model", dtype="bfloat16"), model)


def test_a_missing_head_that_is_not_tied_makes_an_embedding_model(tmp_path: Path) -> None:
    causal_folders.make("llama", tie_word_embeddings=False).base_model.save_pretrained(tmp_path / "model")
    found = resolve(tmp_path / "model")
    assert (type(found.adapter).__name__, found.task) == ("TracedEncoder", "tensor")  # there is no tokenizer
    change(tmp_path / "model", architectures=["LlamaForCausalLM"])
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        resolve(tmp_path / "model")
