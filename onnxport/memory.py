"""Weights are in memory once while a bundle is made: between the steps that read them they are files."""

import contextlib
import ctypes
import gc
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onnxport.quantize import store


class WeightsOnDisk:
    """Graphs (role → onnx_ir.Model) whose large tensors are read from files in `folder` whenever somebody asks for them."""

    def __init__(self, graphs: dict[str, Any], folder: str) -> None:
        self.graphs, self._folder = graphs, folder
        store.write(graphs, folder)
        self.let_go()

    def let_go(self) -> None:
        """Gives back what was read since, and all that nobody holds any more."""
        store.reread(self.graphs, self._folder)
        collect()


@contextlib.contextmanager
def on_disk(graphs: dict[str, Any], beside: Path) -> Iterator[WeightsOnDisk]:
    """The graphs' weights in a folder beside a bundle in the making, which goes when the block ends. Edits `graphs`."""
    with tempfile.TemporaryDirectory(prefix=f"{beside.name}.", dir=beside.parent) as folder:
        yield WeightsOnDisk(graphs, folder)


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
