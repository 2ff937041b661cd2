"""Writing a bundle whole or not at all: made in a folder beside the output, then renamed into place.

with bundle_folder(out, force) as staging:
    (staging.path / "fp32" / "decoder.onnx").write_bytes(...)
    staging.manifest = {...}                       # `files` and each variant's `bytes` are filled in
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onnxport.errors import BundleError, OutputError
from onnxport.runtime.bundle.manifest import MANIFEST
from onnxport.runtime.bundle.reader import FORMAT, Bundle, sha256

_NAMES = ("EEXIST", "ENOSPC", "EDQUOT", "EACCES", "EPERM", "EROFS", "ENOTDIR", "ENAMETOOLONG", "EFBIG", "EIO")
UNWRITABLE = {getattr(errno, n) for n in _NAMES if hasattr(errno, n)}


class Staging:
    """A bundle in the making: put files under `path`, set `manifest`; leaving the context checks and publishes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: dict[str, Any] | None = None

    def preview(self) -> Bundle:
        """The bundle as it stands, unhashed: to load and check variants before it is finished."""
        return Bundle.parse(self._complete(hashed=False), self.path)

    def _complete(self, hashed: bool) -> dict[str, Any]:
        if self.manifest is None:
            raise ValueError("the manifest was not set before the bundle was finished")
        names = sorted(p.relative_to(self.path).as_posix() for p in self.path.rglob("*") if p.is_file())
        sizes = {n: (self.path / n).stat().st_size for n in names if n != MANIFEST}
        manifest = {"format": FORMAT, **self.manifest}
        manifest["files"] = {n: {"sha256": sha256(self.path / n) if hashed else "", "bytes": size} for n, size in sizes.items()}
        shared = sum(size for n, size in sizes.items() if n in _shared(manifest))
        manifest["variants"] = {
            name: {**v, "bytes": shared + sum(sizes.get(f, 0) for f in v["files"])} for name, v in manifest["variants"].items()
        }
        return manifest

    def _finish(self) -> None:
        manifest = self._complete(hashed=True)
        Bundle.parse(manifest, self.path)  # what is written can be read
        for name in manifest["files"]:
            _sync(self.path / name)
        ordered = json.loads(json.dumps(manifest, sort_keys=True, allow_nan=False))
        ordered["variants"] = {name: ordered["variants"][name] for name in manifest["variants"]}  # in the order they were asked for
        text = json.dumps(ordered, indent=1, ensure_ascii=False) + "\n"
        target = self.path / MANIFEST
        with target.open("w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        for folder in {self.path, *(p.parent for p in self.path.rglob("*"))}:
            _sync(folder)


def _shared(manifest: dict[str, Any]) -> set[str]:
    """Files every variant needs to run: tokenizers and search graphs; goldens are for checks only."""
    return {*manifest.get("tokenizers", {}).values(), *manifest.get("search", {}).values()}


@contextlib.contextmanager
def bundle_folder(out: str | Path, force: bool = False) -> Iterator[Staging]:
    """A Staging that becomes `out` when the block ends well; nothing is left behind when it does not.

    An existing `out` is refused unless `force`; then it is replaced, and stays as it was when anything fails. A folder that is no bundle,
    or holds files its manifest does not list, is never replaced. OutputError.
    """
    out = Path(out).absolute()
    if os.path.lexists(out):
        if not force:
            raise OutputError(f"{out}: exists, expected a new folder; choose another name or pass --force")
        _check_replaceable(out)
    with _writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent))
    try:
        with _writing(out):
            staging = Staging(temporary)
            yield staging
            staging._finish()
            temporary.chmod(0o777 & ~_umask())
            _publish(temporary, out, force)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def extended_bundle(path: str | Path) -> Iterator[Staging]:
    """A Staging that starts as the bundle at `path` (files copied) with its manifest, and replaces it at the end.

    BundleError when there is no whole bundle; OutputError when the folder holds files the manifest does not list: they would be lost.
    """
    bundle = Bundle.open(path)
    with bundle_folder(path, force=True) as staging:
        for name in bundle.files:
            target = staging.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with _writing(staging.path):
                shutil.copyfile(bundle.file(name), target)  # no hard link: onnx refuses external data that has two names
        staging.manifest = bundle.manifest.as_dict()
        yield staging


def _check_replaceable(out: Path) -> None:
    """OutputError unless `out` is an empty folder or a bundle and nothing else: replacing must not delete what onnxport did not write."""
    stray: list[str] = []
    if out.is_dir() and not out.is_symlink():
        if not any(out.iterdir()):
            return
        with contextlib.suppress(BundleError):  # files may be missing or damaged, but the manifest must tell which are the bundle's
            stray = Bundle.read(out).unlisted()
            if not stray:
                return
    if stray:
        raise OutputError(f"{out}: holds {stray[0]}, which its {MANIFEST} does not list, so the bundle is not replaced; move it elsewhere")
    raise OutputError(f"{out}: exists and is no bundle, so --force does not replace it; choose another name or remove it yourself")


def _publish(temporary: Path, out: Path, force: bool) -> None:
    if not os.path.lexists(out):
        os.rename(temporary, out)
    elif not force:
        raise OutputError(f"{out}: appeared while the bundle was made; choose another name or pass --force")
    else:
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.parent))
        os.rename(out, old / out.name)  # on one file system a rename either happens or does not
        try:
            os.rename(temporary, out)
        except BaseException:
            os.rename(old / out.name, out)
            old.rmdir()
            raise
        shutil.rmtree(old, ignore_errors=True)
    _sync(out.parent)


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except (OutputError, BundleError):
        raise
    except OSError as e:
        if e.errno in UNWRITABLE:
            raise OutputError(f"{out}: cannot be written ({e.strerror}); free space or choose another place") from e
        raise


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
