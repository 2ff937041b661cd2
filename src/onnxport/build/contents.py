"""What all variants of a bundle share: tokenizers, search graphs, golden answers, the chat template, and the manifest."""

from __future__ import annotations

import importlib.metadata
import io
import platform
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxport import __version__
from onnxport.runtime.bundle.manifest import ChatConfig
from onnxport.runtime.bundle.writer import Staging

if TYPE_CHECKING:
    from onnxport.export.exported import Exported

VERSIONED = ("torch", "onnx", "onnxscript", "onnxruntime")
GOLDEN = "golden.npz"
CHAT = "chat_template.jinja"
LAYERS = "layers.npz"
BEST_ON_CUDA = "best_cuda"  # `Engine.search` takes a device's own graph where there is one


def write_contents(staging: Staging, exported: Exported, default: str, name: str) -> None:
    """Write the shared files and set the manifest, which has no variants yet.

    default: the variant that is run where none is named. name: the bundle's, where the model has none.
    """
    search = _search_graphs(exported)
    for file, content in _files(exported, search).items():
        path = staging.path / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    staging.manifest = _manifest(exported, search, default, name)


def add_note(staging: Staging, note: str) -> None:
    """Adds a note to the manifest of a bundle in the making, once."""
    assert staging.manifest is not None
    provenance = staging.manifest["provenance"]
    provenance["notes"] = list(dict.fromkeys([*provenance.get("notes", ()), note]))


def add_device_search(staging: Staging) -> None:
    """The search graph that finds the best tokens as CUDA does, in a bundle in the making of a model that generates."""
    assert staging.manifest is not None
    if staging.manifest["generation"] is None or BEST_ON_CUDA in staging.manifest["search"]:
        return
    from onnxport.graph.search_graphs import best_graph

    path = staging.path / _search_file(BEST_ON_CUDA)
    path.write_bytes(best_graph(staging.manifest["generation"]["vocab_size"], by_blocks=False))
    staging.manifest["search"][BEST_ON_CUDA] = _search_file(BEST_ON_CUDA)


def _files(exported: Exported, search: dict[str, bytes]) -> dict[str, bytes]:
    """Contents by path."""
    files = {name: exported.tokenizers[side] for side, name in _tokenizer_files(exported).items()}
    files |= {_search_file(name): content for name, content in search.items()}
    if exported.chat is not None:
        files[CHAT] = exported.chat.text.encode()
    if layers := _layers(exported):
        files[LAYERS] = _npz(layers)
    return files | {GOLDEN: _npz(exported.goldens)}


def _npz(found: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    arrays: dict[str, Any] = dict(sorted(found.items()))
    np.savez_compressed(buffer, **arrays)  # no time of day in it: the bytes are repeatable
    return buffer.getvalue()


def _layers(exported: Exported) -> dict[str, np.ndarray]:
    """Arrays of what follows the pooling, by place and name."""
    if exported.task != "embedding":
        return {}
    return {f"{i}/{name}": array for i, layer in enumerate(exported.layers) for name, array in layer.items()}


def _tokenizer_files(exported: Exported) -> dict[str, str]:
    """Side → file; one file where both sides have the same tokenizer."""
    one = len(set(exported.tokenizers.values())) == 1
    return {side: "tokenizer.json" if one else f"{side}_tokenizer.json" for side in exported.tokenizers}


def _search_file(name: str) -> str:
    return f"search/{name}.onnx"


def _search_graphs(exported: Exported) -> dict[str, bytes]:
    """Graphs of the token search by name; none for a model that does not generate."""
    if exported.generation is None:
        return {}
    from onnxport.graph.search_graphs import search_graphs

    return search_graphs(2 * exported.generation.layers, exported.generation.vocab_size)


def _manifest(exported: Exported, search: dict[str, bytes], default: str, name: str) -> dict[str, Any]:
    encoding = None if exported.encoding is None else exported.encoding.as_dict(exported.task)
    return {
        "name": exported.name or name,
        "task": exported.task,
        "family": exported.family,
        "default": default,
        "generation": None if exported.generation is None else exported.generation.as_dict(),
        "encoding": encoding,
        "chat": None if exported.chat is None else ChatConfig(CHAT, exported.chat.tokens).as_dict(),
        "golden": GOLDEN,
        **({"layers": LAYERS} if _layers(exported) else {}),
        "tokenizers": _tokenizer_files(exported),
        "search": {graph: _search_file(graph) for graph in search},
        "variants": {},
        "settings": exported.settings | ({} if encoding is None else {"encoding": encoding}),
        "provenance": {
            "route": exported.route,
            "opset": exported.opset,
            "source": exported.source_hashes,
            **({"notes": list(exported.notes)} if exported.notes else {}),
            "versions": versions(VERSIONED),
        },
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of onnxport, Python, and those of `packages` that are installed."""
    found = {package: importlib.metadata.version(package) for package in packages if _installed(package)}
    return {"onnxport": __version__, "python": platform.python_version(), **found}


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
