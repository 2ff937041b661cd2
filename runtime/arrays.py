"""Arithmetic of arrays that several stages share: padding, softmax, errors, and .npz files."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onnxport.errors import OnnxportError, one_line


def padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Right-padded ids int64 [rows, longest] and mask int32, 1 on ids."""
    longest = max(map(len, rows))
    ids, mask = np.full((len(rows), longest), pad, np.int64), np.zeros((len(rows), longest), np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return ids, mask


def unpadded(ids: np.ndarray, mask: np.ndarray) -> list[list[int]]:
    """The ids of each row where its mask is not 0; both [rows, longest]. ValueError, IndexError where they do not fit."""
    return [row[real > 0].tolist() for row, real in zip(ids, mask, strict=True)]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Shares of a vector of logits, which add up to 1, in its dtype."""
    powers = np.exp(logits - logits.max())
    shares: np.ndarray = powers / powers.sum()
    return shares


def rms(values: np.ndarray) -> float:
    """The root mean square; 0 of nothing."""
    return float(np.sqrt(np.mean(np.square(values)))) if values.size else 0.0


def relative_error(golden: np.ndarray, found: np.ndarray) -> float:
    """rms of the difference over that of `golden` about its mean over the last axis; inf where the difference is not finite.

    Both float64, of one shape. Where `golden` does not vary its own rms takes the place, and 1 where that is 0 too.
    """
    difference = golden - found
    if not np.isfinite(difference).all():
        return float("inf")
    return rms(difference) / (rms(golden - golden.mean(-1, keepdims=True)) or rms(golden) or 1.0)


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
