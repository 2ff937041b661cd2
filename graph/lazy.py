"""Arrays that take no memory: made for the moment from others that do not either, or kept in a file without a name that is mapped."""

from __future__ import annotations

import tempfile
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

LEAST = 2**20  # bytes: what is smaller stays in memory


def derived(source: ir.TensorProtocol, make: Callable[[np.ndarray], np.ndarray]) -> ir.TensorProtocol:
    """`make(source)`, of the type and shape of `source`.

    It is made anew for each reader where the source lies in a file or is made anew itself; else it is made now.
    """
    if source.nbytes < LEAST or not isinstance(source, ir.LazyTensor | ir.ExternalTensor):
        return ir.tensor(make(source.numpy()))
    return ir.LazyTensor(lambda: ir.tensor(make(source.numpy())), source.dtype, ir.Shape(source.shape))


def mapped(array: np.ndarray) -> np.ndarray:
    """The same array, read from a temporary file that goes with the last who reads it; a small one as it is.

    The file lies in the system's folder for temporary files. OSError: there is no room.
    """
    array = np.ascontiguousarray(array)
    if array.nbytes < LEAST:
        return array
    with tempfile.TemporaryFile(prefix="onnxport-") as file:
        array.tofile(file)
        file.flush()
        return np.memmap(file, array.dtype, "r", shape=array.shape)
