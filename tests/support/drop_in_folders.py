"""Tiny folders of sentence-transformers and cross-encoders, and the bundles of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from onnxport.build.stages import build
from support import task_folders as folders

PROMPTS = {"query": "find: ", "passage": "see: "}
LONG = "the cat sat on a mat and the dog lay by the door of the house "
TEXTS = ["the cat", "", "a dog lay by the door", LONG * 3, "x", "Ada came to London"]
PAIRS = [("the cat", "a mat"), (LONG, "x"), ("x", LONG), (LONG, LONG), ("", "the dog"), ("a dog lay", "by the door")]


def embedder(folder: Path, pooling: str = "mean", settings: dict[str, Any] | None = None, include_prompt: bool = True) -> Path:
    """A BERT with a pooling, normalized where that is the mean. settings: of config_sentence_transformers.json."""
    folders.write(folder, "bert", "bare")
    (folder / "1_Pooling").mkdir()
    pooled = {"word_embedding_dimension": 40, "pooling_mode": pooling, "include_prompt": include_prompt}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooled))
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling")]
    if pooling == "mean":
        (folder / "2_Normalize").mkdir()
        kinds.append(("Normalize", "2_Normalize"))
    stated = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"} for i, (kind, path) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(stated))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 32}))
    if settings:
        (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    return folder


def cross_encoder(folder: Path, labels: int, activation: str | None = None, problem: str | None = None) -> Path:
    """A BERT that scores pairs; activation: stated in its config, by its name in torch.nn."""
    head = {"problem_type": problem} if problem else {}
    folders.write(folder, "bert", "score", **{"num_labels": labels} | head)
    if activation is not None:
        config = json.loads((folder / "config.json").read_text())
        config["sentence_transformers"] = {"activation_fn": f"torch.nn.{activation}", "version": "6.0.0"}
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def bundled(folder: Path) -> Path:
    """The fp32 bundle of a folder, beside it."""
    out = folder.with_name(f"{folder.name}-bundle")
    build(folder, out, precision=("fp32",))
    return out
