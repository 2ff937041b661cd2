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
    """`save_pretrained` of a model with every parameter and logits bias random; `options` are save_pretrained's."""
    randomize(model, seed)
    for key, value in (generation or {}).items():
        setattr(model.generation_config, key, value)
    folder = Path(folder)
    model.eval().save_pretrained(folder, **options)
    return folder


def randomize(model: Any, seed: int = 0) -> None:
    """Random values of a usual size, norms around 1; the decoder's last norm has random signs: without them a model with tied embeddings
    answers one token over and over."""
    generator = torch.Generator().manual_seed(seed)
    scale = model.config.d_model**0.5 if model.config.scale_embedding else 1.0
    last = f"decoder.layers.{model.config.decoder_layers - 1}.final_layer_norm.weight"
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if not parameter.requires_grad:  # sinusoidal positions
                continue
            if "norm" in name and name.endswith("weight"):
                signs = torch.randn(parameter.shape, generator=generator).sign() if name.endswith(last) else 1
                parameter.copy_((1 + 0.2 * noise) * signs)
            elif name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            elif "positions" in name:
                parameter.copy_(0.25 * noise)
            else:
                embedding = "shared" in name or "embed_tokens" in name
                parameter.copy_(noise / scale if embedding else 1.4 * noise * parameter.shape[-1] ** -0.5)
        if getattr(model, "final_logits_bias", None) is not None:
            model.final_logits_bias.copy_(0.3 * torch.randn(model.final_logits_bias.shape, generator=generator))
