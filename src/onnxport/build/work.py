"""The work folder of an export with --resume: what is finished stays there, with hashes, until the bundle is published.

    .OUT.work/journal.json    what is finished, and what it was made of
    .OUT.work/fused/          the fused graphs in float32, which variants are made from; absent where these are made of a mapped checkpoint
    .OUT.work/fitted/         what variants that are not finished have fitted to inputs
    .OUT.work/OUT/            the bundle in the making

Nothing of a folder is believed but what its journal names and whose hashes are right, and what is fitted, which has hashes of its own. All
else is removed and made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from onnxport.build.contents import GOLDEN
from onnxport.errors import BundleError, CheckFailed, NotApplicable
from onnxport.files import MOST, read_regular
from onnxport.progress import Progress
from onnxport.runtime.arrays import read_npz
from onnxport.runtime.bundle.publish import sync
from onnxport.runtime.bundle.reader import sha256
from onnxport.runtime.bundle.writer import Staging

if TYPE_CHECKING:
    import numpy as np

    from onnxport.build.variant import FusedGraphs
    from onnxport.graph.store import WeightsOnDisk
    from onnxport.quantize.schemes.finished import Finished

JOURNAL, FUSED, FITTED = "journal.json", "fused", "fitted"
_LEFT_OUT: dict[str, type[NotApplicable] | type[CheckFailed]] = {"not applicable": NotApplicable, "failed": CheckFailed}
Key = dict[str, Any]  # "source", "options", "versions": ready for JSON


def folder_hashes(source: Any) -> dict[str, str] | None:
    """sha256 of every file of a folder, by its path in it, and its name; None for what is no folder, or cannot be read whole.

    Hidden files and __pycache__ do not count. Code may do otherwise the next time that it runs, whatever its files are.
    """
    if not isinstance(source, str | Path) or not os.path.isdir(source):
        return None
    root = Path(source).resolve()
    try:
        paths = [path for path in sorted(root.rglob("*")) if not any(map(_passed_over, path.relative_to(root).parts))]
        return {path.relative_to(root).as_posix(): sha256(path) for path in paths if not path.is_dir()} | {"": root.name}
    except (BundleError, OSError):
        return None


def _passed_over(name: str) -> bool:
    return name.startswith(".") or name == "__pycache__"


def described(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as they are compared: files and folders by what is in them."""
    return {name: _described(value) for name, value in options.items()}


def _described(value: Any) -> Any:
    if isinstance(value, Path):
        return folder_hashes(value) if value.is_dir() else sha256(value) if value.is_file() else str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)


class WorkFolder:
    """What an export has finished. A context manager: where the export ends with an error before anything is, the folder goes.

    staging: the bundle in the making, inside the folder. key: what its graphs are made of. None of another key is taken over.
    """

    def __init__(self, staging: Staging, key: Key, progress: Progress) -> None:
        self.staging, self.folder, self.progress = staging, staging.path.parent, progress
        self.weights: WeightsOnDisk | None = None
        self._key, self._file = json.loads(json.dumps(key)), self.folder / JOURNAL
        self._graphs: dict[str, Any] = {}
        self._variants: dict[str, Any] = {}
        self._read()

    def __enter__(self) -> WorkFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None and not self._file.exists():
            shutil.rmtree(self.folder, ignore_errors=True)

    def graphs(self) -> FusedGraphs | None:
        """The fused graphs of an earlier export; None where they are to be made. See `goldens` for what is known all the same.

        Its shared files and manifest are in `staging` then.
        """
        known = self._graphs
        if not known or self._key["source"] is None or not self._whole(known["files"]):
            if known:
                why = "the source is no folder" if self._key["source"] is None else "some of them have changed"
                self.progress(f"note: graphs and golden answers are made again: {why}")
            self._graphs = {}
            self._remove_others()
            return None
        import onnx_ir as ir

        from onnxport.build.variant import FusedGraphs
        from onnxport.graph.store import WeightsOnDisk

        self.staging.manifest = json.loads(json.dumps(known["manifest"]))
        if not known["roles"]:
            self.progress(f"note: golden answers are taken over from {self.folder}")
            return None
        self.progress(f"note: graphs and golden answers are taken over from {self.folder}")
        graphs = {role: ir.load(self.folder / FUSED / f"{role}.onnx") for role in known["roles"]}
        self.weights = WeightsOnDisk(graphs, str(self.folder / FUSED), there=True)
        return FusedGraphs(graphs, known["fusions"], known["expected"])

    def goldens(self) -> dict[str, np.ndarray] | None:
        """Golden answers of an earlier export whose graphs are made again of a mapped checkpoint: quickly, and without a copy of it.

        None where they are to be made. Asked for after `graphs`; shared files and manifest are in `staging` then.
        """
        if not self._graphs:
            return None
        return read_npz(self.staging.path / GOLDEN, BundleError, "remove the folder")

    def keep_graphs(self, fused: FusedGraphs) -> None:
        """Writes that the shared files and the manifest of `staging` are finished, and the fused graphs, unless a folder that is mapped
        makes them anew."""
        from onnxport.graph.store import WeightsOnDisk, are_made_anew

        anew = self._key["source"] is not None and are_made_anew(fused.graphs)
        if not anew:
            self.weights = WeightsOnDisk(dict(fused.graphs), str(self.folder / FUSED))
        others = {f"{self.staging.path.name}/{name}" for name in self._variants}
        made = [
            path
            for path in self._files()
            if path != JOURNAL and path.rpartition("/")[0] not in others and not path.startswith(f"{FITTED}/")
        ]
        self._graphs = {
            "files": self._hashes(made),
            "roles": [] if anew else sorted(fused.graphs),
            "fusions": fused.fusions,
            "expected": fused.expected,
            "manifest": self.staging.manifest,
        }
        self._write()

    def fitted(self, name: str, options: Mapping[str, Any]) -> Finished:
        """Where the variant of a name, by its options, keeps what it has fitted to inputs."""
        from onnxport.quantize.schemes.finished import Finished

        return Finished(self.folder / FITTED / f"{name}-{self._made_of(options)}")

    def variant(self, name: str, options: Mapping[str, Any]) -> bool:
        """Whether a variant is taken over, whole, into the manifest of `staging`. options: it was made with.

        NotApplicable: it was found to be none for this model. CheckFailed: it failed its checks.
        """
        known = self._variants.get(name)
        if known is None or known["of"] != self._made_of(options):
            return False
        if known["left_out"] is not None:
            raise _LEFT_OUT[known.get("kind", "not applicable")](known["left_out"])
        if not self._whole(known["files"]):
            self.progress(f"note: {name} is made again: some of its files have changed")
            return False
        self.progress(f"note: {name} is taken over from {self.folder}")
        assert self.staging.manifest is not None
        self.staging.manifest["variants"][name] = json.loads(json.dumps(known["entry"]))
        return True

    def keep_variant(self, name: str, options: Mapping[str, Any], left_out: NotApplicable | CheckFailed | None = None) -> None:
        """Writes that a variant is finished, or why there is none."""
        assert self.staging.manifest is not None
        entry = self.staging.manifest["variants"].get(name)
        files = [] if left_out else [f"{self.staging.path.name}/{file}" for file in entry["files"]]
        self._variants[name] = {
            "of": self._made_of(options),
            "left_out": None if left_out is None else str(left_out),
            "kind": "not applicable" if isinstance(left_out, NotApplicable) else "failed",
            "files": self._hashes(files),
            "entry": entry,
        }
        self._write()
        shutil.rmtree(self.fitted(name, options).folder, ignore_errors=True)

    def _made_of(self, options: Mapping[str, Any]) -> str:
        """What tells one variant of a name from another."""
        text = json.dumps([self._graphs["files"], described(options)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _read(self) -> None:
        """The journal of an earlier export, if there is one of the same key; else nothing of the folder stays."""
        if os.path.lexists(self._file):
            state = self._state()
            other = ["journal"] if state is None else [name for name, value in self._key.items() if state["key"].get(name) != value]
            if state is None or other:
                self.progress(f"note: {self.folder} is of another {' and '.join(other)}: everything is made anew")
                self._file.unlink()
            else:
                self._graphs, self._variants = state["graphs"], state["variants"]
        self._remove_others()

    def _state(self) -> dict[str, Any] | None:
        """What the journal says; None for one that is not as it was written."""
        try:
            digest, _, text = read_regular(self._file, MOST).partition(b"\n")
        except OSError:
            return None
        return json.loads(text) if digest.decode("ascii", "replace") == hashlib.sha256(text).hexdigest() else None

    def _write(self) -> None:
        text = json.dumps({"key": self._key, "graphs": self._graphs, "variants": self._variants}).encode()
        beside = self._file.with_suffix(".part")
        beside.write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
        sync(beside)
        os.replace(beside, self._file)

    def _files(self) -> list[str]:
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_symlink() or not path.is_dir())

    def _hashes(self, names: list[str]) -> dict[str, str]:
        for name in names:
            sync(self.folder / name)
        return {name: sha256(self.folder / name) for name in names}

    def _whole(self, files: Mapping[str, str]) -> bool:
        try:
            return all(sha256(self.folder / name) == digest for name, digest in files.items())
        except BundleError:
            return False

    def _remove_others(self) -> None:
        """Removes what the journal does not name: it was begun and not finished."""
        known = {JOURNAL, *self._graphs.get("files", ()), *(name for one in self._variants.values() for name in one["files"])}
        for name in self._files():
            if name not in known and not (self._graphs and name.startswith(f"{FITTED}/")):
                (self.folder / name).unlink()
        for path in sorted((path for path in self.folder.rglob("*") if path.is_dir()), reverse=True):
            if path != self.staging.path and not any(path.iterdir()):
                path.rmdir()
