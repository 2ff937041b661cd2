"""Reading .npz files that may be anything."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from onnxport.errors import OnnxportError
from onnxport.runtime.session import first_line

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
        raise error(f"{path}: not a readable .npz file of plain arrays ({first_line(e)}); {advice}") from None
