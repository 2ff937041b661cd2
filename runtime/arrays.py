"""Arithmetic of arrays that several stages share: padding, softmax, errors, and .npz files."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxport.errors import OnnxportError, one_line
from onnxport.files import open_regular


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
_UNREADABLE = (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError, TypeError, KeyError, RuntimeError, MemoryError, OverflowError)
MOST_UNPACKED = 1 << 32  # bytes of the compressed arrays of a file: a small one could fill the memory
_MOST_ARRAYS = 1 << 16


def read_npz(path: str | Path, error: type[OnnxportError], advice: str) -> dict[str, np.ndarray]:
    """All arrays of an .npz file by name; Python objects are never loaded. `error`, ending in `advice`, when it cannot be read whole.

    Memory is asked for only where the file holds what its headers say: an array's own size is that of its member of the archive.
    """
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            unpacked = sum(member.file_size for member in members if member.compress_type != zipfile.ZIP_STORED)
            if len(members) > _MOST_ARRAYS or unpacked > MOST_UNPACKED:
                raise ValueError(f"it holds {len(members)} arrays that take {unpacked} bytes, expected at most {MOST_UNPACKED}")
            return {member.filename.removesuffix(".npy"): _array(archive, member) for member in members}
    except _UNREADABLE as e:
        raise error(f"{path}: not a readable .npz file of plain arrays ({one_line(e)}); {advice}") from None


def npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """An .npz file of arrays of any names: numpy.savez cannot take one that is called `file`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.asanyarray(array), allow_pickle=False)
            archive.writestr(f"{name}.npy", content.getvalue())
    return buffer.getvalue()


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """One member of an archive. ValueError: it is no array, or not of the size that its header says."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"{member.filename} is an array of version {version}")
        shape, fortran, dtype = _HEADERS[version](file)
        if dtype.hasobject:
            raise ValueError(f"{member.filename} holds Python objects")
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or size != member.file_size - file.tell():
            raise ValueError(f"{member.filename} has {member.file_size - file.tell()} bytes of values, its header says {size}")
        return np.ndarray(shape, dtype, bytearray(file.read(size)), order="F" if fortran else "C")


_HEADERS: dict[tuple[int, int], Callable[[Any], Any]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
