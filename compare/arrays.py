"""Arrays in JSON: `{"dtype", "shape", "base64"}`. NumPy is imported only when an array passes."""

import base64
import sys
from typing import Any

_KEYS = {"dtype", "shape", "base64"}


def pack(value: Any) -> Any:
    """`value` with every array and NumPy scalar in it made ready for JSON."""
    if isinstance(value, dict):
        return {str(key): pack(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [pack(item) for item in value]
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray):
        data = base64.b64encode(numpy.ascontiguousarray(value).tobytes()).decode("ascii")
        return {"dtype": value.dtype.str, "shape": list(value.shape), "base64": data}
    if numpy is not None and isinstance(value, numpy.generic):
        return value.item()
    return value


def unpack(value: Any) -> Any:
    """The inverse of `pack` for containers and arrays. Arrays that are there already stay as they are."""
    if isinstance(value, dict):
        if value.keys() == _KEYS:
            import numpy

            data = numpy.frombuffer(base64.b64decode(value["base64"]), dtype=numpy.dtype(value["dtype"]))
            return data.reshape(value["shape"]).copy()
        return {key: unpack(item) for key, item in value.items()}
    if isinstance(value, list):
        return [unpack(item) for item in value]
    return value
