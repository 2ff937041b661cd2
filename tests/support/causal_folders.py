"""Tiny random language models in Hugging Face's layout, written by transformers' own classes. No tokenizer files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

# what Llama and its kin share; every key of the family's configuration class can replace one
TINY: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TINY_GPT2: dict[str, Any] = {
    "vocab_size": 97,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CLASSES = {
    "gpt2": "GPT2", "llama": "Llama", "mistral": "Mistral", "mixtral": "Mixtral", "qwen2": "Qwen2", "qwen2_moe": "Qwen2Moe",
    "qwen3": "Qwen3",
}  # fmt: skip


def make(family: str, seed: int = 0, headless: bool = False, **config: Any) -> Any:
    """The family's class with a head, or without, in eval mode, every parameter random."""
    import transformers

    name = CLASSES[family]
    settings = (TINY_GPT2 if family == "gpt2" else TINY) | config
    cls = getattr(transformers, f"{name}Model" if headless else f"{name}LMHeadModel" if family == "gpt2" else f"{name}ForCausalLM")
    model = cls(getattr(transformers, f"{name}Config")(**settings)).eval()
    randomize(model, seed)
    return model


def write(folder: Path, family: str, seed: int = 0, headless: bool = False, **config: Any) -> Path:
    """`make` and save_pretrained; returns the folder."""
    make(family, seed, headless, **config).save_pretrained(folder)
    return Path(folder)


def randomize(model: Any, seed: int = 0) -> None:
    """Values of a usual size, norms around 1; the last norm has random signs: a tied model would else answer one token over and over."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1 and name.endswith("weight"):
                last = name in ("model.norm.weight", "transformer.ln_f.weight", "norm.weight", "ln_f.weight")
                parameter.copy_((1 + 0.2 * noise) * (noise.flip(0).sign() if last else 1))
            elif name.endswith("bias"):
                parameter.copy_(0.1 * noise)
            elif "wpe" in name:
                parameter.copy_(0.3 * noise)
            elif "wte" in name or "embed_tokens" in name:
                parameter.copy_(noise)
            else:
                parameter.copy_(1.4 * noise * model.config.hidden_size**-0.5)
