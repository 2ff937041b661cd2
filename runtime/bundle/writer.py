"""Writing a bundle whole or not at all: made in a folder beside the output, then put in its place.

with bundle_folder(out, force) as staging:
    (staging.path / "fp32" / "decoder.onnx").write_bytes(...)
    staging.manifest = {...}                       # `files` and each variant's `bytes` are filled in
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onnxport.errors import BundleError, OutputError
from onnxport.progress import Progress, silent
from onnxport.runtime.bundle.manifest import MANIFEST, required
from onnxport.runtime.bundle.publish import kept_folder, publish, publish_kept, recover_output, sync, workspace
from onnxport.runtime.bundle.reader import CONFIRMATIONS, FORMAT, SIGNATURE, Bundle, sha256, unreplaced


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
        sizes = {n: (self.path / n).stat().st_size for n in names if n not in (MANIFEST, CONFIRMATIONS, SIGNATURE)}
        needed = sorted({*required(self.manifest), *self.manifest.get("requires", ())})
        manifest: dict[str, Any] = self.manifest | ({"format": FORMAT, "requires": needed} if needed else {"format": 1})
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
            sync(self.path / name)
        ordered = json.loads(json.dumps(manifest, sort_keys=True, allow_nan=False))
        ordered["variants"] = {name: ordered["variants"][name] for name in manifest["variants"]}  # in the order they were asked for
        text = json.dumps(ordered, indent=1, ensure_ascii=False) + "\n"
        target = self.path / MANIFEST
        with target.open("w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        for folder in {self.path, *(p.parent for p in self.path.rglob("*"))}:
            sync(folder)


def _shared(manifest: dict[str, Any]) -> set[str]:
    """Files every variant needs to run: tokenizers, search graphs, layers behind the pooling; goldens are for checks only."""
    layers = [name for name in [manifest.get("layers")] if name]
    return {*manifest.get("tokenizers", {}).values(), *manifest.get("search", {}).values(), *layers}


@contextlib.contextmanager
def bundle_folder(out: str | Path, force: bool = False, progress: Progress = silent, keep: bool = False) -> Iterator[Staging]:
    """A Staging that becomes `out` when the block ends well; nothing is left behind when it does not.

    keep: the Staging is in `.OUT.work`, which stays when the block does not end well, and may hold what an earlier one left.

    An existing `out` is refused unless `force`; then it is replaced in one step, and stays as it was when anything fails. What is no
    bundle, or holds files its manifest does not list, is never replaced. One command at a time writes `out`; another waits, and says so by
    `progress`. OutputError.
    """
    out = Path(out).absolute()
    recover_output(out)
    check_place(out, force)
    with workspace(out, progress) as folder:
        check_place(out, force)  # what another command did while this one waited
        staging = Staging((kept_folder(out) if keep else folder) / out.name)
        staging.path.mkdir(exist_ok=keep)
        yield staging
        staging._finish()
        if (out / CONFIRMATIONS).is_file():  # of variants that come out the same
            shutil.copyfile(out / CONFIRMATIONS, staging.path / CONFIRMATIONS)
        check_place(out, force)
        if keep:
            publish_kept(staging.path, out, folder)
        else:
            publish(staging.path, out)


@contextlib.contextmanager
def extended_bundle(path: str | Path, progress: Progress = silent) -> Iterator[Staging]:
    """A Staging that starts as the bundle at `path` (files copied) with its manifest, and replaces it at the end.

    BundleError when there is no whole bundle or a file of it has changed; OutputError when the folder holds files that the manifest does
    not list: they would be lost.
    """
    Bundle.open(path)
    with bundle_folder(path, force=True, progress=progress) as staging:
        bundle = Bundle.open(path)  # another command may have extended it while this one waited
        for name in bundle.files:
            target = staging.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            bundle.copy(name, target)  # no hard link: onnx refuses external data that has two names
        staging.manifest = bundle.manifest.as_dict()
        yield staging


def check_place(out: Path, force: bool) -> None:
    """OutputError where something is at `out` and may not be replaced."""
    if not os.path.lexists(out):
        return
    if not force:
        raise OutputError(f"{out}: exists, expected a new folder; choose another name or pass --force")
    _check_replaceable(out)


def _check_replaceable(out: Path) -> None:
    """OutputError unless `out` is an empty folder or a bundle and nothing else: replacing must not delete what onnxport did not write."""
    stray: list[str] = []
    if out.is_dir() and not out.is_symlink():
        if not any(out.iterdir()):
            return
        with contextlib.suppress(BundleError):  # files may be missing or damaged, but the manifest must tell which are the bundle's
            stray = unreplaced([out], lambda: Bundle.read(out).unlisted())
            if not stray:
                return
    if stray:
        raise OutputError(f"{out}: holds {stray[0]}, which its {MANIFEST} does not list, so the bundle is not replaced; move it elsewhere")
    raise OutputError(f"{out}: exists and is no bundle, so --force does not replace it; choose another name or remove it yourself")
