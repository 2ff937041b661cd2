"""The sessions of one variant and what the decoding loop must know of their graphs."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onnxport.errors import OnnxportError, one_line

if TYPE_CHECKING:
    pass


def padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Right-padded ids int64 [rows, longest] and mask int32, 1 on ids."""
    longest = max(map(len, rows))
    ids, mask = np.full((len(rows), longest), pad, np.int64), np.zeros((len(rows), longest), np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return ids, mask


# What NumPy and zipfile raise for files that are damaged, locked, of another kind or larger than memory.
_UNREADABLE = (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError, TypeError, KeyError, RuntimeError, MemoryError)


def read_npz(path: str | Path, error: type[OnnxportError], advice: str) -> dict[str, np.ndarray]:
    """All arrays of an .npz file by name; Python objects are never loaded. `error`, ending in `advice`, when it cannot be read whole."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            found = {name: arrays[name] for name in arrays.files}
            for name, array in found.items():
                if not isinstance(array, np.ndarray):  # NumPy gives other members as bytes
                    raise ValueError(f"{name} is no array")
            return found
    except _UNREADABLE as e:
        raise error(f"{path}: not a readable .npz file of plain arrays ({one_line(e)}); {advice}") from None
