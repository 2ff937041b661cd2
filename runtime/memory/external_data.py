"""Which files an ONNX graph reads its weights from, found without the package onnx by walking the protobuf message.

ONNX Runtime opens what a tensor's `external_data` names as its location. All that can hold tensors is walked: subgraphs, functions,
attributes, sparse tensors, graphs of training. Where ONNX's parser could read one thing or another, both are found.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from onnxport.files import read_regular

MOST_OF_GRAPH = (1 << 31) - 1  # bytes of a protobuf message
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}
_MARK = b"location"  # the key of an entry; what holds none of it names no file
_ENTRY = "StringStringEntry"
# Message → number of a field → the message that it holds, after onnx.proto: of every way from a model to its tensors.
_FIELDS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: _ENTRY},
}


def locations(graph: bytes) -> set[str]:
    """The locations of external data in an ONNX file, as they stand there. ValueError: it is damaged, so that they cannot be told."""
    found: set[str] = set()
    waiting = [("Model", 0, len(graph))] if _MARK in graph else []
    while waiting:
        message, start, end = waiting.pop()
        if message == _ENTRY:
            found |= _location(graph, start, end)
            continue
        for number, begin, stop in _parts(graph, start, end):
            inner = _FIELDS[message].get(number)
            if inner is not None and graph.find(_MARK, begin, stop) >= 0:
                waiting.append((inner, begin, stop))
    return found


def out_of_reach(graph: Path) -> dict[str, Path]:
    """Location → file of a graph's external data that ONNX Runtime would refuse, because a link leads out of the graph's folder.

    It opens what lies in that folder, or in the one that a link to the graph leads to. ValueError, OSError.
    """
    if not any(entry.is_symlink() for entry in os.scandir(graph.parent)):
        return {}
    allowed = graph.parent.resolve(), graph.resolve().parent
    files = {location: graph.parent / location for location in locations(read_regular(graph, MOST_OF_GRAPH))}
    return {location: file for location, file in files.items() if not any(file.resolve().is_relative_to(folder) for folder in allowed)}


def _location(data: bytes, start: int, end: int) -> set[str]:
    """The values of an entry that says "location": the last one counts, but no reader need agree on that."""
    keys, values = set[bytes](), set[bytes]()
    for number, begin, stop in _parts(data, start, end):
        if number in (1, 2):
            (keys if number == 1 else values).add(data[begin:stop])
    return {value.decode("utf-8") for value in values or {b""}} if _MARK in keys else set()


def _parts(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(field number, begin, end) of the fields of a message that hold bytes. ValueError."""
    while start < end:
        tag, start = _varint(data, start, end)
        number, kind = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise ValueError(f"a field numbered {number}")
        if kind == _BYTES:
            size, start = _varint(data, start, end)
            if size > end - start:
                raise ValueError(f"a field of {size} bytes where {end - start} are left")
            yield number, start, start + size
            start += size
        elif kind == _VARINT:
            _, start = _varint(data, start, end)
        elif kind in _FIXED:
            start += _FIXED[kind]
        else:
            raise ValueError(f"a field of the wire type {kind}")
    if start > end:
        raise ValueError("a field that is cut short")


def _varint(data: bytes, start: int, end: int) -> tuple[int, int]:
    value = shift = 0
    for place in range(start, min(end, start + 10)):
        byte = data[place]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place + 1
        shift += 7
    raise ValueError("a number that does not end")
