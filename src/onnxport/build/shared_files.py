"""Files that variants share: where two of them would have the same weights or graph, the bundle has the file once.

ONNX Runtime reads weights from the folder of the graph alone. So a graph whose weights another variant has lies in that variant's folder,
under its role and its own target: int8@web has int8/decoder@web.onnx beside int8/weights.bin.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onnxport.graph.store import weight_files
from onnxport.runtime.bundle.reader import sha256
from onnxport.runtime.bundle.variant_names import split

Entry = dict[str, Any]  # of a variant in the manifest


def share(bundle: Path, name: str, graphs: Mapping[str, str], variants: Mapping[str, Entry]) -> tuple[dict[str, str], list[str]]:
    """Role → path of its graph, and all files of a variant whose files lie in its own folder, when what others have is theirs.

    Moves and removes files of the variant `name` in the folder `bundle`. graphs: its own, by role. variants: those that are finished.
    """
    folder, found = bundle / name, dict(graphs)
    host = next((other for other in _folders(variants) if _same_weights(folder, bundle / other)), None)
    if host is None:
        return found, sorted(f"{name}/{file.name}" for file in folder.iterdir())
    own = {file.name for file in weight_files(folder)}
    files = {f"{host}/{file}" for file in own}
    for role, path in graphs.items():
        theirs = bundle / host / f"{role}.onnx"
        if not _same(bundle / path, theirs):
            theirs = bundle / host / f"{role}@{split(name)[1]}.onnx"
            os.replace(bundle / path, theirs)
        found[role] = f"{host}/{theirs.name}"
        files.add(found[role])
    kept = [file for file in folder.iterdir() if file.name not in own and file.suffix != ".onnx"]  # the plan
    for file in kept:
        if not _same(file, bundle / host / file.name):
            continue
        file.unlink()
        files.add(f"{host}/{file.name}")
    for file in [file for file in folder.iterdir() if file.name in own or file.suffix == ".onnx"]:
        file.unlink()
    files |= {f"{name}/{file.name}" for file in folder.iterdir()}
    if not any(folder.iterdir()):
        folder.rmdir()
    return found, sorted(files)


def part(bundle: Path, name: str, variants: Mapping[str, Entry]) -> None:
    """Gives variants that have files in the folder of `name` copies of their own, so that `name` may be made anew; edits `variants`."""
    for other, entry in variants.items():
        theirs = [path for path in entry["files"] if path.startswith(f"{name}/")]
        if other == name or not theirs:
            continue
        (bundle / other).mkdir(exist_ok=True)
        moved = {path: f"{other}/{_plain(path, entry)}" for path in theirs}
        for path, new in moved.items():
            shutil.copyfile(bundle / path, bundle / new)
            if path not in variants[name]["files"]:
                (bundle / path).unlink()
        entry["files"] = sorted(moved.get(path, path) for path in entry["files"])
        entry["graphs"] = {role: moved.get(path, path) for role, path in entry["graphs"].items()}


def owned(name: str, variants: Mapping[str, Entry]) -> list[str]:
    """The files of a variant that no other one has."""
    others = {file for other, entry in variants.items() if other != name for file in entry["files"]}
    return [file for file in variants[name]["files"] if file not in others]


def _plain(path: str, entry: Entry) -> str:
    role = next((role for role, graph in entry["graphs"].items() if graph == path), None)
    return path.rpartition("/")[2] if role is None else f"{role}.onnx"


def _folders(variants: Mapping[str, Entry]) -> Iterator[str]:
    yield from dict.fromkeys(path.rpartition("/")[0] for entry in variants.values() for path in entry["graphs"].values())


def _same_weights(one: Path, other: Path) -> bool:
    files = {file.name for file in weight_files(one)}
    return files == {file.name for file in weight_files(other)} and all(_same(one / name, other / name) for name in files)


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and one.stat().st_size == other.stat().st_size and sha256(one) == sha256(other)
