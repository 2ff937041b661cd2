"""Reading and checking a bundle, the folder whose bundle.json lists and hashes every file; `writer` writes it.

Frozen dataclasses (see `manifest`) mirror bundle.json. Every fault is a BundleError of one line; nothing of a damaged bundle is used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from onnxport.errors import BundleError, one_line
from onnxport.runtime.bundle.manifest import (
    MANIFEST,
    ChatConfig,
    EncodingConfig,
    FileEntry,
    GenerationConfig,
    Manifest,
    Reader,
    Variant,
    chat,
    encoding,
    generation,
    variant,
)

FORMAT = 1
TASKS = ("translation", "summarization", "text2text", "text-generation", "embedding", "classification", "question-answering", "tensor")


@dataclass(frozen=True)
class Bundle:
    """A checked bundle. `manifest` is bundle.json as read, so that a rewrite loses nothing."""

    path: Path
    name: str
    task: str
    family: str
    default: str
    generation: GenerationConfig | None
    encoding: EncodingConfig
    chat: ChatConfig | None
    files: Mapping[str, FileEntry]
    variants: Mapping[str, Variant]
    search: Mapping[str, str]
    golden: str | None
    tokenizers: Mapping[str, str]
    provenance: Mapping[str, Any]
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path, verify: bool = False) -> Bundle:
        """Read and check the bundle in folder `path`: manifest, presence and sizes; with `verify` also every hash. BundleError."""
        bundle = cls.read(path)
        try:
            bundle.check_files(verify)
        except OSError as e:
            raise BundleError(f"{path}: {e.filename}: cannot be read ({e.strerror}); check its name and permissions") from e
        return bundle

    @classmethod
    def read(cls, path: str | Path) -> Bundle:
        """The bundle that the manifest in folder `path` describes; its other files are not looked at. BundleError."""
        root = Path(path)
        try:
            found = "a folder" if root.is_dir() else "a file" if root.is_file() else "nothing"
        except (OSError, ValueError) as e:
            raise BundleError(f"{root}: cannot be read ({e}); check its name and permissions") from e
        if found != "a folder":
            raise BundleError(f"{root}: found {found}, expected a bundle's folder; make one with `onnxport export`")
        return cls.parse(_read_json(root / MANIFEST), root)

    @classmethod
    def parse(cls, raw: object, root: Path) -> Bundle:
        """The dataclass of a manifest's JSON value; checks everything that needs no look at the other files."""
        r = Reader(raw, "the manifest")
        number = r.natural("format")
        if number > FORMAT:
            raise BundleError(
                f"{root}: bundle format {number}, this onnxport reads up to {FORMAT}: made by a newer onnxport; upgrade onnxport"
            )
        if number < 1:
            raise BundleError(f"{root}: bundle format {number}, expected 1 to {FORMAT}; export the model again")
        files = {}
        for name, value in r.get("files", dict).items():
            entry = Reader(value, f"files.{name}")
            files[name] = FileEntry(entry.get("sha256", str), entry.natural("bytes"))
        bundle = cls(
            path=root,
            name=r.get("name", str),
            task=r.get("task", str),
            family=r.get("family", str, ""),
            default=r.get("default", str),
            generation=generation(r.get("generation", (dict, type(None)), None)),
            encoding=encoding(r.get("encoding", (dict, type(None)), None)),
            chat=chat(r.get("chat", (dict, type(None)), None)),
            files=files,
            variants={n: variant(n, v) for n, v in r.get("variants", dict).items()},
            search=r.strings("search"),
            golden=r.get("golden", (str, type(None)), None),
            tokenizers=r.strings("tokenizers"),
            provenance=r.get("provenance", dict, {}),
            manifest=Manifest(r.value),
        )
        bundle._check_names()
        return bundle

    def _check_names(self) -> None:
        if self.task not in TASKS:
            raise BundleError(f"{self.path}: task {self.task!r} is not one of {', '.join(TASKS)}; upgrade onnxport")
        if self.default not in self.variants:
            raise BundleError(
                f"{self.path}: default variant {self.default!r} is not among {', '.join(self.variants) or 'none'}; export the model again"
            )
        for name in self.files:
            _check_relative(name)
        named = [*self.search.values(), *self.tokenizers.values(), *([self.golden] if self.golden else [])]
        named += [self.chat.template] if self.chat else []
        for v in self.variants.values():
            named += v.files
            stray = [g for g in v.graphs.values() if g not in v.files]
            if stray:
                raise BundleError(f"{MANIFEST}: variants.{v.name}.graphs names {stray[0]!r}, which its files lack; export the model again")
        for name in named:
            _check_relative(name)
            if name not in self.files:
                raise BundleError(f"{MANIFEST}: {name!r} is used but not listed under files; export the model again")

    def file(self, name: str) -> Path:
        """The full path of a listed file."""
        return self.path / name

    def check_files(self, verify: bool) -> None:
        """Check that the listed files are there and of their sizes; with `verify` also their hashes. BundleError names the file."""
        root = self.path.resolve()
        for name, entry in sorted(self.files.items()):
            path = self.path / name
            if not path.exists():
                raise BundleError(f"{self.path}: {name} is missing; copy the whole folder or export the model again")
            if not path.resolve().is_relative_to(root):
                raise BundleError(
                    f"{self.path}: {name} is a link that leaves the bundle; every file must lie inside; copy the files themselves"
                )
            if not path.is_file():
                raise BundleError(f"{self.path}: {name} is not a file; export the model again")
            if path.stat().st_size != entry.bytes:
                raise BundleError(
                    f"{self.path}: {name} has {path.stat().st_size} bytes, expected {entry.bytes}; copy or export the bundle again"
                )
            if verify and sha256(path) != entry.sha256:
                raise BundleError(
                    f"{self.path}: {name} has changed, its SHA-256 is not the one in {MANIFEST}; copy or export the bundle again"
                )

    def unlisted(self) -> list[str]:
        """Files in the folder that the manifest does not name, sorted."""
        found = (p.relative_to(self.path).as_posix() for p in self.path.rglob("*") if not p.is_dir())
        return sorted(f for f in found if f != MANIFEST and f not in self.files)


def sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, read in pieces. BundleError when it cannot be read."""
    try:
        with path.open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as e:
        raise BundleError(f"{path}: cannot be read ({e.strerror}); check its permissions") from e


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_bytes(), parse_constant=_no_constant)
    except FileNotFoundError:
        raise BundleError(f"{path.parent}: no {MANIFEST} here, expected a bundle's folder; make one with `onnxport export`") from None
    except OSError as e:
        raise BundleError(f"{path}: cannot be read ({e.strerror}); check its permissions") from e
    except (ValueError, RecursionError) as e:
        raise BundleError(f"{path}: not valid JSON ({one_line(e)}); export the model again") from None


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _check_relative(name: str) -> None:
    pure = PurePosixPath(name)
    if not name or pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name or "\0" in name or name == MANIFEST:
        raise BundleError(
            f"{MANIFEST}: path {name!r} leaves the bundle or is not allowed, expected a path inside it; do not use this bundle"
        )
