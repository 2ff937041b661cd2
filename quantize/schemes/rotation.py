"""Rotated channels: what stands out in one channel of an activation is spread over the channels beside it, before few bits hold it.

The inputs of a product are cut into runs of at most 32 channels, and each run is multiplied by a Hadamard matrix; so is the same run of the
weight's rows. The matrix is orthogonal, so that the product stays as it was, while a single large value of a run becomes 32 values of a
sixth of its size. (QuaRot, Ashkboos et al. 2024, rotates whole vectors, which costs more where it does not go into weights.) Activations of
8 bits with a scale a row lose less so, and weights of 4 bits that GPTQ rounds. It takes 32 multiplications for each activation.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx_ir as ir

from onnxport.graph.edit import constant, new_node
from onnxport.graph.lazy import derived
from onnxport.graph.normalize import PARAMETER, parameter_of
from onnxport.quantize.schemes.linear import ROTATION, Linear, Lookup

LONGEST, SHORTEST = 32, 8  # channels of a run


def run_length(k: int) -> int | None:
    """The channels of a run: the largest power of two up to 32 that divides `k`; None where it is too small to spread anything."""
    found = min(k & -k, LONGEST)
    return found if found >= SHORTEST else None


@cache
def hadamard(size: int) -> np.ndarray:
    """float32 [size, size], symmetric and orthogonal; size: a power of two (Sylvester's construction)."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    found: np.ndarray = (matrix / np.sqrt(size)).astype(np.float32)
    return found


def rotated(rows: np.ndarray) -> np.ndarray:
    """rows float32 [..., K] with each run rotated; twice is the rows again, up to rounding. K: see `run_length`."""
    size = run_length(rows.shape[-1])
    assert size is not None
    found: np.ndarray = (rows.reshape(-1, size) @ hadamard(size)).reshape(rows.shape)
    return found


def _rotated_columns(weight: np.ndarray) -> np.ndarray:
    """The same of a weight [K, N] whose columns are rotated."""
    return np.ascontiguousarray(rotated(np.ascontiguousarray(weight.T)).T)


class Rotations:
    """Rotates the inputs of products in one graph, each once for all products that read it, and what tables give back."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._made: dict[ir.Value, ir.Value] = {}

    def of_product(self, linear: Linear) -> None:
        """The product reads its input rotated, with a weight that is rotated too."""
        x, node = linear.x, linear.node
        if x not in self._made:
            self._made[x] = self._rotate(node, x, linear.shape[0])
        node.replace_input_with(0, self._made[x])
        self._replace(node, 1, derived(linear.tensor, rotated if linear.transposed else _rotated_columns))

    def of_lookup(self, lookup: Lookup) -> None:
        """The table is rotated, and so are its rows when they are read, which makes them what they were."""
        out = lookup.node.outputs[0]
        like = ir.Value(name=f"{out.name}/turned", type=out.type, shape=out.shape)
        gather = new_node(self._graph, lookup.node, "Gather", list(lookup.node.inputs), dict(lookup.node.attributes), [like], domain="")
        gather.metadata_props.update(lookup.node.metadata_props)
        self._replace(gather, 0, derived(lookup.tensor, rotated))
        row = self._rotate(lookup.node, gather.outputs[0], lookup.shape[1])
        ir.convenience.replace_all_uses_with(out, row, replace_graph_outputs=True)
        out.name, row.name = row.name, out.name
        self._graph.remove(lookup.node, safe=True)

    def _replace(self, node: ir.Node, index: int, tensor: ir.TensorProtocol) -> None:
        """Another constant in the place of one, known by the same parameter's name; all uses of that one get the same."""
        old = node.inputs[index]
        assert old is not None
        new = constant(self._graph, f"{old.name}/rotated", tensor)
        new.metadata_props.update(old.metadata_props)
        new.meta[PARAMETER] = parameter_of(old)
        node.replace_input_with(index, new)

    def _rotate(self, before: ir.Node, x: ir.Value, k: int) -> ir.Value:
        """x [..., k] rotated, by nodes before `before`."""
        size = run_length(k)
        assert size is not None
        graph = self._graph

        def step(op: str, inputs: list[ir.Value], name: str, of: ir.Shape | None = None, kind: int = ir.DataType.FLOAT) -> ir.Value:
            like = ir.Value(name=f"{x.name}/{name}", type=ir.TensorType(ir.DataType(kind)), shape=of)
            return new_node(graph, before, op, inputs, {}, [like], domain="").outputs[0]

        runs = constant(graph, f"rotation_runs_{size}", np.array([-1, size], np.int64))
        whole = step("Shape", [x], "rotation/shape", kind=ir.DataType.INT64)  # a graph that was read again does not say how many axes
        matrix = constant(graph, f"{ROTATION}{size}", hadamard(size))
        turned = step("MatMul", [step("Reshape", [x, runs], "rotation/runs"), matrix], "rotation")
        return step("Reshape", [turned, whole], "rotated", x.shape)
