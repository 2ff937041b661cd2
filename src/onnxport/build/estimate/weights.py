"""Tensors of a folder by the headers of its weights: names, shapes and types. No value is read."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path

from onnxport.errors import CheckpointError, one_line
from onnxport.export.config_checks import check_shard, weight_map
from onnxport.extras import require
from onnxport.quantize.schemes.apply import FEWEST_INPUTS

FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"


@dataclass(frozen=True)
class Tensor:
    """A tensor of floats. width: bytes of a number, as it is stored."""

    name: str
    shape: tuple[int, ...]
    width: int

    @property
    def numbers(self) -> int:
        """How many it has."""
        return math.prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        """Whether schemes are for its form: a matrix, or those of all experts of a layer."""
        return len(self.shape) in (2, 3) and min(self.shape[1:]) >= FEWEST_INPUTS

    @property
    def is_experts(self) -> bool:
        """Whether it is a matrix for each expert of a layer; these are rounded to nearest, and their codes lie in memory."""
        return len(self.shape) == 3

    @property
    def sizes(self) -> tuple[int, int]:
        """Rows and inputs of a matrix; those of experts stand below each other."""
        return self.numbers // self.shape[-1], self.shape[-1]


@dataclass(frozen=True)
class Headers:
    """What the headers of a folder's weights tell. mapped: values are read from the files whenever they are asked for."""

    tensors: tuple[Tensor, ...]
    mapped: bool = True


def has_weights(folder: Path) -> bool:
    """Whether a folder has weights where transformers looks for them."""
    return any((folder / f"{name}{end}").is_file() for name in (SAFETENSORS, PICKLE) for end in ("", ".index.json"))


def read(folder: Path, allow_pickle: bool = False) -> Headers:
    """The tensors of the files that transformers would read: one file, or shards with an index.

    CheckpointError: there are none, or they are damaged; weights are pickled, and that is not allowed.
    """
    for name, tensors_of in ((SAFETENSORS, _of_safetensors), (PICKLE, _of_pickle)):
        single, index = folder / name, folder / f"{name}.index.json"
        if not single.is_file() and not index.is_file():
            continue
        if name == PICKLE and not allow_pickle:
            raise CheckpointError(
                f"{folder} has only pickled weights ({name}); save them as {SAFETENSORS}, or allow pickles (--allow-pickle)"
            )
        found = tensors_of(single)[1] if single.is_file() else [*_of_shards(index, tensors_of)]
        return Headers(tuple(found), name != PICKLE or all(map(zipfile.is_zipfile, folder.glob("pytorch_model*.bin"))))
    raise CheckpointError(f"{folder} has no weights; expected {SAFETENSORS} or {SAFETENSORS}.index.json")


Names = set[str]
Reader = Callable[[Path], tuple[Names, list[Tensor]]]


def _of_shards(index: Path, tensors_of: Reader) -> Iterator[Tensor]:
    places = weight_map(index)
    files = sorted(set(places.values()))
    if absent := [file for file in files if not (index.parent / file).is_file()]:
        raise CheckpointError(f"{index.parent} lacks {', '.join(absent)}; copy them into the folder")
    for file in files:
        names, found = tensors_of(index.parent / file)
        check_shard(index.parent / file, names, index, places)
        yield from found


def _of_safetensors(path: Path) -> tuple[Names, list[Tensor]]:
    """Names of all tensors, and those of floats."""
    require("safetensors", "export")
    from safetensors import safe_open

    try:
        with safe_open(path, "numpy") as opened:
            parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
            kinds = {name: part.get_dtype() for name, part in parts.items()}
            found = [Tensor(n, tuple(p.get_shape()), FLOATS[kinds[n]]) for n, p in parts.items() if kinds[n] in FLOATS]
    except Exception as error:  # a damaged header can make any kind
        raise CheckpointError(f"{path} is not a whole safetensors file: {one_line(error)}; copy it again") from error
    return set(parts), found


def _of_pickle(path: Path) -> tuple[Names, list[Tensor]]:
    """Names of all tensors, and those of floats; of tensors that are one, as tied tables are, the first."""
    require("torch", "export")
    from onnxport.export.weights import read_pickle

    state = read_pickle(path)
    names, found, known = set(state), list[Tensor](), set[Hashable]()
    for name, tensor in state.items():
        place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape))
        if tensor.is_floating_point() and place not in known:
            known.add(place)
            found.append(Tensor(name, tuple(tensor.shape), tensor.element_size()))
    return names, found
