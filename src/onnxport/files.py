"""Reading of regular files only, and no more of them than is expected: a FIFO or a device in their place would hang its reader."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedIOBase, BufferedReader
from pathlib import Path

MOST = 1 << 28  # bytes of a file of settings, such as a config, a plan or a report
_PIECE = 1 << 20
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def special(mode: int) -> str | None:
    """What a file of this `st_mode` is, in words, where it is neither a regular file nor a folder; None where it is."""
    return None if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else _KINDS.get(stat.S_IFMT(mode), "a special file")


def open_regular(path: str | Path) -> BufferedReader:
    """A regular file, opened to be read; links are followed. OSError, also for what is none, which is then not waited for."""
    _check(path, os.stat(path).st_mode)  # to open a device may do something already
    handle = os.open(path, _FLAGS)
    try:
        _check(path, os.fstat(handle).st_mode)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_regular(path: str | Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes. OSError."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"it has {size} bytes, expected at most {most}", str(path))
        content = file.read(size + 1)  # not `most`: so much memory would be taken at once
        if len(content) > size:  # it grows, or is one of those in /proc
            content += read_most(file, most + 1 - len(content))
        if len(content) > most:
            raise OSError(errno.EFBIG, f"it has more bytes than {size}, expected at most {most}", str(path))
        return content


def read_most(file: BufferedIOBase, most: int) -> bytearray:
    """What a file still has, but at most `most` bytes; memory is taken as they come."""
    content = bytearray()
    while len(content) < most and (piece := file.read(min(_PIECE, most - len(content)))):
        content += piece
    return content


def first_special(folder: str | Path) -> tuple[Path, str] | None:
    """A file in `folder` that is neither regular nor a folder, and what it is; None without one. Hidden files do not count.

    OSError where the folder cannot be read.
    """
    for name in sorted(os.listdir(folder)):
        path = Path(folder, name)
        if not name.startswith(".") and (kind := _kind(path)) is not None:
            return path, kind
    return None


def _kind(path: Path) -> str | None:
    try:
        return special(os.stat(path).st_mode)
    except OSError:  # a link that leads nowhere, or what may not be looked at
        return None


def _check(path: str | Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "a special file")
        raise OSError(errno.EINVAL, f"it is {kind}, expected a regular file", str(path))
