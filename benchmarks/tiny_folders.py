"""Tiny folders with random weights for any type of model that transformers knows: what the census and its tests are made of.

A type's configuration is the default one of its class with small sizes, by the names that transformers gives to sizes. What a type needs
besides stands in a table.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

VOCABULARY = 97
# Names of sizes in configurations → what they become. A name that a configuration has not is left out.
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "d_model": 32, "n_embd": 32, "emb_dim": 32, "dim": 32, "embedding_size": 32,
    "num_hidden_layers": 2, "num_layers": 2, "n_layer": 2, "n_layers": 2, "encoder_layers": 2, "decoder_layers": 2, "num_encoder_layers": 2,
    "num_decoder_layers": 2, "num_attention_heads": 4, "num_heads": 4, "n_head": 4, "n_heads": 4, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "d_head": 8, "d_kv": 8, "intermediate_size": 48, "d_ff": 48,
    "d_inner": 48, "n_inner": 48, "ffn_dim": 48, "hidden_dim": 48, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "ffn_hidden_size": 48,
    "max_position_embeddings": 64, "n_positions": 64, "max_length": 64, "projection_dim": 32, "type_vocab_size": 2, "true_hidden_size": 32,
    "intra_bottleneck_size": 32, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_intermediate_size": 24,
    "num_experts_per_tok": 2, "shared_expert_intermediate_size": 24, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8, "v_head_dim": 8, "qk_head_dim": 16, "sliding_window": 8, "rotary_dim": 4,
    "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
    "dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0,
}  # fmt: skip
BERT = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 64,
}  # fmt: skip
GEMMA = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8, "max_position_embeddings": 64, "query_pre_attn_scalar": 8,
    "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip
# Types whose sizes hang together in a way of their own.
SPECIAL: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 16},
    "big_bird": {"attention_type": "original_full"},
    "bros": {"dim_bbox": 8, "bbox_scale": 100.0},
    "canine": {"max_position_embeddings": 64, "num_hash_buckets": 64, "local_transformer_stride": 8},
    "convbert": {"head_ratio": 2, "conv_kernel_size": 3},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False, "max_relative_positions": 24},
    "deberta-v2": {
        "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "position_buckets": 8,
        "norm_rel_ebd": "layer_norm", "share_att_key": True, "max_relative_positions": -1, "pooler_hidden_size": 32,
    },
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {name: {"rope_type": "default", "rope_theta": 1e4} for name in ("sliding_attention", "full_attention")},
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48, "moe_top_k": 2},
    },
    "dots1": {"n_shared_experts": 1},
    "electra": {"embedding_size": 16},
    "encoder-decoder": {
        "encoder": {"model_type": "bert"} | BERT, "decoder": {"model_type": "bert", "is_decoder": True, "add_cross_attention": True} | BERT,
        "decoder_start_token_id": 2, "pad_token_id": 0, "eos_token_id": 3,
    },
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32, "position_embedding_type": "rotary"},
    "flaubert": {"n_langs": 1, "pre_norm": False},
    "gemma3n_text": {
        "num_hidden_layers": 4, "num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2,
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY, "intermediate_size": [48] * 4, "laurel_rank": 8,
        "activation_sparsity_pattern": [0.9, 0.9, 0.0, 0.0],
    },
    "gemma4_text": {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24},
    "flint": {"mlp_only_layers": [0]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "funnel": {"block_sizes": [1, 1, 1], "d_head": 8, "d_model": 32},
    "layoutlm": {"max_2d_position_embeddings": 64},
    "esmc": {"num_key_value_heads": 4},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "layer_types": ["mamba", "attention"]},
    "led": {"attention_window": 8, "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1},
    "zamba": {"num_hidden_layers": 3, "layers_block_type": ["linear_attention", "hybrid", "hybrid"]},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"], "num_key_value_heads": 4},
    "zaya": {"num_experts_per_tok": 1},
    "lilt": {"hidden_size": 48, "max_2d_position_embeddings": 64, "channel_shrink_ratio": 4},
    "layoutlmv2": {"max_2d_position_embeddings": 64, "coordinate_size": 8, "shape_size": 8},
    "layoutlmv3": {"max_2d_position_embeddings": 64, "coordinate_size": 6, "shape_size": 4, "visual_embed": False},
    "longformer": {"attention_window": 8},
    "longt5": {"decoder_start_token_id": 0, "pad_token_id": 0, "local_radius": 4},
    "luke": {"entity_vocab_size": 16, "entity_emb_size": 16},
    "markuplm": {
        "max_depth": 8, "xpath_unit_hidden_size": 8, "max_xpath_tag_unit_embeddings": 16, "max_xpath_subs_unit_embeddings": 16,
        "tag_pad_id": 15, "subs_pad_id": 15,
    },
    "mobilebert": {"embedding_size": 16, "hidden_size": 32, "intra_bottleneck_size": 16, "true_hidden_size": 16},
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 8, "num_hidden_layers": 3},
    "mra": {"block_per_row": 2},
    "neomme": {"head_dim": 16},
    "nllb-moe": {"encoder_sparse_step": 2, "decoder_sparse_step": 2},
    "perceiver": {"d_latents": 32, "d_model": 32, "num_latents": 8},
    "qwen4_exp": {"layer_types": ["linear_attention"] * 2},
    "qwen4_exp_text": {"layer_types": ["linear_attention"] * 2},
    "reformer": {
        "attn_layers": ["local", "local"], "axial_pos_embds": False, "local_attn_chunk_length": 8, "attention_head_size": 8,
        "feed_forward_size": 48,
    },
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 32},
    "roc_bert": {"pronunciation_vocab_size": 24, "shape_vocab_size": 24, "pronunciation_embed_dim": 16, "shape_embed_dim": 16},
    "switch_transformers": {
        "decoder_start_token_id": 0, "pad_token_id": 0, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1,
    },
    "t5": {"decoder_start_token_id": 0, "pad_token_id": 0},
    "smollm3": {"no_rope_layers": [1, 0]},
    "t5gemma2": {
        "encoder": {"text_config": GEMMA, "vision_config": {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 28,
            "patch_size": 14,
        }},
        "decoder": GEMMA, "image_token_index": 90, "eoi_token_index": 91, "decoder_start_token_id": 2,
    },
    "tapas": {"type_vocab_sizes": [3, 8, 8, 2, 8, 8, 4]},
    "xlm": {"n_langs": 1},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
}  # fmt: skip
NESTED = (
    "text_config", "encoder", "decoder", "vision_config", "audio_config",
    "patcher_config", "encoder_config", "decoder_config", "global_config",
)  # fmt: skip


def tiny_config(model_type: str, cls: Any) -> Any:
    """The configuration of `cls`, a class of transformers, in small sizes."""
    kind = cls.config_class
    default = kind()
    named = {new: old for old, new in getattr(kind, "attribute_map", {}).items()}  # its own name → the general one
    settings = _sizes(default.to_dict(), named)
    for key in NESTED:
        inner = getattr(default, key, None)
        if hasattr(inner, "to_dict"):
            settings[key] = _sizes(inner.to_dict(), {}) | _tokens(inner.to_dict())
    count = SPECIAL.get(model_type, {}).get("num_hidden_layers", SIZES["num_hidden_layers"])
    for key in ("layer_types", "mlp_layer_types"):
        kinds = list(dict.fromkeys(getattr(default, key, None) or ()))
        if len(kinds) > 1 and key in default.to_dict():
            settings[key] = (kinds * count)[:count]  # one layer of each, where a whole model has several of each
    if "kv_lora_rank" in settings and "num_key_value_heads" in settings:  # latent attention has as many heads of keys as of queries
        settings["num_key_value_heads"] = settings["num_attention_heads"]
    settings |= _tokens(default.to_dict()) | SPECIAL.get(model_type, {})
    return kind(**settings)


def _sizes(default: dict[str, Any], named: dict[str, str]) -> dict[str, Any]:
    found = {key: SIZES.get(key, SIZES.get(named.get(key, ""))) for key in default}
    return {key: value for key, value in found.items() if value is not None and isinstance(default[key], int | float | None)}


def _tokens(default: dict[str, Any]) -> dict[str, Any]:
    """Ids of special tokens that a small vocabulary has."""
    ids = {key: value for key, value in default.items() if key.endswith("_token_id") and isinstance(value, int | list)}
    beyond = [key for key, value in sorted(ids.items()) if max([-1, *(value if isinstance(value, list) else [value])]) >= VOCABULARY]
    return {key: VOCABULARY - 1 - i for i, key in enumerate(beyond)}


def randomize(model: torch.nn.Module, seed: int = 0) -> None:
    """Weights at which attention and every layer matter: matrices keep the size of what they read, vectors are varied a little."""
    generator = torch.Generator().manual_seed(seed)
    tables = {module.weight: module.padding_idx for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter in tables:
                if tables[parameter] is not None:
                    noise[tables[parameter]] = 0  # as classes make it
                parameter.copy_(0.7 * noise)
            elif parameter.dim() >= 2:
                parameter.copy_(noise * 1.2 / math.sqrt(parameter.shape[-1]))
            elif parameter.is_floating_point():
                parameter.add_(0.1 * noise)


def tiny_folder(model_type: str, cls: str, out: Path, **settings: Any) -> Path:
    """A folder as `save_pretrained` writes it, of a tiny random model of the class `cls` of transformers, without a tokenizer.

    settings: of the configuration, over those of this file, where it has the key. Whatever transformers raises where its class cannot be
    built goes through.
    """
    import transformers

    made = getattr(transformers, cls)
    config = tiny_config(model_type, made)
    for key, value in settings.items():
        if hasattr(config, key):
            setattr(config, key, value)
    torch.manual_seed(0)
    model = made(config).eval()
    randomize(model)
    model.save_pretrained(out)
    return out


def config_of(folder: Path) -> dict[str, Any]:
    """Its config.json."""
    found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return found
