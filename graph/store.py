"""Files of a variant: one small graph file a role, and one file of weights that all of them map, or several where a target reads none so
large; written, and read again on demand.

Tensors with the same bytes are stored once, whatever graph, name or shape they have: a tied embedding and projection cost their bytes once.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxport.errors import OutputError
from onnxport.graph.edit import remove_metadata
from onnxport.graph.lazy import LEAST

WEIGHTS, FURTHER = "weights.bin", "weights-*.bin"  # of several files the first one, and those that follow: weights-2.bin
PART = 2_000_000_000  # bytes of a file at most where programs hold files in buffers, as browsers do
IR_VERSION = 10
HELD = 0.1  # share of large weights that may stay in memory
INLINE_BYTES = 256  # shapes, axes and scalars stay in the graph, where ONNX Runtime can fold them
PAGE, LINE = 4096, 64  # large tensors start on a page, small ones on a cache line


def write(models: dict[str, ir.Model], folder: str | Path, most: int | None = None, *, temporary: bool = False) -> dict[str, str]:
    """Write `<role>.onnx` for every model and one `weights.bin` into `folder` (made if absent); returns role -> file name.

    most: bytes of a file of weights, where there may be several; a single larger weight has a file of its own. None: there is one file.
    temporary: files that are read at once, and then go; nothing waits until the disk has them.
    The same models give the same bytes. Raises `OutputError` if the files cannot be written; files begun are removed then.
    """
    folder = Path(folder)
    files = {role: f"{role}.onnx" for role in models}
    made: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(_WeightFiles(folder, most, made)) as weights:
            protos = {role: _proto(model, weights) for role, model in sorted(models.items())}
            if not temporary:
                weights.sync()
        for role, proto in protos.items():
            made.append(folder / files[role])
            (folder / files[role]).write_bytes(proto.SerializeToString(deterministic=True))
    except OSError as error:
        for path in made:
            path.unlink(missing_ok=True)
        raise OutputError(
            f"cannot write {error.filename or folder}: {error.strerror or error}; free space or choose another folder"
        ) from error
    return files


def reread(models: dict[str, ir.Model], folder: str | Path) -> None:
    """Lets the models' large tensors be read from the files that `write` made of these models in `folder`, when they are next asked for.

    Edits `models`: the memory that held the tensors is free, unless somebody else holds them.
    """
    for role, model in models.items():
        proto = onnx.load(str(Path(folder) / f"{role}.onnx"), load_external_data=False)
        for entry in proto.graph.initializer:
            if entry.data_location != onnx.TensorProto.EXTERNAL:
                continue
            value = model.graph.initializers[entry.name]
            place = {item.key: item.value for item in entry.external_data}
            value.const_value = ir.ExternalTensor(
                place["location"],
                int(place["offset"]),
                int(place["length"]),
                ir.DataType(entry.data_type),
                shape=ir.Shape(entry.dims),
                name=entry.name,
                base_dir=folder,
            )


def _proto(model: ir.Model, weights: _WeightFiles) -> onnx.ModelProto:
    graph = model.graph
    large: dict[str, ir.Value] = {}
    light = model.clone()
    for name, value in graph.initializers.items():
        assert value.const_value is not None
        if value.const_value.nbytes > INLINE_BYTES:
            large[name] = value
            light.graph.initializers[name].const_value = None
    for name in large:
        del light.graph.initializers[name]
    _anonymize(light)
    proto = ir.to_proto(light)
    del proto.graph.initializer[:]
    described = [value for value in proto.graph.value_info if value.name not in graph.initializers]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(described)
    for name, value in sorted(graph.initializers.items()):  # the order of weights in the file depends on their names alone
        tensor = value.const_value
        assert tensor is not None
        if name not in large:
            proto.graph.initializer.append(onnx.numpy_helper.from_array(tensor.numpy(), name))
            continue
        file, offset, length = weights.place(_bytes(tensor))
        entry = proto.graph.initializer.add(name=name, data_type=int(tensor.dtype), dims=list(tensor.shape.numpy()))
        entry.data_location = onnx.TensorProto.EXTERNAL
        for key, item in (("location", file), ("offset", offset), ("length", length)):
            entry.external_data.add(key=key, value=str(item))
    return proto


def _bytes(tensor: ir.TensorProtocol) -> memoryview:
    """As they are in a file; those of an array are no copy of it."""
    if tensor.dtype.bitwidth < 8 or sys.byteorder != "little":
        return memoryview(tensor.tobytes())
    return np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data


class _WeightFiles:
    """Files of weights that are being written, one after the other. most: see `write`. made: gets their paths."""

    def __init__(self, folder: Path, most: int | None, made: list[Path]) -> None:
        self._folder, self._most, self._made = folder, most, made
        self._places: dict[tuple[str, int], tuple[str, int]] = {}
        self._count = 0
        self._open_next()

    def _open_next(self) -> None:
        self._count += 1
        self._name = WEIGHTS if self._count == 1 else FURTHER.replace("*", str(self._count))
        self._made.append(self._folder / self._name)
        self._file = open(self._folder / self._name, "wb")  # noqa: SIM115 - `close` does

    def place(self, data: memoryview) -> tuple[str, int, int]:
        """File, offset and length of bytes, which are written where they are not there yet."""
        key = hashlib.sha256(data).hexdigest(), len(data)
        if key not in self._places:
            step = PAGE if len(data) >= 16 * PAGE else LINE
            position = self._file.tell()
            offset = -(-position // step) * step
            if self._most is not None and position and offset + len(data) > self._most:
                self.sync()
                self.close()
                self._open_next()
                position = offset = 0
            self._file.write(b"\0" * (offset - position))
            self._file.write(data)
            self._places[key] = self._name, offset
        return *self._places[key], len(data)

    def sync(self) -> None:
        """Brings the file that is open to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file that is open."""
        self._file.close()


def weight_files(folder: Path) -> list[Path]:
    """Those that `write` made there."""
    return [path for path in [folder / WEIGHTS, *sorted(folder.glob(FURTHER))] if path.is_file()]


def _anonymize(model: ir.Model) -> None:
    """Drop what would make bytes depend on where and how the graph was made, and shapes inside it."""
    remove_metadata(model)
    model.ir_version = min(model.ir_version or IR_VERSION, IR_VERSION)
    model.producer_name, model.producer_version, model.domain, model.model_version = "onnxport", None, None, None
    model.graph.name = "graph"
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None  # half the graph's bytes, and ONNX Runtime infers them again
                value.type = None


class WeightsOnDisk:
    """Graphs (role → onnx_ir.Model) whose large tensors are read from files in `folder` whenever somebody asks for them.

    there: the graphs were written there before.
    """

    def __init__(self, graphs: dict[str, Any], folder: str, there: bool = False) -> None:
        self.graphs, self._folder = graphs, folder
        if not there:
            write(graphs, folder)
        self.release_weights()

    def release_weights(self) -> None:
        """Gives back what was read since, and all that nobody holds any more."""
        reread(self.graphs, self._folder)
        collect()


@contextlib.contextmanager
def on_disk(graphs: dict[str, Any], beside: Path) -> Iterator[Callable[[], None]]:
    """The graphs' weights in a folder beside a bundle in the making, which goes when the block ends. Edits `graphs`.

    Gives what hands back the memory of weights that were read. Weights that are made of a mapped checkpoint for each reader take no
    memory already, and stay there.
    """
    if are_made_anew(graphs):
        yield collect
        return
    with tempfile.TemporaryDirectory(prefix=f"{beside.name}.", dir=beside.parent) as folder:
        yield WeightsOnDisk(graphs, folder).release_weights


def are_made_anew(graphs: Mapping[str, ir.Model]) -> bool:
    """Whether the large weights of graphs are made for each reader, of a mapped file, but for a small part, as tables of positions are."""
    large = [v.const_value for model in graphs.values() for v in model.graph.initializers.values() if v.const_value is not None]
    large = [tensor for tensor in large if tensor.nbytes >= LEAST]
    held = sum(tensor.nbytes for tensor in large if not isinstance(tensor, ir.LazyTensor))
    return bool(large) and held <= HELD * sum(tensor.nbytes for tensor in large)


def forget(graphs: dict[str, Any]) -> None:
    """Takes the weights out of graphs that are used no more: rules of onnxscript remember the last graph they were tried on for ever."""
    for model in graphs.values():
        for value in model.graph.initializers.values():
            value.const_value = None


def collect() -> None:
    """Frees objects that refer to each other in circles, and hands freed pages back where the C library keeps them (glibc)."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
