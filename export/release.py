"""Memory of a model that was read from a folder: what was copied, and after the check the original's own copies of weights, can go."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

PAGEOUT = 21  # MADV_PAGEOUT of Linux 5.4: advice only, the pages are read from their file again if somebody asks
MAPS = Path("/proc/self/maps")


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
    return tensor.untyped_storage().data_ptr()
