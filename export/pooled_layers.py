"""The weights of what follows the pooling of an embedding model, as the runtime reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from onnxport.errors import CheckpointError
from onnxport.export.sentence_transformers import TextSettings
from onnxport.export.weights import file_hash, read_hugging_face_weights
from onnxport.runtime.bundle.manifest import PooledLayer

# name in a module's file → ours, and whether it is turned round: ours are [inputs, outputs]
NAMES: dict[str, dict[str, tuple[str, bool]]] = {
    "dense": {"linear.weight": ("weight", True), "linear.bias": ("bias", False), "residual.weight": ("residual", True)},
    "norm": {"norm.weight": ("weight", False), "norm.bias": ("bias", False)},
    "normalize": {},
}
Arrays = Mapping[str, np.ndarray]


def read(texts: TextSettings, width: int, allow_pickle: bool) -> tuple[tuple[Arrays, ...], dict[str, str]]:
    """The arrays of each layer, float32, and the hashes of their files by folder and name.

    width: of the hidden states. allow_pickle: PyTorch's own files are read too. CheckpointError: weights are missing, or do not fit.
    """
    size = width * len((texts.pooling or "mean").split("+"))
    found: list[Arrays] = []
    hashes: dict[str, str] = {}
    for layer, folder in zip(texts.layers, texts.folders, strict=True):
        arrays: Arrays = {}
        if NAMES[layer.kind]:
            files = read_hugging_face_weights(folder, allow_pickle)
            arrays = _arrays(NAMES[layer.kind], files.tensors, folder)
            hashes |= {f"{folder.name}/{path.name}": file_hash(path) for path in files.paths}
        size = _size(layer, arrays, size, folder)
        found.append(arrays)
    return tuple(found), hashes


def _arrays(names: Mapping[str, tuple[str, bool]], tensors: Mapping[str, torch.Tensor], folder: Path) -> dict[str, np.ndarray]:
    if unknown := sorted(tensors.keys() - names.keys()):
        raise CheckpointError(f"{folder} has the tensor {unknown[0]!r:.60}, expected {', '.join(names)}; copy it again")
    arrays = {ours: (tensors[name].float().numpy(), turned) for name, (ours, turned) in names.items() if name in tensors}
    return {ours: np.ascontiguousarray(array.T if turned else array) for ours, (array, turned) in arrays.items()}


def _size(layer: PooledLayer, arrays: Arrays, size: int, folder: Path) -> int:
    """The size of a layer's vectors, which reads vectors of `size`. CheckpointError."""
    if layer.kind == "normalize":
        return size
    shapes = {name: array.shape for name, array in arrays.items()}
    after = shapes["weight"][-1] if shapes.get("weight") else 0
    wanted: dict[str, tuple[int, ...]] = {"weight": (size,), "bias": (size,)} if layer.kind == "norm" else {"weight": (size, after)}
    if layer.kind == "dense":
        wanted |= {"bias": (after,)} if "bias" in shapes else {}
        wanted |= {"residual": (size, after)} if layer.residual and size != after else {}
    if shapes != wanted:
        raise CheckpointError(f"{folder} has weights of the sizes {shapes}, expected {wanted} behind vectors of {size}; copy it again")
    return after
