"""Statistics of activations on calibration data: ranges that 8 bits should hold, Hessians and peaks, collected while a graph runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir as ir

from onnxport.errors import DataError
from onnxport.graph.pieces import Piece, walk
from onnxport.graph.session import real

BINS = 1 << 14  # over -reach..reach
STEPS = 255  # of 8 bits
PERCENTILE = 99.99  # of the values are held; the rest is cut at both ends alike
ENTROPY_BINS = 512  # at most: the search takes the square of them
ENTROPY_LEVELS = 128
CUTS = np.linspace(1, 0.1, 91)  # shares of the seen range that `mse` tries


class Range:
    """Values of a tensor over all feeds: the least, the greatest, and how often each of equal bins was met.

    The bins cover -reach..reach, reach a power of two that doubles when a value lies beyond it: pairs of bins are merged then, so that
    counts stay exact and memory stays as it was.
    """

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf
        self.reach = 0.0
        self.counts = np.zeros(BINS, np.int64)

    def add(self, rows: np.ndarray) -> None:
        """rows: float32 [n, channels]."""
        if not rows.size:
            return
        low, high = float(rows.min()), float(rows.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._grow(max(-low, high))
        if self.reach:
            places = ((rows.reshape(-1).astype(np.float64) / self.reach + 1) * (BINS / 2)).astype(np.int64)
            self.counts += np.bincount(np.minimum(places, BINS - 1), minlength=BINS)
        else:
            self.counts[BINS // 2] += rows.size

    def _grow(self, peak: float) -> None:
        if peak <= self.reach:
            return
        wanted = float(2.0 ** np.ceil(np.log2(peak)))
        while self.reach and self.reach < wanted:
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.zeros(BINS, np.int64)
            self.counts[BINS // 4 : BINS // 4 + BINS // 2] = merged
            self.reach *= 2
        self.reach = max(self.reach, wanted)

    @property
    def edges(self) -> np.ndarray:
        """Bounds of the bins, float64 [BINS + 1]."""
        return np.linspace(-self.reach, self.reach, BINS + 1)

    def limits(self, method: str) -> tuple[float, float]:
        """Least and greatest value to hold, by "minmax", "percentile", "entropy" or "mse"; never more than was seen."""
        if self.low >= self.high or not self.reach:
            return self.low, self.high
        low, high = METHODS[method](self)
        return max(low, self.low), min(high, self.high)


def minmax(seen: Range) -> tuple[float, float]:
    """All that was seen."""
    return seen.low, seen.high


def percentile(seen: Range, share: float = PERCENTILE) -> tuple[float, float]:
    """What holds `share` percent of the values, as many cut below as above (Wu et al. 2020, Integer Quantization, 3.3)."""
    cut = (100 - share) / 200 * seen.counts.sum()
    total = np.cumsum(seen.counts)
    low = int(np.searchsorted(total, cut, side="right"))
    high = int(np.searchsorted(total, seen.counts.sum() - cut, side="left"))
    return float(seen.edges[low]), float(seen.edges[high + 1])


def entropy(seen: Range) -> tuple[float, float]:
    """The symmetric limits whose 128 levels tell the least different distribution, by KL divergence (Migacz 2017, TensorRT).

    The search is ONNX Runtime's own.
    """
    from onnxruntime.quantization.calibrate import HistogramCollector

    counts, reach = seen.counts, seen.reach
    group = BINS // ENTROPY_BINS
    search = HistogramCollector("entropy", False, ENTROPY_BINS, ENTROPY_LEVELS, None, None)
    coarse = counts.reshape(-1, group).sum(1)
    edges = np.linspace(-reach, reach, ENTROPY_BINS + 1, dtype=np.float32)
    low, high = search.get_entropy_threshold(
        (coarse, edges, np.float32(seen.low), np.float32(seen.high), np.float32(reach)), ENTROPY_LEVELS
    )
    return float(low), float(high)


def mse(seen: Range) -> tuple[float, float]:
    """The limits of least squared error, by search: both ends cut alike first, then each alone (Banner et al. 2019 have a formula)."""
    filled = np.flatnonzero(seen.counts)
    values, counts = ((seen.edges[:-1] + seen.edges[1:]) / 2)[filled], seen.counts[filled].astype(np.float64)

    def error(low: float, high: float) -> float:
        step = (high - low) / STEPS
        if step <= 0:
            return float("inf")
        beyond = np.maximum(values - high, 0) + np.maximum(low - values, 0)
        # Inside, a value is off by anything up to half a step; 8 bits hold 0 exactly, wherever the limits are.
        return float(counts @ np.where(beyond > 0, beyond**2, step**2 / 12))

    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    both = min(CUTS, key=lambda cut: error(low * cut, high * cut))
    low, high = low * both, high * both
    ends = [(min(CUTS, key=lambda cut: error(low * cut, high)), 1.0), (1.0, min(CUTS, key=lambda cut: error(low, high * cut)))]
    cut_low, cut_high = min(ends, key=lambda cuts: error(low * cuts[0], high * cuts[1]))
    return low * cut_low, high * cut_high


METHODS: dict[str, Callable[[Range], tuple[float, float]]] = {
    "minmax": minmax,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}


Feed = Mapping[str, np.ndarray]


class Collector(Protocol):
    """Takes what a value holds, feed after feed."""

    def add(self, rows: np.ndarray) -> None:
        """rows: float32 [n, channels], padding left out."""
        ...


class Hessian:
    """H = mean of x xᵀ over rows x: how much errors of weights cost (Frantar et al. 2022, GPTQ).

    Of many channels only the parts along the diagonal are kept, WIDEST channels each: time to solve a layer grows with the third power.
    """

    AT_ONCE = 1024  # rows
    WIDEST = 4096  # channels: a multiple of every size of blocks

    def __init__(self) -> None:
        self._sums: list[np.ndarray] = []
        self.count = 0
        self._waiting: list[np.ndarray] = []

    @classmethod
    def bytes_of(cls, channels: int) -> int:
        """What the parts of so many channels take."""
        return sum(8 * min(cls.WIDEST, channels - begun) ** 2 for begun in range(0, channels, cls.WIDEST))

    def add(self, rows: np.ndarray) -> None:
        """As Collector. Rows of several feeds are multiplied at once: steps of a decoder are single rows."""
        self._waiting.append(np.array(rows, np.float32))
        self.count += len(rows)
        if sum(map(len, self._waiting)) >= self.AT_ONCE:
            self._multiply()

    def mean(self) -> list[np.ndarray]:
        """The parts of H along its diagonal, float64 [k, k] each, in order."""
        self._multiply()
        return [part / max(self.count, 1) for part in self._sums]

    def _multiply(self) -> None:
        if not self._waiting:
            return
        rows = np.concatenate(self._waiting)
        parts = [rows[:, begun : begun + self.WIDEST] for begun in range(0, rows.shape[1], self.WIDEST)]
        products = [part.T @ part for part in parts]
        self._sums = [a + b for a, b in zip(self._sums, products, strict=True)] if self._sums else [p.astype(np.float64) for p in products]
        self._waiting = []


class Square:
    """The mean of x² of each channel, float64 [channels]: the diagonal of H, which says what an error of a weight costs alone."""

    def __init__(self) -> None:
        self._sum: np.ndarray | float = 0.0
        self.count = 0

    def add(self, rows: np.ndarray) -> None:
        """As Collector."""
        self._sum = self._sum + np.square(rows).sum(0, dtype=np.float64)
        self.count += len(rows)

    def mean(self) -> list[np.ndarray]:
        """The diagonal, whole."""
        return [np.asarray(self._sum) / max(self.count, 1)]


class Sample:
    """At most `most` rows of a value, float32 [rows, channels], from all feeds alike."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.kept: list[np.ndarray] = []
        self.stride, self.met = 1, 0

    def add(self, rows: np.ndarray) -> None:
        """As Collector."""
        places = np.arange(-self.met % self.stride, len(rows), self.stride)
        self.met += len(rows)
        self.kept += [row.copy() for row in rows[places]]
        while len(self.kept) > self.most:
            self.kept, self.stride = self.kept[::2], self.stride * 2


@dataclass(frozen=True)
class Statistics:
    """Hessians and mean squares of values, by their names."""

    hessians: Mapping[str, Hessian]
    squares: Mapping[str, Square]

    def hessian(self, x: ir.Value) -> list[np.ndarray]:
        """Of a layer's input, see `Hessian.mean`."""
        return self.hessians[str(x.name)].mean()

    def square(self, x: ir.Value) -> list[np.ndarray]:
        """Of a layer's input, see `Square.mean`."""
        return self.squares[str(x.name)].mean()


def watch(piece: Piece, needs: Mapping[str, Iterable[str]]) -> Statistics:
    """Statistics of values (name -> "hessian", "square") of one piece of a graph. DataError: NaN or infinity."""
    hessians = {name: Hessian() for name, wanted in needs.items() if "hessian" in wanted}
    squares = {name: Square() for name, wanted in needs.items() if "square" in wanted}
    collectors: dict[str, list[Collector]] = {name: [] for name in needs}
    for found in (hessians, squares):
        for name, collector in found.items():
            collectors[name].append(collector)
    see(piece, collectors)
    return Statistics(hessians, squares)


def observe(model: ir.Model, collectors: Mapping[str, Iterable[Collector]], feeds: Iterable[Feed]) -> None:
    """Runs the graph on `feeds` and gives the rows of each named value to its collectors; padding is left out, by the feed's mask.

    DataError: a value is NaN or infinite, which would spoil what is computed from it.
    """
    for piece in walk(model, feeds, collectors):
        see(piece, collectors)


def see(piece: Piece, collectors: Mapping[str, Iterable[Collector]]) -> None:
    """As `observe`, of the values of one piece of a graph; others are passed over."""
    found = collectors.keys() & piece.names
    for values, feed in zip(piece.run(found), piece.feeds, strict=True) if found else ():
        _collect(values, feed, collectors)


def _collect(values: Mapping[str, np.ndarray], feed: Feed, collectors: Mapping[str, Iterable[Collector]]) -> None:
    for name, array in values.items():
        rows = real(array, feed)
        rows = rows.reshape(-1, rows.shape[-1])
        if not np.isfinite(rows).all():
            raise DataError(f"calibration gives NaN or infinity at {name}; check the model's weights and the data")
        for collector in collectors[name]:
            collector.add(rows)
