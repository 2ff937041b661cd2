"""How a process that makes bundles uses memory: its weights come and go, up to a gigabyte at a time. A program that only runs one is left
as it is."""

import contextlib
import ctypes
import os

ARENAS = -8  # M_ARENA_MAX of glibc's mallopt


def use_less() -> None:
    """To be called before PyTorch is imported.

    PyTorch takes pages of 2 MB for wide tensors, as numpy does: filling them takes a third of the time. glibc keeps one heap for all
    threads: of several, each would keep what its thread let go.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if "MALLOC_ARENA_MAX" not in os.environ and "arena_max" not in os.environ.get("GLIBC_TUNABLES", ""):
        with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
            ctypes.CDLL(None).mallopt(ARENAS, 1)
