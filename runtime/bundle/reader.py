"""Reading and checking a bundle, the folder whose bundle.json lists and hashes every file; `writer` writes it.

Frozen dataclasses (see `manifest`) mirror bundle.json. Every fault is a BundleError of one line; nothing of a damaged bundle is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from onnxport.errors import BundleError, OnnxportError, one_line
from onnxport.files import open_regular, read_regular
from onnxport.runtime.bundle.manifest import (
    MANIFEST,
    MOST_BYTES,
    ChatConfig,
    EncodingConfig,
    FileEntry,
    GenerationConfig,
    Manifest,
    Reader,
    Variant,
    chat,
    check_required,
    encoding,
    generation,
    variant,
)
from onnxport.runtime.bundle.publish import recover
from onnxport.runtime.memory.external_data import MOST_OF_GRAPH, locations

CONFIRMATIONS = "confirmations.json"  # beside the manifest, which does not list it, see `confirmations`
SIGNATURE = "bundle.sig"  # beside it, too, see `signature`
FORMAT = 2  # the newest, see `manifest`
MOST_OF_MANIFEST = 1 << 26  # bytes
_PIECE = 1 << 20
T = TypeVar("T")
TASKS = (
    "translation",
    "summarization",
    "text2text",
    "text-generation",
    "embedding",
    "classification",
    "token-classification",
    "fill-mask",
    "multiple-choice",
    "question-answering",
    "tensor",
)


@dataclass(frozen=True)
class Bundle:
    """A checked bundle. `manifest` is bundle.json as read, so that a rewrite loses nothing. failed: variants that were left out when it was
    made, for they failed their checks, and why."""

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
    layers: str | None
    provenance: Mapping[str, Any]
    failed: Mapping[str, str]
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path, verify: bool = False) -> Bundle:
        """Read and check the bundle in folder `path`: manifest, presence and sizes; with `verify` also every hash. BundleError."""
        return unreplaced([path], lambda: cls._opened_whole(path, verify))

    @classmethod
    def _opened_whole(cls, path: str | Path, verify: bool) -> Bundle:
        bundle = cls.read(path)
        try:
            bundle.check_files(verify)
        except OSError as e:
            raise BundleError(f"{path}: {e.filename or 'a file'} cannot be read ({e.strerror}); check its name and permissions") from e
        return bundle

    @classmethod
    def read(cls, path: str | Path) -> Bundle:
        """The bundle that the manifest in folder `path` describes; its other files are not looked at. BundleError."""
        root = Path(path)
        try:
            found = _kind(root) or ("a folder" if recover(root) and root.is_dir() else "nothing")
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
        check_required(r.get("requires", list, []))
        files = {}
        for name, value in r.get("files", dict).items():
            entry = Reader(value, f"files.{name}")
            files[name] = FileEntry(entry.get("sha256", str), entry.natural("bytes", most=MOST_BYTES))
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
            layers=r.get("layers", (str, type(None)), None),
            provenance=r.get("provenance", dict, {}),
            failed=r.strings("failed", "reasons"),
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
        named = [*self.search.values(), *self.tokenizers.values(), *(name for name in (self.golden, self.layers) if name)]
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

    def content(self, name: str) -> bytes:
        """The bytes of a listed file. BundleError."""
        with self._opened(name) as file:
            return file.read()

    def check_files(self, verify: bool) -> None:
        """Check that the listed files are there, regular and of their sizes, and that graphs read no others; with `verify` also hashes.

        A link counts as what it leads to, inside the bundle or not: caches of downloads are made of links. BundleError names the file.
        """
        graphs = {*self.search.values(), *(graph for v in self.variants.values() for graph in v.graphs.values())}
        for name in sorted(self.files):
            with self._opened(name) as file:
                if name in graphs:
                    self._check_graph(name, file, verify)
                elif verify:
                    self._check_hash(name, hashlib.file_digest(file, "sha256"))

    def copy(self, name: str, target: Path) -> None:
        """Copy a listed file, and check meanwhile that it is what the manifest says. BundleError; OSError: `target` cannot be written."""
        digest = hashlib.sha256()
        with self._opened(name) as file, target.open("wb") as copy:
            while piece := file.read(_PIECE):
                digest.update(piece)
                copy.write(piece)
        self._check_hash(name, digest)

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[BufferedReader]:
        """A listed file, open, with its size right. BundleError."""
        wanted = self.files[name].bytes
        try:
            file = open_regular(self.path / name)
        except FileNotFoundError:
            raise BundleError(f"{self.path}: {name} is missing; copy the whole folder or export the model again") from None
        except OSError as e:
            raise BundleError(f"{self.path}: {name} cannot be read ({e.strerror}); check its name and permissions") from e
        with file:
            if (size := os.fstat(file.fileno()).st_size) != wanted:
                raise BundleError(f"{self.path}: {name} has {size} bytes, expected {wanted}; copy or export the bundle again")
            yield file

    def _check_hash(self, name: str, digest: hashlib._Hash) -> None:
        if digest.hexdigest() != self.files[name].sha256:
            raise BundleError(f"{self.path}: {name} has changed, its SHA-256 is not the one in {MANIFEST}; copy or export the bundle again")

    def _check_graph(self, name: str, file: BufferedReader, verify: bool) -> None:
        """Check that a graph reads its weights from listed files alone, and its hash."""
        if self.files[name].bytes > MOST_OF_GRAPH:
            raise BundleError(
                f"{self.path}: {name} has more than {MOST_OF_GRAPH} bytes, which no ONNX file can have; export the model again"
            )
        content = file.read(self.files[name].bytes)
        if verify:
            self._check_hash(name, hashlib.sha256(content))
        try:
            found = locations(content)
        except ValueError as e:
            raise BundleError(f"{self.path}: {name} is no ONNX file ({one_line(e)}); export the model again") from None
        folder = PurePosixPath(name).parent
        for location in sorted(found):
            path = PurePosixPath(location)
            if ".." in path.parts or str(folder / path) not in self.files:
                raise BundleError(
                    f"{self.path}: the graph {name} reads {location!r}, which {MANIFEST} does not list; do not use this bundle"
                )

    def unlisted(self) -> list[str]:
        """Files in the folder that the manifest does not name, sorted."""
        found = (p.relative_to(self.path).as_posix() for p in self.path.rglob("*") if not p.is_dir())
        return sorted(f for f in found if f not in (MANIFEST, CONFIRMATIONS, SIGNATURE) and f not in self.files)


def unreplaced(
    paths: Sequence[str | Path],
    read: Callable[[], T],
    tries: int = 20,
    told: Callable[[], None] = lambda: None,
    by_content: bool = False,
) -> T:
    """What `read` makes of the bundles at `paths`, made again where another command replaced one meanwhile: it may be of two bundles then.

    told: called before each time that it is made again. by_content: what was made while the same bundle was written once more will do.
    BundleError where they are replaced every time; what `read` raises of bundles that stay.
    """
    for _ in range(tries):
        before = [_place(path) for path in paths]
        contents = [_content(path) for path in paths] if by_content else None
        try:
            found = read()
        except (OnnxportError, OSError):
            if before == [_place(path) for path in paths]:
                raise
        else:
            if before == [_place(path) for path in paths] or (contents and contents == [_content(path) for path in paths]):
                return found
        told()
    raise BundleError(f"{', '.join(map(str, paths))}: replaced {tries} times while it was read; try again when nothing writes it")


def _place(path: str | Path) -> tuple[int, ...] | None:
    """What tells one writing of a bundle from another; None where there is no bundle."""
    try:
        found = os.stat(Path(path) / MANIFEST)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _content(path: str | Path) -> bytes | None:
    """The manifest, which hashes all other files; None without one."""
    try:
        return read_regular(Path(path) / MANIFEST, MOST_OF_MANIFEST)
    except (OSError, ValueError):
        return None


def _kind(path: Path) -> str | None:
    """What is at a path, in words; None for nothing. OSError, ValueError."""
    return "a folder" if path.is_dir() else "a file" if path.exists() else None


def sha256(path: Path) -> str:
    """SHA-256 of a regular file in hexadecimal, read in pieces. BundleError when it cannot be read."""
    try:
        with open_regular(path) as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as e:
        raise BundleError(f"{path}: cannot be read ({e.strerror}); check its permissions") from e


def _read_json(path: Path) -> object:
    try:
        return json.loads(read_regular(path, MOST_OF_MANIFEST), parse_constant=_no_constant, parse_float=_finite)
    except FileNotFoundError:
        raise BundleError(f"{path.parent}: no {MANIFEST} here, expected a bundle's folder; make one with `onnxport export`") from None
    except OSError as e:
        raise BundleError(f"{path}: cannot be read ({e.strerror}); check its permissions") from e
    except (ValueError, RecursionError) as e:
        raise BundleError(f"{path}: not valid JSON ({one_line(e)}); export the model again") from None


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:30]} is more than a number can be")
    return number


def _check_relative(name: str) -> None:
    pure = PurePosixPath(name)
    if not name or pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name or "\0" in name or name == MANIFEST:
        raise BundleError(
            f"{MANIFEST}: path {name!r} leaves the bundle or is not allowed, expected a path inside it; do not use this bundle"
        )
