"""Outputs that are whole at any moment, whatever is killed: made in a hidden folder beside their place, then exchanged with what is there.

Who writes PLACE holds a lock on `.PLACE.lock` and works in `.PLACE.*.part`, both beside it, and removes both in the end. What a killed
writer left is put right by the next one, and by a reader that finds nothing at PLACE: under the lock, such a folder belongs to nobody.
`.PLACE.work` is for a writer that is told to go on with what an earlier one began: nobody else touches it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from onnxport.errors import BundleError, OutputError
from onnxport.files import special
from onnxport.progress import Progress, silent

_NAMES = (
    "EEXIST",
    "ENOSPC",
    "EDQUOT",
    "EACCES",
    "EPERM",
    "EROFS",
    "ENOTDIR",
    "ENAMETOOLONG",
    "EFBIG",
    "EIO",
    "EBUSY",
    "EXDEV",
    "ENOLCK",
    "ELOOP",
)
UNWRITABLE = {getattr(errno, n) for n in _NAMES if hasattr(errno, n)}
_NO_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY}  # what file systems say that cannot do it
_POSIX = os.name == "posix"  # elsewhere nothing is locked, and what a killed writer left stays
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_OLD = "old"  # of a workspace: what was at the place, where the two cannot be exchanged in one step
_READER_WAITS = 2.0  # seconds, for a writer between its two renames


@contextlib.contextmanager
def workspace(place: Path, progress: Progress = silent) -> Iterator[Path]:
    """A new folder beside `place`, an absolute path, for what is to be published there; nobody else writes `place` until the block ends.

    A second writer waits for the first; progress: told so. Nothing of the folder is left in the end, whatever happens. OutputError.
    """
    with writing(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        with _locked(place, progress):
            _clean(place)
            folder = place.with_name(f".{place.name}.{os.urandom(4).hex()}.part")
            try:
                folder.mkdir(0o700)
                yield folder
            finally:
                _put_back(folder, place)
                _remove(folder)


def kept_folder(place: Path) -> Path:
    """The folder beside `place` that stays when its writer ends too early, made where there is none; its lock must be held. OutputError."""
    folder = place.with_name(f".{place.name}.work")
    with writing(place):
        with contextlib.suppress(FileExistsError):
            folder.mkdir(0o700)
        found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or (_POSIX and found.st_uid != os.geteuid()):
        raise OutputError(f"{folder}: expected no such thing, or a folder of yours that --resume left; remove it or choose another --out")
    return folder


def publish_kept(made: Path, place: Path, folder: Path) -> None:
    """`publish` what was made in the kept folder of `place`, which then goes. folder: the workspace. OSError: all is as before."""
    moved = folder / made.name
    os.rename(made, moved)
    try:
        publish(moved, place)
    except BaseException:
        if os.path.lexists(moved) and not os.path.lexists(made):
            os.rename(moved, made)
        raise
    _remove(made.parent)


def publish(made: Path, place: Path) -> None:
    """Put `made`, a file or folder in a workspace, at `place`, in one step where the file system can.

    What was there goes with the workspace; a folder has the mode of the one before it. Elsewhere (some network file systems) there are two
    steps, and a kill between them is put right when `place` is next written or read.
    OSError.
    """
    if not os.path.lexists(place):
        os.rename(made, place)
    else:
        if made.is_dir():
            with contextlib.suppress(OSError):  # some file systems know no modes
                os.chmod(made, stat.S_IMODE(place.stat().st_mode))
        if not _exchange(made, place):
            os.rename(place, made.with_name(_OLD))
            os.rename(made, place)
    with contextlib.suppress(OSError):  # it is there, whether or not the system says that it is on the disk
        sync(place.parent)


def write_file(place: str | Path, content: bytes, force: bool) -> None:
    """Write a regular file, whole or not at all; a link stays one, and a file that is replaced keeps its mode.

    OutputError: it exists, without `force`; it is a device or a FIFO.
    """
    check_file(place, force)
    place = Path(os.path.realpath(place))
    with workspace(place) as folder:
        check_file(place, force)
        with (folder / place.name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        replace(folder / place.name, place)


def replace(made: Path, place: Path) -> None:
    """Put the file `made` at `place`, in one step; it has the mode of the file before it. OSError."""
    with contextlib.suppress(OSError):  # there is none, or the file system knows no modes
        mode = os.lstat(place).st_mode
        if stat.S_ISREG(mode):
            os.chmod(made, stat.S_IMODE(mode))
    os.replace(made, place)


def check_file(place: str | Path, force: bool) -> None:
    """OutputError where a file may not be written: it exists, without `force`, it is no regular file, or its folder cannot be entered."""
    try:
        with writing(Path(place)):
            mode = os.stat(place).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise OutputError(f"{place}: is {special(mode) or 'a folder'}, expected a regular file or none; choose another name")
    if not force:
        raise OutputError(f"{place} exists: choose another --out or give --force")


def recover(place: Path) -> bool:
    """Whether something is at `place`, after what a killed writer left of it was put back. BundleError where that cannot be done."""
    place = place.absolute()
    if not _POSIX or not any(os.path.lexists(folder / _OLD) for folder in _leftovers(place)):
        return os.path.lexists(place)
    until = time.monotonic() + _READER_WAITS
    while not os.path.lexists(place) and time.monotonic() < until:
        try:
            with _locked(place, wait=False):
                _clean(place)
        except BlockingIOError:  # a living writer is about to rename
            time.sleep(0.05)
        except OSError as e:
            raise BundleError(
                f"{place}: a command was killed while it replaced it, and it cannot be put back ({e.strerror}); "
                f"move {_leftovers(place)[0] / _OLD} there"
            ) from e
    return os.path.lexists(place)


def recover_output(place: Path) -> None:
    """`recover` before `place` is written. OutputError where that cannot be done."""
    try:
        recover(place)
    except BundleError as e:
        raise OutputError(str(e)) from e


@contextlib.contextmanager
def writing(place: Path) -> Iterator[None]:
    """OutputError for what a file system says when it cannot be written."""
    try:
        yield
    except (OutputError, BundleError):
        raise
    except OSError as e:
        if e.errno in UNWRITABLE:
            raise OutputError(f"{place}: cannot be written ({e.strerror}); free space or choose another place") from e
        raise


def sync(path: Path) -> None:
    """Have a file or folder on the disk before what comes next, where the system lets one that is opened to be read."""
    if not _POSIX:
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _locked(place: Path, progress: Progress = silent, wait: bool = True) -> Iterator[None]:
    """The lock of `place`. BlockingIOError where another process has it and this one is not to wait."""
    if not _POSIX:
        yield
        return
    import fcntl

    path, held = place.with_name(f".{place.name}.lock"), False
    while not held:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise
                progress(f"wait for process {_owner(handle)}, which writes {place}")
                fcntl.flock(handle, fcntl.LOCK_EX)
            held = _is(handle, path)  # who had it has removed the file: then it locks nothing any more
            if held:
                os.ftruncate(handle, 0)
                os.pwrite(handle, str(os.getpid()).encode(), 0)
                yield
        finally:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is(handle, path):
                    path.unlink()
            os.close(handle)


def _owner(handle: int) -> str:
    return os.pread(handle, 20, 0).decode("ascii", "replace") or "?"


def _is(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths in one step; False where the system or the file system cannot. OSError."""
    if sys.platform != "linux":
        return False
    import ctypes  # readers need none of it

    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    rename.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(other))


def _leftovers(place: Path) -> list[Path]:
    """Workspaces of `place` that are this user's, sorted: in a folder that others may write, theirs are not to be trusted."""
    name = re.compile(rf"\.{re.escape(place.name)}\.[0-9a-f]{{8}}\.part")
    try:
        found = [
            Path(entry.path) for entry in os.scandir(place.parent) if name.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
        ]
    except OSError:
        return []
    return sorted(path for path in found if path.lstat().st_uid == os.geteuid())


def _clean(place: Path) -> None:
    """What killed writers left, once its lock is held."""
    for folder in _leftovers(place) if _POSIX else []:
        _put_back(folder, place)
        _remove(folder)


def _put_back(folder: Path, place: Path) -> None:
    """End a replacement in two steps that stopped between them."""
    if os.path.lexists(folder / _OLD) and not os.path.lexists(place):
        os.rename(folder / _OLD, place)


def _remove(folder: Path) -> None:
    """Remove a folder also where an interrupt comes meanwhile, which is then raised."""
    import shutil  # readers seldom need it

    try:
        shutil.rmtree(folder, ignore_errors=True)
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        raise
