"""Weights that ONNX Runtime has mapped from files become memory of this process's own, so that nothing that befalls the file can end it.

A mapped file that is cut short (as when another is copied over it) takes the process with it at the next read (SIGBUS). ONNX Runtime copies
most weights into the layout of its kernels and gives their mappings back; what is left after a session was made, mostly tables of
embeddings, is copied here, each mapping replaced in its place. Reading the files through ONNX Runtime's own interface for that
(`add_external_initializers_from_files_in_memory`) does the same at several times the memory. Linux only; elsewhere files stay mapped.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys
from collections.abc import Iterator
from pathlib import Path

MAPS = Path("/proc/self/maps")
PIECE = 1 << 24  # bytes, whole pages
RIGHTS = (b"r--p", b"rw-p")  # private: what is written there never reaches the file
Ranges = list[tuple[int, int]]  # addresses, and bytes from there
_FAILED = ctypes.c_void_p(-1).value
_MAYMOVE, _FIXED = 1, 2  # of mremap


def mapped(files: set[str]) -> Ranges | None:
    """Where these files, by their real paths, are mapped privately; None where that cannot be told."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return list(_mapped(files))
    except OSError:  # no /proc
        return None


def own(files: set[str], before: Ranges | None) -> None:
    """Copy what is mapped from files, but for what was mapped `before`: its owner may give it back at any time. See `mapped`.

    As much as can be: what the system or its memory does not allow stays mapped. No other thread may map these files meanwhile.
    """
    now = None if before is None else mapped(files)
    if before is None or now is None:
        return
    with contextlib.suppress(OSError, MemoryError):
        for start, size in now:
            if any(start < other + length and other < start + size for other, length in before):
                continue
            for done in range(0, size, PIECE):  # so that little more than the file is in memory at any time
                _replace(start + done, min(PIECE, size - done))


def _mapped(files: set[str]) -> Iterator[tuple[int, int]]:
    with MAPS.open("rb") as lines:
        for line in lines:
            place, rights, _, _, _, *name = line.rstrip(b"\n").split(maxsplit=5)
            if rights in RIGHTS and name and os.fsdecode(name[0].replace(rb"\012", b"\n")) in files:
                start, end = (int(part, 16) for part in place.split(b"-"))
                yield start, end - start


def _replace(start: int, size: int) -> None:
    """The same bytes at the same place, but in memory of our own. OSError, MemoryError."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
    libc.mremap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    copy = libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if copy == _FAILED:
        raise MemoryError
    ctypes.memmove(copy, start, size)
    if libc.mremap(copy, size, size, _MAYMOVE | _FIXED, start) == _FAILED:  # in one step: a reader sees either
        number = ctypes.get_errno()
        libc.munmap(copy, size)
        raise OSError(number, "weights could not be copied into memory")
