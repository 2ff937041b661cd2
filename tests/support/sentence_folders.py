"""Folders of sentence-transformers: modules behind a tiny encoder, with random weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from support import task_folders

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
WIDTH = 40
PROMPTS = {"query": "find: ", "document": "", "long": "see what: "}
LAYERS: tuple[tuple[str, dict[str, Any]], ...] = (  # of the folder that has all of them
    ("Normalize", {}),
    ("Dense", {"out_features": 24, "activation_function": "torch.nn.modules.activation.Tanh"}),
    ("LayerNorm", {}),
    ("Dense", {"out_features": 24, "activation_function": "torch.nn.modules.activation.GELU", "use_residual": True}),
    ("Dense", {"out_features": 16, "activation_function": "torch.nn.modules.linear.Identity", "bias": False, "use_residual": True}),
    ("Normalize", {}),
)


def modules(folder: Path, pooling: dict[str, Any], layers: Sequence[tuple[str, dict[str, Any]]] = (), width: int = WIDTH) -> Path:
    """Adds modules.json, a pooling and what follows it, with random weights."""
    generator = torch.Generator().manual_seed(3)
    size = width * (len(pooling["pooling_mode"]) if isinstance(pooling.get("pooling_mode"), list) else 1)
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling")]
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": width} | pooling))
    for i, (kind, config) in enumerate(layers, start=2):
        place = folder / f"{i}_{kind}"
        place.mkdir()
        kinds.append((kind, place.name))
        tensors = {}
        if kind == "Dense":
            config = {"in_features": size, "bias": True} | config
            after = config["out_features"]
            tensors["linear.weight"] = torch.randn(after, size, generator=generator) / size**0.5
            tensors |= {"linear.bias": torch.randn(after, generator=generator) / 9} if config["bias"] else {}
            if config.get("use_residual") and after != size:
                tensors["residual.weight"] = torch.randn(after, size, generator=generator) / size**0.5
            size = after
        if kind == "LayerNorm":
            config = {"dimension": size}
            tensors = {f"norm.{part}": torch.rand(size, generator=generator) + 0.5 for part in ("weight", "bias")}
        if tensors:
            save_file(tensors, place / "model.safetensors")
            (place / "config.json").write_text(json.dumps(config))
    stated = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"} for i, (kind, path) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(stated))
    return folder


def write_whole(folder: Path) -> Path:
    """An encoder with every pooling, every layer, and prompts, whose tokens are not pooled."""
    modules(task_folders.write(folder, "bert", "bare"), {"pooling_mode": list(MODES), "include_prompt": False}, LAYERS)
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": PROMPTS, "default_prompt_name": "query"}))
    return folder
