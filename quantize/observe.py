"""What the inputs of linear layers look like while a graph answers calibration data."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx_ir as ir

from onnxport.errors import DataError
from onnxport.quantize.ranges import Range
from onnxport.quantize.store import write
from onnxport.runtime.products import make_exact

Feed = Mapping[str, np.ndarray]
MASKS = ("attention_mask", "source_mask")


class Collector(Protocol):
    """Takes what a value holds, feed after feed."""

    def add(self, rows: np.ndarray) -> None:
        """rows: float32 [n, channels], padding left out."""
        ...


class Hessian:
    """H = mean of x xᵀ over rows x: how much errors of weights cost (Frantar et al. 2022, GPTQ), float64 [channels, channels]."""

    AT_ONCE = 1024  # rows

    def __init__(self) -> None:
        self._sum, self.count = np.zeros((0, 0)), 0
        self._waiting: list[np.ndarray] = []

    def add(self, rows: np.ndarray) -> None:
        """As Collector. Rows of several feeds are multiplied at once: steps of a decoder are single rows."""
        self._waiting.append(np.array(rows, np.float32))
        self.count += len(rows)
        if sum(map(len, self._waiting)) >= self.AT_ONCE:
            self._multiply()

    def mean(self) -> np.ndarray:
        """H."""
        self._multiply()
        return self._sum / max(self.count, 1)

    def _multiply(self) -> None:
        if self._waiting:
            rows = np.concatenate(self._waiting)
            product = rows.T @ rows
            self._sum = self._sum + product if self._sum.size else product.astype(np.float64)
            self._waiting = []


class Peak:
    """The largest magnitude of each channel, float32 [channels]."""

    def __init__(self) -> None:
        self.largest: np.ndarray | float = 0.0

    def add(self, rows: np.ndarray) -> None:
        """As Collector."""
        self.largest = np.maximum(self.largest, np.abs(rows).max(0, initial=0))


@dataclass(frozen=True)
class Statistics:
    """What was seen of values, by their names."""

    hessians: Mapping[str, Hessian]
    ranges: Mapping[str, Range]

    def hessian(self, x: ir.Value) -> np.ndarray:
        """float64 [K, K], of a layer's input."""
        return self.hessians[str(x.name)].mean()

    def range(self, x: ir.Value, method: str) -> tuple[float, float]:
        """Least and greatest value that 8 bits should hold, of a layer's input."""
        return self.ranges[str(x.name)].limits(method)


def watch(model: ir.Model, needs: Mapping[str, Iterable[str]], feeds: Iterable[Feed]) -> Statistics:
    """Statistics of values (name -> "hessian", "range") while the graph answers `feeds`. DataError: it answers NaN or infinity."""
    hessians = {name: Hessian() for name, wanted in needs.items() if "hessian" in wanted}
    ranges = {name: Range() for name, wanted in needs.items() if "range" in wanted}
    collectors: dict[str, list[Collector]] = {name: [] for name in needs}
    for found in (hessians, ranges):
        for name, collector in found.items():
            collectors[name].append(collector)
    observe(model, collectors, feeds)
    return Statistics(hessians, ranges)


def observe(model: ir.Model, collectors: Mapping[str, Iterable[Collector]], feeds: Iterable[Feed]) -> None:
    """Runs the graph on `feeds` and gives the rows of each named value to its collectors; padding is left out, by the feed's mask.

    DataError: a value is NaN or infinite, which would spoil what is computed from it.
    """
    import onnxruntime

    watched = model.clone()
    outside = {value.name for value in [*watched.graph.outputs, *watched.graph.inputs]}
    watched.graph.outputs.extend(v for node in watched.graph for v in node.outputs if v.name in set(collectors) - outside)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    make_exact(options)
    with tempfile.TemporaryDirectory() as folder:
        (file,) = write({"model": watched}, Path(folder)).values()
        session = onnxruntime.InferenceSession(str(Path(folder) / file), options, providers=["CPUExecutionProvider"])
        inputs = {value.name for value in session.get_inputs()}
        names = [output.name for output in session.get_outputs() if output.name in collectors]
        for feed in feeds:
            given = {name: array for name, array in feed.items() if name in inputs}
            real = next((feed[name].astype(bool) for name in MASKS if name in feed), None)
            for name, array in [*zip(names, session.run(names, given) if names else [], strict=True), *feed.items()]:
                if name not in collectors:
                    continue
                found = array[real] if real is not None and array.shape[:2] == real.shape and array.ndim > 2 else array
                found = found.reshape(-1, found.shape[-1])
                if not np.isfinite(found).all():
                    raise DataError(f"calibration gives NaN or infinity at {name}; check the model's weights and the data")
                for collector in collectors[name]:
                    collector.add(found)
