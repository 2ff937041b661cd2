"""Graphs in ONNX Runtime: opened over a temporary folder, run on inputs by name, read without padding."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from onnxport.graph.store import write
from onnxport.runtime.bundle.interface import ATTENTION_MASK, INPUT_IDS, SEQLENS, SOURCE_MASK
from onnxport.runtime.processor import saturates
from onnxport.runtime.sessions import Sessions

if TYPE_CHECKING:
    import onnxruntime

Feed = Mapping[str, np.ndarray]


class Runner:
    """A graph that ONNX Runtime has loaded. session: ONNX Runtime's own; inputs, outputs: what it says of them, by name, in graph order."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session
        self.inputs: dict[str, Any] = {value.name: value for value in session.get_inputs()}
        self.outputs: dict[str, Any] = {value.name: value for value in session.get_outputs()}

    def run(self, feeds: Iterable[Feed], names: Sequence[str] | None = None) -> Iterator[dict[str, np.ndarray]]:
        """The named outputs, or all of them, on each feed in turn; what a feed has beside the graph's inputs is left out."""
        wanted = list(self.outputs) if names is None else list(names)
        for feed in feeds:
            inputs = {name: array for name, array in feed.items() if name in self.inputs}
            yield dict(zip(wanted, self.session.run(wanted, inputs), strict=True))


@contextmanager
def opened(
    graphs: Mapping[str, ir.Model],
    outputs: Iterable[str] | None = None,
    sessions: Sessions | None = None,
    *,
    steady: bool = True,
    optimize: bool = True,
) -> Iterator[dict[str, Runner]]:
    """Runners by role over files of the graphs, which are gone when the block ends; the graphs stay as they are.

    outputs: names of values that become outputs too, beside those that each graph has. sessions: what opens them, None: the CPU with all
    cores, and no copies of large weights. steady: see `Sessions.options`. optimize: False runs the nodes as they stand, but for what
    `processor.saturates` is about, and holds weights once. BundleError: ONNX Runtime cannot load a graph.
    """
    if outputs is not None:
        names = set(outputs)
        graphs = {role: _with_outputs(model, names) for role, model in graphs.items()}
    with tempfile.TemporaryDirectory(prefix="onnxport-") as folder:
        files = write(dict(graphs), folder, temporary=True)
        yield {role: open_file(Path(folder) / file, sessions, steady=steady, optimize=optimize) for role, file in files.items()}


def open_file(
    path: str | Path,
    sessions: Sessions | None = None,
    *,
    steady: bool = True,
    optimize: bool = True,
    adjust: Callable[[onnxruntime.SessionOptions], None] | None = None,
) -> Runner:
    """A runner over an ONNX file. adjust: changes the options of its session. All else as `opened`."""
    sessions = sessions or replace(Sessions.on("cpu"), sparing=True)
    return Runner(sessions.open(path, steady, adjust=adjust if optimize else _as_it_stands))


def _as_it_stands(options: onnxruntime.SessionOptions) -> None:
    import onnxruntime

    levels = onnxruntime.GraphOptimizationLevel
    # Without VNNI only an optimized graph adds products of 8 bits without loss.
    options.graph_optimization_level = levels.ORT_ENABLE_EXTENDED if saturates() else levels.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.disable_prepacking", "1")  # it would hold the weights once more


def answers(model: ir.Model, feeds: Iterable[Feed]) -> list[dict[str, np.ndarray]]:
    """All outputs of a graph on each feed, on the CPU."""
    with opened({"model": model}) as runners:
        return list(runners["model"].run(feeds))


def _with_outputs(model: ir.Model, names: set[str]) -> ir.Model:
    copy = model.clone()
    there = {value.name for value in [*copy.graph.outputs, *copy.graph.inputs]}
    copy.graph.outputs.extend(value for node in copy.graph for value in node.outputs if value.name in names - there)
    return copy


def real(array: np.ndarray, feed: Feed) -> np.ndarray:
    """What of a value [batch, positions, ...] is no padding, as [rows, ...]; a value of another form stays as it is.

    Of a decoder `seqlens_k` [batch] says it, the last position that counts, else `attention_mask` or `source_mask` [batch, positions].
    """
    if SEQLENS in feed and INPUT_IDS in feed:
        mask = np.arange(feed[INPUT_IDS].shape[1]) <= feed[SEQLENS][:, None]
    elif (name := next((name for name in (ATTENTION_MASK, SOURCE_MASK) if name in feed), None)) is not None:
        mask = feed[name].astype(bool)
    else:
        return array
    return array[mask] if array.ndim > 2 and array.shape[:2] == mask.shape else array
