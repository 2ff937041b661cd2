"""Arrays that took long to find, kept in files as they are found: an export that goes on where it stopped finds them again.

A file begins with the sha256 of what follows: arrays as NumPy writes them, by name, each on a cache line of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from onnxport.runtime.bundle.publish import sync

DIGEST, LINE = 64, 64


class Finished:
    """A folder of arrays by key, which is made when there are some. What is not whole in it counts as absent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def inside(self, name: str) -> Finished:
        """Those of a folder inside, whose keys are its own."""
        return Finished(self.folder / name)

    def get(self, key: str) -> dict[str, np.ndarray] | None:
        """The arrays by name, mapped from their file; None where there are none."""
        path = self._path(key)
        try:
            with path.open("rb") as file:
                digest = file.read(DIGEST).decode("ascii", "replace")
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    return None
                file.seek(DIGEST)
                return dict(_arrays(file))
        except OSError:
            return None

    def keep(self, key: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Writes the arrays; returns them as they are mapped from their file. OSError: there is no room."""
        path = self._path(key)
        self.folder.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".part")
        try:
            with beside.open("w+b") as file:
                file.write(bytes(DIGEST))
                _write(file, arrays)
                file.seek(DIGEST)
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                file.seek(0)
                file.write(digest.encode())
            sync(beside)
            os.replace(beside, path)
        except OSError:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise
        with path.open("rb") as file:
            file.seek(DIGEST)
            return dict(_arrays(file))

    def _path(self, key: str) -> Path:
        return self.folder / hashlib.sha256(key.encode()).hexdigest()


def _write(file: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    names = json.dumps(sorted(arrays)).encode()
    file.write(names + b"\n")
    for name in sorted(arrays):
        file.write(bytes(-file.tell() % LINE))
        np.lib.format.write_array(file, np.ascontiguousarray(arrays[name]), version=(1, 0), allow_pickle=False)


def _arrays(file: BinaryIO) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays behind the digest."""
    for name in json.loads(file.readline()):
        file.seek(-file.tell() % LINE, os.SEEK_CUR)
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        begin = file.tell()
        array: np.ndarray = np.memmap(file, dtype, "r", begin, shape) if 0 not in shape else np.zeros(shape, dtype)
        file.seek(begin + array.nbytes)
        yield name, array
