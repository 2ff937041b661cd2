"""Tiny models with every weight random: zeros and equal layers would hide mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn

CONFIG: dict[str, Any] = {
    "architecture": "torch.nn.Transformer",
    "d_model": 20,
    "nhead": 2,
    "num_encoder_layers": 1,
    "num_decoder_layers": 2,
    "dim_feedforward": 24,
    "activation": "relu",
    "norm_first": True,
    "layer_norm_eps": 1e-5,
    "bias": True,
    "source_vocab_size": 40,
    "target_vocab_size": 40,
    "positions": "sinusoidal",
    "embedding_scale": 0.5,
    "tie_embeddings": True,
    "max_length": 32,
    "pad_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "task": "translation",
    "dropout": 0.3,
}
SETTINGS = "d_model nhead num_encoder_layers num_decoder_layers dim_feedforward activation norm_first layer_norm_eps bias".split()


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter random, norms around 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if "norm" in name and name.endswith("weight") else 0.25 * noise)
    return module


def table(rows: int, width: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def weights_of(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """A state of the folder that `config` describes."""
    transformer = randomized(nn.Transformer(**{name: config[name] for name in SETTINGS}, batch_first=True))
    tensors = {f"transformer.{name}": value.detach().clone() for name, value in transformer.state_dict().items()}
    width, source, target = config["d_model"], config["source_vocab_size"], config["target_vocab_size"]
    tensors["source_embedding.weight"] = table(source, width, 1)
    if config["tie_embeddings"] is not True:
        tensors["target_embedding.weight"] = table(target, width, 2)
    if config["tie_embeddings"] is False:
        tensors["head.weight"] = table(target, width, 3)
        tensors["head.bias"] = table(1, target, 4)[0]
    if config["positions"] == "learned":
        tensors["positions.weight"] = table(config["max_length"], width, 5)
    return tensors


def words(count: int) -> Tokenizer:
    """A tokenizer of `count` ids: three special ones and w3, w4, ..."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, count)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>"])
    return tokenizer


def write_folder(folder: Path, tensors: dict[str, torch.Tensor] | None = None, tokenizer: int | None = None, **changes: Any) -> Path:
    """Our folder with a changed config; a change to `...` drops the key."""
    config = {name: value for name, value in (CONFIG | changes).items() if value is not ...}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights_of(CONFIG | changes) if tensors is None else tensors, folder / "model.safetensors")
    if tokenizer is not None:
        words(tokenizer).save(str(folder / "tokenizer.json"))
    return folder


def encoder_stack(layers: int = 2, norm: bool = True, seed: int = 0, **settings: Any) -> nn.TransformerEncoder:
    """A TransformerEncoder of width 16 whose layers are not copies of one another."""
    layer = nn.TransformerEncoderLayer(16, 2, 24, **({"batch_first": True} | settings))
    final = nn.LayerNorm(16, bias=settings.get("bias", True)) if norm else None
    return randomized(nn.TransformerEncoder(layer, layers, final, enable_nested_tensor=False), seed)
