"""Bundles of a tiny model of each kind, for every target; `PYTHONPATH=tests python -m support.target_bundles FOLDER` writes them.

tests/targets reads them with older versions of ONNX Runtime."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from support import causal_folders, encoder_folders, translation_folder

PRECISIONS = ("fp32", "fp16", "int8", "int4")


def _bert(folder: Path) -> Path:
    return encoder_folders.write(folder, encoder_folders.make("bert", "single"), "bert")


def _gemma(folder: Path) -> Path:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    sizes = causal_folders.TINY | {"head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
    model = Gemma3ForCausalLM(Gemma3TextConfig(**sizes)).eval()
    causal_folders.randomize(model)
    model.save_pretrained(folder)
    return folder


# By kind: what its graphs are made of differs.
KINDS: dict[str, Callable[[Path], Path]] = {
    "seq2seq": translation_folder.write_model,
    "causal": lambda folder: causal_folders.write(folder, "llama"),
    "normed": lambda folder: causal_folders.write(folder, "qwen3"),
    "window": lambda folder: causal_folders.write(folder, "mistral", sliding_window=8),
    "positions": lambda folder: causal_folders.write(folder, "gpt2"),
    "mixed": _gemma,  # through the attention interface, with windows in some layers
    "experts": lambda folder: causal_folders.write(folder, "mixtral", num_local_experts=4, num_experts_per_tok=2),
    "encoder": _bert,
}


def write(kind: str, folder: Path, targets: tuple[str, ...] = ("cpu", "cuda", "web")) -> Path:
    """The bundle `kind` in a folder, with the model that it is made of beside it."""
    from onnxport.build.stages import build

    source = KINDS[kind](folder / "sources" / kind)
    build(str(source), folder / kind, precision=PRECISIONS, target=targets)
    return folder / kind


if __name__ == "__main__":
    for kind in KINDS:
        write(kind, Path(sys.argv[1]))
        print(kind, flush=True)
