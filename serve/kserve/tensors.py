"""Tensors of KServe's open inference protocol, and of Triton's: their types, as JSON values and as bytes.

Sources: "Open Inference Protocol (V2)" and "Binary Tensor Data Extension" in KServe's documentation of its data plane.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxport.errors import DataError

BYTES = "BYTES"
TYPES = {  # name → NumPy's; bytes are little-endian
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "INT8": "int8", "INT16": "int16",
    "INT32": "int32", "INT64": "int64", "FP16": "float16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip
NAMES = {dtype: name for name, dtype in TYPES.items()}
KINDS = {"b": "b", "i": "iu", "u": "iu", "f": "fiu"}  # kinds of JSON values that each kind of type takes
MOST = 2**31 - 1  # of an axis
LENGTH = struct.Struct("<I")


def name_of(array: np.ndarray) -> str:
    """The protocol's name of an array's type; text is an array of objects (bytes)."""
    return BYTES if array.dtype == object else NAMES[str(array.dtype)]


def of_texts(texts: Sequence[str]) -> np.ndarray:
    """Texts as an array of BYTES [texts]."""
    array = np.empty(len(texts), object)
    array[:] = [text.encode("utf-8", "surrogatepass") for text in texts]  # a lone surrogate is refused as it is read
    return array


def to_texts(name: str, array: np.ndarray) -> list[str]:
    """The texts of an array of BYTES, of one axis or of two of which the second has size 1. DataError."""
    if array.dtype != object:
        raise DataError(f"{name} is {name_of(array)}, expected {BYTES}")
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] != 1):
        raise DataError(f"{name} has shape {list(array.shape)}, expected [texts] or [texts, 1]")
    try:
        return [bytes(one).decode("utf-8") for one in array.ravel()]
    except UnicodeDecodeError:
        raise DataError(f"{name} holds bytes that are not UTF-8, expected text") from None


def from_json(name: str, datatype: str, shape: Sequence[int], data: object) -> np.ndarray:
    """An array of a tensor's JSON data, nested by its shape or flat. DataError: it is not of the type or the shape."""
    if datatype == BYTES:
        texts = [one for one in _flat(name, data) if isinstance(one, str)]
        if len(texts) < len(_flat(name, data)):
            raise DataError(f"{name} is {BYTES}, expected texts as its data")
        return _shaped(name, of_texts(texts), shape)
    dtype = np.dtype(_type(name, datatype))
    try:
        found = np.array(data)
    except (ValueError, OverflowError):
        raise DataError(f"the data of {name} are nested unevenly, expected shape {list(shape)} or a flat list") from None
    if found.size and found.dtype.kind not in KINDS[dtype.kind]:
        raise DataError(f"the data of {name} are {found.dtype}, expected {datatype}")
    with np.errstate(over="ignore"):
        made = found.astype(dtype)
    if not (np.isfinite(made).all() if dtype.kind == "f" else np.array_equal(made, found)):
        raise DataError(f"the data of {name} hold numbers that {datatype} has not")
    return _shaped(name, made, shape)


def to_json(array: np.ndarray) -> list[Any]:
    """The flat JSON data of an array."""
    if array.dtype == object:
        return [one.decode("utf-8", "replace") for one in array.ravel()]
    values: list[Any] = array.ravel().tolist()
    return values


def from_bytes(name: str, datatype: str, shape: Sequence[int], data: bytes) -> np.ndarray:
    """An array of a tensor's bytes. DataError: they are not of its type or shape."""
    if datatype == BYTES:
        return _shaped(name, _elements(name, data), shape)
    dtype = np.dtype(_type(name, datatype)).newbyteorder("<")
    if len(data) % dtype.itemsize:
        raise DataError(f"{name} has {len(data)} bytes, expected a multiple of {dtype.itemsize} for {datatype}")
    return _shaped(name, np.frombuffer(data, dtype).astype(dtype.newbyteorder("="), copy=False), shape)


def to_bytes(array: np.ndarray) -> bytes:
    """The bytes of an array; each element of BYTES has its length in four bytes before it."""
    if array.dtype == object:
        return b"".join(LENGTH.pack(len(one)) + one for one in array.ravel())
    return np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _elements(name: str, data: bytes) -> np.ndarray:
    found, at = [], 0
    while at < len(data):
        end = at + LENGTH.size
        end += LENGTH.unpack(data[at:end])[0] if end <= len(data) else len(data)
        if end > len(data):
            raise DataError(f"the bytes of {name} end within an element, expected each behind its length in four bytes")
        found.append(data[at + LENGTH.size : end])
        at = end
    array = np.empty(len(found), object)
    array[:] = found
    return array


def _type(name: str, datatype: str) -> str:
    if datatype not in TYPES:
        raise DataError(f"{name} is {datatype!r:.30}, expected {BYTES}, {', '.join(TYPES)}")
    return TYPES[datatype]


def _flat(name: str, data: object, depth: int = 0) -> list[object]:
    if depth > 8:
        raise DataError(f"the data of {name} are nested too deeply, expected a flat list")
    if not isinstance(data, list):
        return [data]
    return [item for one in data for item in _flat(name, one, depth + 1)]


def _shaped(name: str, array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    if max(shape, default=0) > MOST:
        raise DataError(f"the shape of {name} is {list(shape)!s:.60}, expected sizes up to {MOST}")
    if math.prod(shape) != array.size:
        raise DataError(f"{name} has {array.size} elements, expected {math.prod(shape)} for shape {list(shape)}")
    try:
        return array.reshape(shape)
    except ValueError:  # NumPy counts the other axes of an empty array, too
        raise DataError(f"the shape of {name} is {list(shape)!s:.60}, which is more than an array may have") from None
