"""Large graphs run piece by piece: each piece reads all inputs in turn, and hands on what later pieces read.

A piece is a few layers. Only the weights of the one that runs are in a file of their own, and in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxport.graph.edit import remove_dead
from onnxport.graph.session import Runner, opened

Feed = Mapping[str, np.ndarray]
Values = dict[str, np.ndarray]
PIECE = "piece"
LEAST = 2**29  # bytes of weights that a piece has at least, but the last
NARROW = 1.2  # times the narrowest place: a graph may be cut there


@dataclass
class Piece:
    """A piece that is loaded: any of its values can be asked for on all inputs, again and again.

    names: of the values that it has, those of the graph's inputs too where it is the first. feeds: all that it reads, by input of the
    graph. handed: names of what later pieces read.
    """

    names: frozenset[str]
    feeds: Sequence[Feed]
    _runner: Runner | None
    _handed: Sequence[str]
    _made: list[Values] = field(default_factory=list)

    def run(self, wanted: Iterable[str]) -> Iterator[Values]:
        """The wanted values, of `names`, on each input in turn."""
        names = set(wanted)
        handed = [] if self._made else list(self._handed)
        outputs = set(handed) if self._runner is None else {*(names & self._runner.outputs.keys()), *handed}
        made: list[Values] = []
        for feed in self.feeds:
            values = next(self._runner.run([feed], sorted(outputs))) if self._runner is not None and outputs else {}
            made.append({name: values[name] for name in handed})
            yield {name: values[name] if name in values else feed[name] for name in names}
        self._made = self._made or made

    def close(self) -> None:
        """Lets the graph go: whoever has the piece still would hold it in memory beside the next one."""
        self._runner = None

    def hand_on(self) -> list[Values]:
        """What later pieces read, by input."""
        if not self._made:
            for _ in self.run(()):
                pass
        return self._made


def walk(model: ir.Model, feeds: Iterable[Feed], wanted: Iterable[str]) -> Iterator[Piece]:
    """The pieces of a graph in their order, as far as the wanted values reach; each is loaded until the next one is asked for.

    feeds: inputs by name. BundleError: see `graph.session.opened`.
    """
    every: list[Feed] = list(feeds)
    inputs = frozenset(str(value.name) for value in model.graph.inputs)
    left = set(wanted) - inputs
    carried: list[Values] = [{} for _ in every]
    for begin, end, crossing in cuts(model):
        if not every or (begin and not left):
            return
        made = frozenset(str(value.name) for node in list(model.graph)[begin:end] for value in node.outputs if value.name)
        here, left = left & made, left - made
        handed = sorted(crossing & made) if left else []
        reads = [{**feed, **values} for feed, values in zip(every, carried, strict=True)]
        outputs = here | set(handed)
        with opened({PIECE: _part(model, begin, carried[0], outputs)} if outputs else {}) as runners:
            piece = Piece(made if begin else made | inputs, reads, runners.pop(PIECE, None), handed)
            yield piece
            if left:
                carried = [
                    {name: found[name] for name in crossing if name in found}
                    for found in ({**old, **new} for old, new in zip(carried, piece.hand_on(), strict=True))
                ]
            piece.close()


def cuts(model: ir.Model, least: int = LEAST) -> list[tuple[int, int, frozenset[str]]]:
    """Where a graph is cut: the first node of each piece, the node behind its last one, and the names of values that are read further on.

    It is cut where little is handed on, as between the layers of a Transformer, and where at least `least` bytes of weights have come.
    """
    nodes = list(model.graph)
    last: dict[ir.Value, int] = {}
    sums: list[int] = []  # bytes of weights up to each node
    met: set[ir.Value] = set()
    total = 0
    for place, node in enumerate(nodes):
        weights = {value for value in node.inputs if value is not None and value.is_initializer()} - met
        met |= weights
        total += sum(value.const_value.nbytes for value in weights if value.const_value is not None)
        sums.append(total)
        last |= {value: place for value in node.inputs if value is not None and value.producer() is not None}
    if total < least:
        return [(0, len(nodes), frozenset())]
    live: set[ir.Value] = set()
    crossing: list[frozenset[ir.Value]] = []  # behind each node
    for place, node in enumerate(nodes):
        live = {value for value in (*live, *node.outputs) if last.get(value, -1) > place}
        crossing.append(frozenset(live))
    wide = [sum(map(_width, values)) for values in crossing]
    inner = [width for width, before in zip(wide, sums, strict=True) if total / 10 <= before <= total * 9 / 10]
    found, begin, begun = [], 0, 0
    for end in range(1, len(nodes)):
        width, before = wide[end - 1], sums[end - 1]
        if before - begun >= least and before < total and inner and width <= NARROW * min(inner):
            found.append((begin, end, frozenset(str(value.name) for value in crossing[end - 1])))
            begin, begun = end, before
    return [*found, (begin, len(nodes), frozenset())]


def _width(value: ir.Value) -> int:
    """Numbers of a position that a value hands on; 1 where its shape is not known."""
    size = None if value.shape is None or not len(value.shape) else value.shape[-1]
    return size if isinstance(size, int) else 1


def _part(model: ir.Model, begin: int, given: Mapping[str, np.ndarray], outputs: set[str]) -> ir.Model:
    """A copy that computes the named outputs, and nothing else, of its inputs and of values that nodes before `begin` gave."""
    copy = model.clone()
    graph = copy.graph
    graph.outputs.clear()  # one of them may be read further on
    for value in [value for node in list(graph)[:begin] for value in node.outputs if value.name in given]:
        array = given[str(value.name)]
        kind = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        read = ir.Value(name=value.name, type=kind, shape=ir.Shape([None] * array.ndim))
        ir.convenience.replace_all_uses_with(value, read)
        value.name = f"{value.name}/before"
        graph.inputs.append(read)
    values = {str(value.name): value for node in list(graph)[begin:] for value in node.outputs if value.name in outputs}
    graph.outputs.extend(values[name] for name in sorted(outputs))
    remove_dead(graph)
    for value in [value for value in graph.inputs if not value.uses() and not value.is_graph_output()]:
        graph.inputs.remove(value)
    return copy
