"""Weights that ONNX Runtime has mapped from files become memory of this process's own, so that nothing that befalls the file can end it.

A mapped file that is cut short (as when another is copied over it) takes the process with it at the next read (SIGBUS). ONNX Runtime copies
most weights into the layout of its kernels and gives their mappings back; what is left after a session was made, mostly tables of
embeddings, is copied here, each mapping replaced in its place. Reading the files through ONNX Runtime's own interface for that
(`add_external_initializers_from_files_in_memory`) does the same at several times the memory. Linux only; elsewhere files stay mapped.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Iterator
from pathlib import Path

MAPS = Path("/proc/self/maps")
PIECE = 1 << 24  # bytes, whole pages
RIGHTS = (b"r--p", b"rw-p")  # private: what is written there never reaches the file
_FAILED = ctypes.c_void_p(-1).value
_MAYMOVE, _FIXED = 1, 2  # of mremap


def own(folder: Path) -> None:
    """Copy what is mapped privately from the files in a folder. No other thread may map or unmap them meanwhile."""
    if not sys.platform.startswith("linux"):
        return
    files = {os.path.realpath(file) for file in folder.iterdir()}
    for start, size in list(_mapped(files)):
        for done in range(0, size, PIECE):  # so that little more than the file is in memory at any time
            _replace(start + done, min(PIECE, size - done))


def _mapped(files: set[str]) -> Iterator[tuple[int, int]]:
    """(address, bytes) of the mappings of these files."""
    with MAPS.open("rb") as lines:
        for line in lines:
            place, rights, _, _, _, *name = line.rstrip(b"\n").split(maxsplit=5)
            if rights in RIGHTS and name and os.fsdecode(name[0].replace(rb"\012", b"\n")) in files:
                start, end = (int(part, 16) for part in place.split(b"-"))
                yield start, end - start


def _replace(start: int, size: int) -> None:
    """The same bytes at the same place, but in memory of our own. OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
    libc.mremap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)
    copy = libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if copy == _FAILED:
        raise MemoryError
    ctypes.memmove(copy, start, size)
    if libc.mremap(copy, size, size, _MAYMOVE | _FIXED, start) == _FAILED:  # in one step: a reader sees either
        raise OSError(ctypes.get_errno(), "weights could not be copied into memory")
