"""Reads the weight files of a folder: safetensors, or PyTorch pickles where the user allows them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onnxport.errors import CheckpointError

PICKLES = ("*.pt", "*.pth", "*.bin")


@dataclass(frozen=True)
class WeightFiles:
    """Tensors by name, and the files they were read from."""

    tensors: dict[str, Tensor]
    paths: list[Path]


def read_weights(folder: Path, allow_pickle: bool) -> WeightFiles:
    """Every tensor of the folder, on the CPU in its own type. Errors: CheckpointError."""
    paths = sorted(folder.glob("*.safetensors"))
    if paths:
        tensors: dict[str, Tensor] = {}
        for path in paths:
            _join(tensors, _safetensors(path), path)
        return WeightFiles(tensors, paths)
    paths = sorted(path for pattern in PICKLES for path in folder.glob(pattern))
    if not paths:
        raise CheckpointError(f"{folder} has no weights; expected model.safetensors")
    names = ", ".join(path.name for path in paths)
    if not allow_pickle:
        raise CheckpointError(
            f"{folder} has only pickled weights ({names}); save them as model.safetensors, or allow pickles (--allow-pickle)"
        )
    if len(paths) > 1:
        raise CheckpointError(f"{folder} has several pickled weight files ({names}); keep one")
    return WeightFiles(_pickle(paths[0]), paths)


def read_hugging_face_weights(folder: Path, allow_pickle: bool) -> WeightFiles:
    """Every tensor of the files that transformers would read: one file or shards with an index. Errors: CheckpointError."""
    for name, read in (("model.safetensors", _safetensors), ("pytorch_model.bin", _pickle)):
        single, index = folder / name, folder / f"{name}.index.json"
        if not single.is_file() and not index.is_file():
            continue
        if read is _pickle and not allow_pickle:
            raise CheckpointError(
                f"{folder} has only pickled weights ({name}); save them as model.safetensors, or allow pickles (--allow-pickle)"
            )
        return WeightFiles(read(single), [single]) if single.is_file() else _shards(index, read)
    raise CheckpointError(f"{folder} has no weights; expected model.safetensors or model.safetensors.index.json")


def _shards(index: Path, read: Callable[[Path], dict[str, Tensor]]) -> WeightFiles:
    try:
        places = json.loads(index.read_bytes())["weight_map"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index} cannot be read: {_first_line(error)}; expected JSON with a weight_map") from error
    if not isinstance(places, dict) or not all(isinstance(name, str) and Path(name).name == name for name in places.values()):
        raise CheckpointError(f"{index} has a weight_map that does not lead from tensors to files of the folder; save the model again")
    paths = [index.parent / name for name in sorted(set(places.values()))]
    if absent := [path.name for path in paths if not path.is_file()]:
        raise CheckpointError(f"{index} names files that are not there: {', '.join(absent)}; copy them into the folder")
    tensors: dict[str, Tensor] = {}
    for path in paths:
        found = read(path)
        if lost := sorted(name for name, file in places.items() if file == path.name and name not in found):
            raise CheckpointError(f"{path} lacks tensors that {index.name} places there: {', '.join(lost)}; copy it again")
        _join(tensors, found, path)
    return WeightFiles(tensors, [index, *paths])


def _join(tensors: dict[str, Tensor], more: dict[str, Tensor], path: Path) -> None:
    if twice := sorted(tensors.keys() & more.keys()):
        raise CheckpointError(f"{path} repeats tensors of another file: {', '.join(twice)}")
    tensors.update(more)


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # a damaged header can make any kind
        raise CheckpointError(f"{path} is not a whole safetensors file: {_first_line(error)}; copy it again") from error


def _pickle(path: Path) -> dict[str, Tensor]:
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can make any kind
        raise CheckpointError(f"{path} cannot be read as weights only: {_first_line(error)}; save a state_dict") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, expected a state_dict of tensors by name")
    return dict(state)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
