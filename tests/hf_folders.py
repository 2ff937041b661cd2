"""Tiny random checkpoints in Hugging Face's layout, written by transformers' own classes. No tokenizer files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

# sizes that both families share; every keyword of the family's configuration class can replace one
TINY: dict[str, Any] = {
    "vocab_size": 97,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 40,
}


def marian(folder: Path, seed: int = 0, generation: dict[str, Any] | None = None, **config: Any) -> Path:
    """A MarianMTModel as opus-mt models are: swish, scaled and shared embeddings, end 0, padding and start the last id.

    `config`: any key of MarianConfig; `generation`: keys of generation_config.json. Returns the folder.
    """
    from transformers import MarianConfig, MarianMTModel

    last = config.get("decoder_vocab_size") or config.get("vocab_size", TINY["vocab_size"])
    ids = {"pad_token_id": last - 1, "decoder_start_token_id": last - 1, "eos_token_id": 0, "forced_eos_token_id": 0}
    family = {"activation_function": "swish", "scale_embedding": True}
    return save(MarianMTModel(MarianConfig(**TINY | family | ids | config)), folder, seed, generation)


def bart(folder: Path, seed: int = 0, generation: dict[str, Any] | None = None, **config: Any) -> Path:
    """A BartForConditionalGeneration: gelu, learned positions, begin 0, padding 1, end and start 2. Arguments as in `marian`."""
    from transformers import BartConfig, BartForConditionalGeneration

    return save(BartForConditionalGeneration(BartConfig(**TINY | config)), folder, seed, generation)


def save(model: Any, folder: Path, seed: int = 0, generation: dict[str, Any] | None = None, **options: Any) -> Path:
    """`save_pretrained` of a model with every parameter and logits bias random (norms around 1); `options` are save_pretrained's."""
    generator = torch.Generator().manual_seed(seed)
    fixed = {id(module.weight) for module in model.modules() if type(module).__name__ == "MarianSinusoidalPositionalEmbedding"}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if id(parameter) not in fixed:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(1 + 0.2 * noise if "norm" in name and name.endswith("weight") else 0.25 * noise)
        if getattr(model, "final_logits_bias", None) is not None:
            model.final_logits_bias.copy_(torch.randn(model.final_logits_bias.shape, generator=generator))
    for key, value in (generation or {}).items():
        setattr(model.generation_config, key, value)
    folder = Path(folder)
    model.eval().save_pretrained(folder, **options)
    return folder
