"""The contents that all variants of a bundle share, and its manifest."""

import importlib
import importlib.metadata
import io
import platform
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxport import __version__
from onnxport.runtime.bundle.writer import Staging

if TYPE_CHECKING:
    from onnxport.export.exported import Exported


Say = Callable[[str], None]
Graphs = dict[str, Any]  # role → onnx_ir.Model
VERSIONED = ("torch", "onnx", "onnxscript", "onnxruntime")
GOLDEN = "golden.npz"
CHAT = "chat_template.jinja"


def write_shared(staging: Staging, exported: "Exported", search: dict[str, bytes]) -> None:
    """Tokenizers, search graphs and golden answers: what all variants share."""
    for file, content in _shared(exported, search).items():
        path = staging.path / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


def _tokenizer_files(exported: "Exported") -> dict[str, str]:
    one = len(set(exported.tokenizers.values())) == 1
    return {side: "tokenizer.json" if one else f"{side}_tokenizer.json" for side in exported.tokenizers}


def search_graphs(exported: "Exported") -> dict[str, bytes]:
    if exported.generation is None:
        return {}
    from onnxport.graph import search_graphs as made

    graphs: dict[str, bytes] = made.search_graphs(2 * exported.generation["layers"], exported.generation["vocab_size"])
    return graphs


def _shared(exported: "Exported", search: dict[str, bytes]) -> dict[str, bytes]:
    files = {name: exported.tokenizers[side] for side, name in _tokenizer_files(exported).items()}
    files |= {f"search/{name}.onnx": content for name, content in search.items()}
    if exported.chat is not None:
        files[CHAT] = exported.chat["template"].encode()
    buffer = io.BytesIO()
    arrays: dict[str, Any] = dict(sorted(exported.goldens.items()))
    np.savez_compressed(buffer, **arrays)  # no time of day in it: the bytes are repeatable
    return files | {GOLDEN: buffer.getvalue()}


def manifest(exported: "Exported", search: dict[str, bytes], default: str, name: str) -> dict[str, Any]:
    versions = {package: importlib.metadata.version(package) for package in VERSIONED if _installed(package)}
    return {
        "name": exported.name or name,
        "task": exported.task,
        "family": exported.family,
        "default": default,
        "generation": exported.generation,
        "encoding": exported.settings.get("encoding"),
        "chat": None if exported.chat is None else {"template": CHAT, "tokens": exported.chat["tokens"]},
        "golden": GOLDEN,
        "tokenizers": _tokenizer_files(exported),
        "search": {graph: f"search/{graph}.onnx" for graph in search},
        "variants": {},
        "settings": exported.settings,
        "provenance": {
            "route": exported.route,
            "opset": exported.opset,
            "source": exported.source_hashes,
            "versions": {"onnxport": __version__, "python": platform.python_version(), **versions},
        },
    }


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
