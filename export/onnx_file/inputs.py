"""Seeded inputs of a foreign graph, made by the names, types, shapes and tables that it has for them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxport.errors import CheckpointError
from onnxport.export.trace.axes import other_sizes
from onnxport.graph.edit import dims

KEPT = ("Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Add", "Where", "Clip", "Max", "Min")  # ids are ids behind them
UNNAMED_IDS = 2  # of integers that look up no table: they may be token types, flags or masks
MOST_MASKS = 4  # whose both polarities are tried together
START = {"batch": 2, "other": 5}  # sizes to begin with; further axes are longer, so that no two are alike
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class GraphInput:
    """An input: numpy type, and per axis a size, or what it is the sum of: labels and a number.

    hides: of a mask in which true, or 1, is padding.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int | tuple[tuple[str, ...], int], ...]
    rows: int | None  # of the smallest table that it looks up
    hides: bool = False

    @property
    def is_mask(self) -> bool:
        """Whether it may be one, by its type or its name; which of its values hides is for the model to tell."""
        return bool(self.shape) and (self.dtype.kind == "b" or "mask" in self.name.lower())

    def labels(self) -> list[str]:
        """Free axes, by name."""
        return [label for size in self.shape if not isinstance(size, int) for label in size[0]]


def inputs_of(graph: ir.Graph) -> list[GraphInput]:
    """The graph's inputs. CheckpointError for one that is no tensor of numbers or truth values."""
    return [_graph_input(value) for value in graph.inputs]


def _graph_input(value: ir.Value) -> GraphInput:
    name = str(value.name)
    if not isinstance(value.type, ir.TensorType) or value.dtype is None or value.dtype == ir.DataType.STRING:
        raise CheckpointError(f"input {name} is a {value.type}, expected a tensor of numbers; export the model with tensors alone")
    if value.shape is None:
        raise CheckpointError(f"input {name} has no shape, expected its rank at least; export the model with shapes of inputs")
    shape = tuple(_axis(name, i, size) for i, size in enumerate(dims(value) or ()))
    return GraphInput(name, value.dtype.numpy(), shape, min(_tables(value), default=None))


def _axis(name: str, axis: int, size: int | str) -> int | tuple[tuple[str, ...], int]:
    """A fixed size, or a name, or a sum such as `past_sequence_length + 1`."""
    if isinstance(size, int):
        return size
    parts = [part.strip() for part in size.split("+")]
    labels = tuple(part for part in parts if not part.isdigit())
    if not all(re.fullmatch(r"\w+", label) for label in labels) or size == "?":
        return ((f"{name}_axis{axis}",), 0)
    return (labels, sum(int(part) for part in parts if part.isdigit()))


def _tables(value: ir.Value, depth: int = 6) -> Iterator[int]:
    """Rows of the constant tables that an integer input looks up."""
    if value.dtype is None or not value.dtype.is_integer() or depth == 0:
        return
    yield from _rows(value, depth)


def _rows(value: ir.Value, depth: int) -> Iterator[int]:
    for node, index in value.uses():
        table = node.inputs[0] if node.inputs else None
        if node.op_type == "Gather" and index == 1 and table is not None and table.const_value is not None:
            axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
            yield int(table.const_value.shape.numpy()[axis])
        elif node.op_type in KEPT and depth:
            yield from _rows(node.outputs[0], depth - 1)


def sizes(inputs: list[GraphInput]) -> list[dict[str, int]]:
    """Sizes of the free axes, several times: the first ones apart from each other, then those of `other_sizes`."""
    labels = list(dict.fromkeys(label for entry in inputs for label in entry.labels()))
    if not labels:
        return [{}]
    first = batches(inputs)
    lengths = itertools.count(START["other"], 2)
    begin = {label: START["batch"] if label in first else next(lengths) for label in labels}
    return [begin, *other_sizes(begin)]


def batches(inputs: list[GraphInput]) -> set[str]:
    """Free axes that come first in some input."""
    return {entry.shape[0][0][0] for entry in inputs if entry.shape and not isinstance(entry.shape[0], int) and entry.shape[0][0]}


def tied(inputs: list[GraphInput], axes: int) -> list[GraphInput]:
    """The first `axes` axes of all inputs, where they are free, called alike: exporters often leave them without a common name."""

    def shape(entry: GraphInput) -> tuple[int | tuple[tuple[str, ...], int], ...]:
        return tuple(((f"axis{i}",), 0) if i < axes and not isinstance(size, int) else size for i, size in enumerate(entry.shape))

    return [replace(entry, shape=shape(entry)) for entry in inputs]


def polarities(inputs: list[GraphInput]) -> Iterator[list[GraphInput]]:
    """The inputs, with masks in which true is what is seen, then with those in which it is padding: all of them, one, two, ..."""
    masks = [entry.name for entry in inputs if entry.is_mask][:MOST_MASKS]
    counts = dict.fromkeys([0, len(masks), *range(1, len(masks))])
    for hiding in itertools.chain.from_iterable(itertools.combinations(masks, count) for count in counts):
        yield [replace(entry, hides=entry.name in hiding) for entry in inputs]


def arrays(inputs: list[GraphInput], free: dict[str, int], seed: int) -> Arrays:
    """An array for each input. Masks let all be seen in the first case, and ragged rows in the others; the longest row is whole."""
    random = np.random.default_rng([20240229, seed])
    return {entry.name: _array(entry, _shape(entry, free), random, seed > 0) for entry in inputs}


def _shape(entry: GraphInput, free: dict[str, int]) -> tuple[int, ...]:
    return tuple(s if isinstance(s, int) else sum(free[label] for label in s[0]) + s[1] for s in entry.shape)


def _array(entry: GraphInput, shape: tuple[int, ...], random: np.random.Generator, ragged: bool) -> np.ndarray:
    name, kind = entry.name.lower(), entry.dtype.kind
    made: np.ndarray
    if entry.is_mask or name == "use_cache_branch":
        made = np.ones(shape, bool)
        if ragged and len(shape) == 2:
            lengths = random.integers(1, shape[1] + 1, shape[0])
            lengths[0] = shape[1]
            made = np.arange(shape[1])[None] < lengths[:, None]
        made = made != entry.hides
    elif "position_ids" in name and shape:
        made = np.broadcast_to(np.arange(shape[-1]) % (entry.rows or shape[-1]), shape)
    elif kind == "b":
        made = random.random(shape) < 0.5
    elif kind in "iu":
        made = random.integers(0, entry.rows or UNNAMED_IDS, shape)
    else:
        made = random.standard_normal(shape)
    return np.asarray(made).astype(entry.dtype)
