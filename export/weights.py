"""Weights of a source: their reading, their checks, their hashes, and giving their memory back."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onnxport.errors import BundleError, CheckpointError, one_line
from onnxport.export.config_checks import check_shard, weight_map
from onnxport.runtime.bundle.reader import sha256

PICKLES = ("*.pt", "*.pth", "*.bin")
WRAPPERS = {"module.": "DataParallel", "_orig_mod.": "torch.compile", "_forward_module.": "Lightning"}  # prefix of names → whose it is
PAGEOUT = 21  # MADV_PAGEOUT of Linux 5.4: advice only, the pages are read from their file again if somebody asks
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MAPS = Path("/proc/self/maps")


@dataclass(frozen=True)
class WeightFiles:
    """Tensors by name, and the files they were read from."""

    tensors: dict[str, Tensor]
    paths: list[Path]


def is_weight_file(path: Path) -> bool:
    """Whether it holds weights in the layouts of PyTorch and safetensors, or is an index of such files."""
    return path.name.endswith((".safetensors", ".index.json", *(pattern.lstrip("*") for pattern in PICKLES)))


def read_weights(folder: Path, allow_pickle: bool) -> WeightFiles:
    """Every tensor of the folder, on the CPU in its own type. Errors: CheckpointError."""
    paths = sorted(folder.glob("*.safetensors"))
    if paths:
        tensors: dict[str, Tensor] = {}
        for path in paths:
            _join(tensors, _safetensors(path), path)
        return _unwrapped(WeightFiles(tensors, paths))
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
    return _unwrapped(WeightFiles(read_pickle(paths[0]), paths))


def read_hugging_face_weights(folder: Path, allow_pickle: bool) -> WeightFiles:
    """Every tensor of the files that transformers would read: one file or shards with an index. Errors: CheckpointError."""
    for name, read in (("model.safetensors", _safetensors), ("pytorch_model.bin", read_pickle)):
        single, index = folder / name, folder / f"{name}.index.json"
        if not single.is_file() and not index.is_file():
            continue
        if read is read_pickle and not allow_pickle:
            raise CheckpointError(
                f"{folder} has only pickled weights ({name}); save them as model.safetensors, or allow pickles (--allow-pickle)"
            )
        return _unwrapped(WeightFiles(read(single), [single]) if single.is_file() else _shards(index, read))
    raise CheckpointError(f"{folder} has no weights; expected model.safetensors or model.safetensors.index.json")


def read_adapter_weights(folder: Path, allow_pickle: bool) -> WeightFiles:
    """Every tensor of an adapter as PEFT saves it. Errors: CheckpointError."""
    path, pickled = folder / "adapter_model.safetensors", folder / "adapter_model.bin"
    if path.is_file():
        return WeightFiles(_safetensors(path), [path])
    if not pickled.is_file():
        raise CheckpointError(f"{folder} has no adapter_model.safetensors; give the folder of an adapter, as PEFT saves it")
    if not allow_pickle:
        raise CheckpointError(
            f"{folder} has only pickled weights ({pickled.name}); save them as {path.name}, or allow pickles (--allow-pickle)"
        )
    return WeightFiles(read_pickle(pickled), [pickled])


def _unwrapped(files: WeightFiles) -> WeightFiles:
    """The files; CheckpointError where every name begins with what a wrapper around the model puts there."""
    for prefix, wrapper in WRAPPERS.items():
        if files.tensors and all(name.startswith(prefix) for name in files.tensors):
            raise CheckpointError(
                f"{files.paths[0]}: every tensor's name begins with '{prefix}', as {wrapper} saves a model; "
                f"save the state_dict of its .{prefix.rstrip('.')}, the model inside"
            )
    return files


def _shards(index: Path, read: Callable[[Path], dict[str, Tensor]]) -> WeightFiles:
    """Tensors of the files that an index names; CheckpointError when it and they do not agree."""
    files = weight_map(index)
    paths = [index.parent / name for name in sorted(set(files.values()))]
    if absent := [path.name for path in paths if not path.is_file()]:
        raise CheckpointError(f"{index} names files that are not there: {', '.join(absent)}; copy them into the folder")
    tensors: dict[str, Tensor] = {}
    for path in paths:
        found = read(path)
        check_shard(path, found, index, files)
        _join(tensors, found, path)
    return WeightFiles(tensors, [index, *paths])


def _join(tensors: dict[str, Tensor], more: dict[str, Tensor], path: Path) -> None:
    if twice := sorted(tensors.keys() & more.keys()):
        raise CheckpointError(f"{path} repeats tensors of another file: {', '.join(twice)}")
    tensors.update(more)


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
        return tensors
    except Exception as error:  # a damaged header can make any kind
        raise CheckpointError(f"{path} is not a whole safetensors file: {one_line(error)}; copy it again") from error


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Tensors of a pickle by name, mapped from the file where it is a zip archive. CheckpointError."""
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged pickle can make any kind
        raise CheckpointError(f"{path} cannot be read as weights only: {one_line(error)}; save a state_dict") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, expected a state_dict of tensors by name")
    return dict(state)


def weight_problems(tensors: dict[str, Tensor], expected: dict[str, list[int]], optional: dict[str, list[int]]) -> list[str]:
    """Every disagreement between tensors found and shapes expected."""
    known = expected | optional
    problems = []
    if missing := [name for name in expected if name not in tensors]:
        problems.append(f"missing tensors: {', '.join(missing)}")
    if extra := sorted(name for name in tensors if name not in known):
        problems.append(f"unexpected tensors: {', '.join(extra)}")
    for name, tensor in tensors.items():
        if name not in known:
            continue
        if list(tensor.shape) != known[name]:
            problems.append(f"{name} has shape {list(tensor.shape)}, expected {known[name]}")
        if unusable := without_values(tensor):
            problems.append(f"{name} {unusable[0]}")
            continue
        if not tensor.is_floating_point():
            problems.append(f"{name} is {str(tensor.dtype).removeprefix('torch.')}, expected a floating type")
        elif not is_finite(tensor):
            problems.append(f"{name} holds NaN or infinity")
    return problems


def is_finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite. The least and the greatest tell it without an array of answers, in a tenth of the time."""
    ends = torch.aminmax(tensor) if tensor.numel() and tensor.dtype in FLOATS else [tensor]
    return all(bool(torch.isfinite(end).all()) for end in ends)


def held_types(tensors: Mapping[str, Tensor]) -> dict[str, torch.dtype]:
    """The types of tensors that a model holds as its files do, by name: those of 16 bits, and float32."""
    return {name: tensor.dtype for name, tensor in tensors.items() if tensor.dtype in (torch.bfloat16, torch.float16, torch.float32)}


def without_values(part: nn.Module | Tensor) -> list[str]:
    """What is wrong with tensors that hold no plain array of numbers: sparse, quantized, or on the meta device."""
    named = [*part.named_parameters(), *part.named_buffers()] if isinstance(part, nn.Module) else [("", part)]
    problems = []
    for name, tensor in named:
        where = f"has {name} " if name else "is "
        if tensor.is_meta:
            problems.append(f"{where}on the meta device, without values; load the weights first")
        elif tensor.layout != torch.strided or tensor.is_quantized:
            problems.append(f"{where}as a sparse or quantized tensor; make it dense and float32")
    return problems


def file_hash(path: Path) -> str:
    """SHA-256 of a file in hexadecimal. CheckpointError when it cannot be read."""
    try:
        return sha256(path)
    except BundleError as error:
        raise CheckpointError(str(error)) from error


def module_hashes(modules: dict[str, Any]) -> dict[str, str]:
    """sha256 of each module's class and state, name by name."""
    result = {}
    for name, module in modules.items():
        if module is None:
            continue
        digest = hashlib.sha256(type(module).__qualname__.encode())
        state = {"": module} if isinstance(module, Tensor) else module.state_dict()
        for key, value in sorted(state.items()):
            if isinstance(value, Tensor):
                digest.update(f"{key} {value.dtype} {list(value.shape)}".encode())
                digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        result[name] = digest.hexdigest()
    return result


def release(original: Iterable[nn.Module], kept: Iterable[nn.Module]) -> int:
    """Takes the values out of the original's parameters that no module of `kept` shares; returns how many bytes that frees.

    The original cannot be run afterwards: only for models that nobody but the exporter holds.
    """
    storages = {_storage(tensor) for module in kept for tensor in [*module.parameters(), *module.buffers()]}
    freed: dict[int, int] = {}
    for module in original:
        for tensor in module.parameters():
            if (place := _storage(tensor)) not in storages:
                freed[place] = tensor.untyped_storage().nbytes()
                tensor.data = torch.empty(0, dtype=tensor.dtype)
    freed.pop(0, None)  # what had no values already
    return sum(freed.values())


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage().data_ptr())


def page_out(tensors: Iterable[Tensor]) -> int:
    """Gives back the physical memory of tensors that are mapped from files; their values stay. Returns how many bytes that may free.

    Tensors in memory of their own are left alone: they would be written to swap. Without /proc nothing happens.
    """
    try:
        lines = [line.split() for line in MAPS.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return 0
    files = [tuple(int(end, 16) for end in line[0].split("-")) for line in lines if line[4] != "0"]  # with an inode
    advised = 0
    for tensor in tensors:
        begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages: the rest is its neighbours' too
        length = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - begin
        if length > 0 and tensor.is_contiguous() and any(low <= begin and begin + length <= high for low, high in files):
            ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), PAGEOUT)
            advised += length
    return advised
