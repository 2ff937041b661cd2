"""Files of a variant: one small graph file a role, and one file of weights that all of them map; written, and read again on demand.

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

WEIGHTS = "weights.bin"
IR_VERSION = 10
INLINE_BYTES = 256  # shapes, axes and scalars stay in the graph, where ONNX Runtime can fold them
PAGE, LINE = 4096, 64  # large tensors start on a page, small ones on a cache line


def write(models: dict[str, ir.Model], folder: str | Path) -> dict[str, str]:
    """Write `<role>.onnx` for every model and one `weights.bin` into `folder` (made if absent); returns role -> file name.

    The same models give the same bytes. Raises `OutputError` if the files cannot be written; files begun are removed then.
    """
    folder = Path(folder)
    files = {role: f"{role}.onnx" for role in models}
    made: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        made.append(folder / WEIGHTS)
        with open(folder / WEIGHTS, "wb") as weights:
            places: dict[tuple[str, int], int] = {}
            protos = {role: _proto(model, weights, places) for role, model in sorted(models.items())}
            weights.flush()
            os.fsync(weights.fileno())
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
                WEIGHTS,
                int(place["offset"]),
                int(place["length"]),
                ir.DataType(entry.data_type),
                shape=ir.Shape(entry.dims),
                name=entry.name,
                base_dir=folder,
            )


def _proto(model: ir.Model, weights: object, places: dict[tuple[str, int], int]) -> onnx.ModelProto:
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
        offset, length = _place(_bytes(tensor), weights, places)
        entry = proto.graph.initializer.add(name=name, data_type=int(tensor.dtype), dims=list(tensor.shape.numpy()))
        entry.data_location = onnx.TensorProto.EXTERNAL
        for key, item in (("location", WEIGHTS), ("offset", offset), ("length", length)):
            entry.external_data.add(key=key, value=str(item))
    return proto


def _bytes(tensor: ir.TensorProtocol) -> memoryview:
    """As they are in a file; those of an array are no copy of it."""
    if tensor.dtype.bitwidth < 8 or sys.byteorder != "little":
        return memoryview(tensor.tobytes())
    return np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data


def _place(data: memoryview, weights: object, places: dict[tuple[str, int], int]) -> tuple[int, int]:
    key = hashlib.sha256(data).hexdigest(), len(data)
    if key not in places:
        step = PAGE if len(data) >= 16 * PAGE else LINE
        position = weights.tell()  # type: ignore[attr-defined]
        offset = -(-position // step) * step
        weights.write(b"\0" * (offset - position))  # type: ignore[attr-defined]
        weights.write(data)  # type: ignore[attr-defined]
        places[key] = offset
    return places[key], len(data)


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
    """Whether all large weights of graphs are made for each reader, of a mapped file."""
    large = [v.const_value for model in graphs.values() for v in model.graph.initializers.values() if v.const_value is not None]
    large = [tensor for tensor in large if tensor.nbytes >= LEAST]
    return bool(large) and all(isinstance(tensor, ir.LazyTensor) for tensor in large)


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
