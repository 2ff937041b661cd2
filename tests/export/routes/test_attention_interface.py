"""Language models traced as their own classes: one tiny model for each mechanism, against transformers, ragged, cached, windows full."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onnxport.build import build
from onnxport.errors import CheckpointError, UsageError
from onnxport.export.attention_interface.ways import find_way
from onnxport.export.hugging_face.any_decoder import TracedCausal
from onnxport.export.resolve import resolve
from onnxport.runtime import load
from onnxport.runtime.decode import state
from support.causal_folders import TINY, randomize

NEW = 10
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
LATENT = {
    **EXPERTS, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8,
    "v_head_dim": 6, "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
WINDOWS = {"head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
# mechanism → class, settings beside TINY
MECHANISMS: dict[str, tuple[str, dict[str, Any]]] = {
    "soft caps": ("Gemma2ForCausalLM", WINDOWS | {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0}),
    "sinks and experts with biases": ("GptOssForCausalLM", WINDOWS | EXPERTS | {"num_local_experts": 4}),
    "latent attention, values narrower than keys": ("DeepseekV3ForCausalLM", LATENT),
    "partial rotation, parallel blocks, biases": ("GPTNeoXForCausalLM", {"rotary_pct": 0.5}),
    "interleaved rotation": ("CohereForCausalLM", {}),
    "learned positions, heads of 5": ("OPTForCausalLM", {"hidden_size": 20, "ffn_dim": 24, "word_embed_proj_dim": 20}),
    "two attentions a layer": ("DiffLlamaForCausalLM", {}),
    "a slope of scores by attention of its own": ("BloomForCausalLM", {"hidden_size": 24, "num_attention_heads": 3}),
    "a table of scores": (
        "FalconForCausalLM",
        {"alibi": True, "new_decoder_architecture": False, "hidden_size": 24, "num_attention_heads": 3, "max_position_embeddings": 400},
    ),
    "windows of its own": (
        "GPTNeoForCausalLM", {"attention_types": [[["global", "local"], 1]], "window_size": 8, "num_layers": 2, "num_heads": 4}
    ),
    "complex rotation, masks of chunks": (
        "Llama4ForCausalLM",
        {"head_dim": 8, "attention_chunk_size": 6, "num_local_experts": 4, "intermediate_size_mlp": 40, "no_rope_layers": [1, 0]},
    ),
    "positions counted by the length of its cache": (
        "TrOCRForCausalLM", {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 40}
    ),
    "a hybrid of attention alone, floats that JSON has not": (
        "GraniteMoeHybridForCausalLM",
        EXPERTS
        | {"layer_types": ["attention"] * 2, "num_local_experts": 4, "shared_intermediate_size": 24, "mamba_n_heads": 8, "mamba_d_head": 8},
    ),
    "positions from behind the padding id on": ("RobertaForCausalLM", {"is_decoder": True, "pad_token_id": 1}),
}  # fmt: skip
# what stands in the way → class, settings beside TINY
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "looks at what comes behind a token.*is_decoder is False": ("BertGenerationDecoder", {}),
    "keep a state that is no keys and values": ("MambaForCausalLM", {"state_size": 4}),
    "makes a mask of its own": ("DogeForCausalLM", {}),
    "by an indexer with a cache of its own": (
        "DeepseekV32ForCausalLM",
        LATENT | {"index_n_heads": 2, "index_head_dim": 8},
    ),
    "takes no cache": ("OpenAIGPTLMHeadModel", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
}


def tiny(name: str, **settings: Any) -> Any:
    """A tiny random model of the class."""
    import transformers

    cls = getattr(transformers, name)
    known = cls.config_class().to_dict().keys() | cls.config_class.attribute_map.keys()
    config = cls.config_class(**{key: value for key, value in {**TINY, **settings}.items() if key in known})
    model = cls(config).eval()
    randomize(model)
    return model


def made(name: str, folder: Path, **settings: Any) -> Any:
    """The same in a folder."""
    model = tiny(name, **settings)
    model.save_pretrained(folder)
    return model


def agrees(model: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probabilities of generated tokens are those of the class over the whole text, for ragged prompts in one and in several blocks."""
    random = np.random.default_rng(3)
    prompts = [random.integers(5, 90, length).tolist() for length in (5, 19, 1)]
    with load(bundle, threads=1) as ours:
        for block in (state.PREFILL_CHUNK, 7):
            monkeypatch.setattr(state, "PREFILL_CHUNK", block)
            for prompt, answer in zip(prompts, ours.generate(prompts, min_new_tokens=NEW, max_new_tokens=NEW), strict=True):
                with torch.no_grad():
                    logits = model(input_ids=torch.tensor([[*prompt, *answer.tokens]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
                expected = logits.log_softmax(-1)[torch.arange(NEW), torch.tensor(answer.tokens)]
                np.testing.assert_allclose(answer.token_logprobs, expected.numpy(), atol=1e-5 * float(logits.abs().max()) + 1e-6)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_answers_are_the_classes_own(mechanism: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, settings = MECHANISMS[mechanism]
    model = made(name, tmp_path / "folder", **settings)
    bundle = build(str(tmp_path / "folder"), tmp_path / "bundle", precision=("fp32",))
    assert bundle.manifest.value["provenance"]["route"] == "attention-interface"
    assert not any("bounded" in note for note in bundle.manifest.value["provenance"].get("notes", ()))
    agrees(model, tmp_path / "bundle", monkeypatch)


def test_windows_of_some_layers_norms_of_heads_and_two_rotations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("Gemma3ForCausalLM", tmp_path / "folder", **WINDOWS)
    before = model.config._attn_implementation
    assert [(one.kv_heads, one.head_size, one.window) for one in find_way(model, 64).shapes] == [(2, 8, 8), (2, 8, None)]
    assert model.config._attn_implementation == before
    bundle = build(str(tmp_path / "folder"), tmp_path / "bundle", precision=("fp32", "int8"))
    assert bundle.generation is not None
    assert [cache.window for cache in bundle.generation.caches] == [8, None]
    fusions = bundle.variants["fp32"].fusions
    assert (fusions["rms_norm"], fusions["rotary"], fusions["head_layout"]) == (13, 4, 2)
    agrees(model, tmp_path / "bundle", monkeypatch)
    with load(tmp_path / "bundle", threads=1) as ours:
        greedy = ours.generate([[5, 6, 7] * 9], min_new_tokens=NEW, max_new_tokens=NEW, beam=3)
        assert len(greedy[0].tokens) == NEW


def test_a_canonical_family_answers_alike_on_both_routes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("LlamaForCausalLM", tmp_path / "folder")
    bundle = build(str(tmp_path / "folder"), tmp_path / "bundle", precision=("fp32",), route="attention-interface")
    assert bundle.manifest.value["provenance"]["route"] == "attention-interface"
    agrees(model, tmp_path / "bundle", monkeypatch)


def test_settings_that_the_canonical_form_lacks_take_this_route(tmp_path: Path) -> None:
    made("LlamaForCausalLM", tmp_path / "folder", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
    found = resolve(tmp_path / "folder")
    assert isinstance(found.adapter, TracedCausal)


def test_rotation_that_changes_with_the_length_bounds_the_text(tmp_path: Path) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    made("Phi3ForCausalLM", tmp_path / "folder", rope_parameters=rope, original_max_position_embeddings=32)
    adapter = resolve(tmp_path / "folder").adapter
    assert isinstance(adapter, TracedCausal) and adapter.max_length == 32


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_right_is_refused_before_anything_is_traced(why: str) -> None:
    name, settings = REFUSED[why]
    with pytest.raises(CheckpointError, match=why):
        find_way(tiny(name, **settings), 64)


def test_a_bias_that_is_rounded_is_no_slope() -> None:
    falcon = {"alibi": True, "new_decoder_architecture": False, "num_attention_heads": 3, "hidden_size": 24}
    (score, _) = find_way(tiny("FalconForCausalLM", **falcon), 400).scores or ()  # bfloat16 holds integers up to 256
    assert score.slopes is None and score.table is not None and score.table.shape == (3, 400)
    (score, _) = find_way(tiny("BloomForCausalLM", num_attention_heads=2), None).scores or ()
    assert score.slopes == pytest.approx((0.0625, 0.00390625), rel=1e-6) and score.table is None


def test_masks_of_chunks_become_biases() -> None:
    settings = MECHANISMS["complex rotation, masks of chunks"]
    assert [(one.window, one.biased) for one in find_way(tiny(settings[0], **settings[1]), 64).shapes] == [(None, True), (None, False)]


def test_windows_that_a_class_masks_but_does_not_name(tmp_path: Path) -> None:
    model = tiny("PhimoeForCausalLM", sliding_window=8, num_local_experts=4)
    assert [one.window for one in find_way(model, 64).shapes] == [8, 8]


def test_constants_that_cannot_be_traced_are_kept() -> None:
    from onnxport.export.attention_interface.untraced import Untraced

    with Untraced(None) as first:
        found = torch.erfinv(torch.tensor([0.5, -0.25]))
    with Untraced(tuple(first.found)):
        assert torch.equal(torch.erfinv(torch.tensor([0.0, 0.0])), found)


def test_a_route_that_a_source_cannot_take_is_wrong_usage(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="route attention-interface is for language models of transformers"):
        build(str(model_folder), tmp_path / "bundle", precision=("fp32",), route="attention-interface")
    with pytest.raises(UsageError, match="route attention_interface is not known, expected attention-interface"):
        build(str(model_folder), tmp_path / "bundle", precision=("fp32",), route="attention_interface")


@pytest.mark.parametrize(
    "changes, named", [({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"), ({"architectures": 1.5}, "architectures is 1.5")]
)
def test_a_config_that_cannot_be_is_refused_at_once(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    made("LlamaForCausalLM", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError, match=named):
        resolve(tmp_path)
