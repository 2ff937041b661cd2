"""A plain folder in a scratch place: what a checkpoint becomes when its weights are computed, with everything beside them linked.

The weights are float32 there, as much disk as four bytes a parameter, written a tensor at a time. The place is the system's own for
temporary files (TMPDIR), and goes when the source has been read: what is mapped of it stays readable until it is used.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from onnxport.errors import CheckpointError, OutputError, one_line
from onnxport.export.source import Source
from onnxport.export.weights import file_hash, is_weight_file, page_out

CONFIG = "config.json"
ADAPTER = "adapter/"  # before names of an adapter's files
SHARD = 1 << 30  # bytes of weights in a file


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF files do. CheckpointError: it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}; give a file that you may read") from error


@contextmanager
def scratch(source: Path, name: str = "") -> Iterator[Path]:
    """A path for the plain form of `source`, with its name or another one. Errors that name the path name `source` instead."""
    with tempfile.TemporaryDirectory(prefix="onnxport-", ignore_cleanup_errors=True) as place:
        made = Path(place) / (name or source.resolve().name or "model")
        try:
            yield made
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(made), str(source))) from error


def write(made: Path, folder: Path, config: Mapping[str, Any], tensors: Iterable[tuple[str, Tensor]]) -> None:
    """The folder `made`: a config, weights in safetensors, and links to all else that `folder` holds.

    CheckpointError: a tensor comes twice. OutputError: there is no room.
    """
    made.mkdir()
    for path in folder.iterdir():
        if path.name != CONFIG and not is_weight_file(path):
            (made / path.name).symlink_to(path.resolve())
    (made / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    _write_weights(made, tensors)


def _write_weights(made: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Shards with an index."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    files: dict[str, str] = {}
    shard: dict[str, Tensor] = {}

    def flush() -> None:
        name = f"model-{len(set(files.values())):05}.safetensors"
        try:
            save_file(shard, made / name, metadata={"format": "pt"})
        except (OSError, SafetensorError) as error:
            what = f"weights cannot be written out in {made.parent} ({one_line(error)})"
            raise OutputError(f"{what}; set TMPDIR to a folder with room") from error
        files.update(dict.fromkeys(shard, name))
        page_out(shard.values())
        shard.clear()

    for name, tensor in tensors:
        if name in files or name in shard:
            raise CheckpointError(f"{made} has the tensor {name} twice; save the model again")
        if shard and sum(map(_size, shard.values())) + _size(tensor) > SHARD:
            flush()
        shard[name] = tensor.contiguous() if not _shares(tensor, shard.values()) else tensor.clone()
    flush()
    (made / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}), encoding="utf-8")


def _size(tensor: Tensor) -> int:
    return int(tensor.numel() * tensor.element_size())


def _shares(tensor: Tensor, others: Iterable[Tensor]) -> bool:
    """Whether it lies in another's memory: a safetensors file holds no such tensors."""
    return any(tensor.untyped_storage().data_ptr() == one.untyped_storage().data_ptr() for one in others)


def as_from(source: Source, path: Path, weights: Iterable[Path], notes: Iterable[str], **settings: Any) -> Source:
    """The source of a plain folder, as one of the folder or file `path` that it was made of.

    weights: the files whose values went into its own. settings: what its settings say besides. Hashes are those of the user's files.
    """
    own = {path.name: path} if path.is_file() else {name: path / name for name in source.hashes if (path / name).is_file()}
    adapter = {name: value for name, value in source.hashes.items() if name.startswith(ADAPTER)}
    hashes = adapter | {name: file_hash(file) for name, file in sorted((own | {file.name: file for file in weights}).items())}
    return replace(source, hashes=hashes, notes=(*notes, *source.notes), settings=source.settings | settings)
