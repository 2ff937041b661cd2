"""Tables of the kernels that targets have, with their types, and the check that a graph finds one for every node.

cuda.json and web.json are what ONNX Runtime of the targets' versions registers; `make kernel-tables` writes them. The web's are those of
WebAssembly, which has the CPU's; its WebGPU leaves to them what it lacks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any

import onnx
import onnx_ir as ir

NAMES = {ir.DataType.FLOAT: "float", ir.DataType.DOUBLE: "double"}  # of the others the table's is the type's own
CASTS = {"web": {"float16": "float"}}  # ONNX Runtime casts for kernels of the CPU


@cache
def table(target: str) -> dict[str, Any]:
    """The table of "cuda" or "web": the version of ONNX Runtime, and by operator the names of input types, and kernels."""
    found: dict[str, Any] = json.loads(resources.files(__name__).joinpath(f"{target}.json").read_bytes())
    return found


def missing(graphs: Mapping[str, ir.Model], target: str) -> list[str]:
    """The operators, with the types that they read, for which a target has no kernel, sorted; graphs by role.

    Inputs whose types are not known fit any kernel. Operators that ONNX defines by others count as these.
    """
    found = {problem for model in graphs.values() for node in model.graph for problem in _problems(node, target)}
    return sorted(found)


def cast_on_cpu(graphs: Mapping[str, ir.Model]) -> list[str]:
    """The operators of graphs in float16 that the CPU computes in float32, sorted: ONNX Runtime casts what they read and give."""
    nodes = [node for model in graphs.values() for node in model.graph]
    half = [node for node in nodes if any(value is not None and value.dtype == ir.DataType.FLOAT16 for value in node.inputs)]
    return sorted({node.op_type for node in half if list(_problems(node, "web", casts=False))})


def _problems(node: ir.Node, target: str, casts: bool = True) -> Iterator[str]:
    assert node.graph is not None
    entry = table(target)["operators"].get(node.op_type if not node.domain else f"{node.domain}:{node.op_type}")
    schema = None if node.domain else onnx.defs.get_schema(node.op_type, node.graph.opset_imports.get("", 23), "")
    if entry is None:
        if schema is None or not (schema.has_function or schema.has_context_dependent_function):
            yield node.op_type
        return
    formal = entry.get("inputs") if schema is None else [value.type_str for value in schema.inputs]
    since = 1 if schema is None else schema.since_version
    types: dict[str, set[str]] = {}
    for place, value in enumerate(node.inputs):
        if formal and value is not None and value.dtype is not None:
            types.setdefault(formal[min(place, len(formal) - 1)], set()).add(_name(value.dtype, target if casts else ""))
    kernels = [kernel for kernel in entry["kernels"] if kernel[0] <= since and (kernel[1] is None or since <= kernel[1])]
    if not any(all(types.get(name, set()) <= set(taken) for name, taken in kernel[2].items()) for kernel in kernels):
        yield f"{node.op_type}({', '.join(sorted({one for found in types.values() for one in found}))})"


def _name(dtype: ir.DataType, target: str) -> str:
    name = NAMES.get(dtype) or str(dtype.name).lower()
    return CASTS.get(target, {}).get(name, name)
