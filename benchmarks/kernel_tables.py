"""Writes the table of a provider's kernels and their types, as an installed onnxruntime registers them.

    python benchmarks/kernel_tables.py CUDAExecutionProvider quantize/targets/kernels/cuda.json

For CUDA's the package is onnxruntime-gpu; without a GPU it loads over tests/support/fake_cuda. For the web's it is onnxruntime of the
version of npm's packages: WebAssembly has the CPU's kernels. `make kernel-tables` makes both environments and tables.
docs/OperatorKernels.md of ONNX Runtime is made of the same registry.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as state

OLDEST = 17  # opset: kernels for older operators alone are left out
NEWEST = 1 << 20


def table(provider: str) -> dict[str, Any]:
    """Operator → the names of its inputs' types, for operators that are not ONNX's, and its kernels: [since, until, name → types]."""
    schemas = {(schema.domain, schema.name): schema for schema in state.get_all_operator_schema()}
    found: dict[str, dict[str, Any]] = {}
    for kernel in state.get_all_opkernel_def():
        since, until = kernel.version_range
        onnx_domain = kernel.domain in ("", "ai.onnx")
        if kernel.provider != provider or (onnx_domain and until < OLDEST):
            continue
        name = kernel.op_name if onnx_domain else f"{kernel.domain}:{kernel.op_name}"
        entry = found.setdefault(name, {"kernels": []})
        schema = schemas.get((kernel.domain, kernel.op_name))
        if not onnx_domain and schema is not None:
            entry["inputs"] = [value.typeStr for value in schema.inputs]
        types = {key: sorted(_plain(values)) for key, values in sorted(kernel.type_constraints.items())}
        entry["kernels"].append([since, None if until > NEWEST else until, types])
    for entry in found.values():
        entry["kernels"] = _joined(entry["kernels"])
    return dict(sorted(found.items()))


def _plain(types: Iterable[str]) -> list[str]:
    return [name.removeprefix("tensor(").removesuffix(")") for name in types if name.startswith("tensor(")]


def _joined(kernels: list[list[Any]]) -> list[list[Any]]:
    """Kernels that differ in the types of one name are one."""
    left = sorted(kernels, key=json.dumps)
    joined = True
    while joined:
        joined = False
        for i, one in enumerate(left):
            for other in left[i + 1 :]:
                differing = [key for key in one[2] if one[2][key] != other[2].get(key)]
                if one[:2] == other[:2] and set(one[2]) == set(other[2]) and len(differing) <= 1:
                    for key in differing:
                        one[2][key] = sorted({*one[2][key], *other[2][key]})
                    left.remove(other)
                    joined = True
                    break
            if joined:
                break
    return left


def main(provider: str, place: str) -> None:
    found = table(provider)
    lines = [f" {json.dumps(name)}: {json.dumps(entry)}" for name, entry in found.items()]
    head = json.dumps({"onnxruntime": onnxruntime.__version__, "provider": provider})[1:-1]
    Path(place).write_text("{\n " + head + ',\n "operators": {\n' + ",\n".join(lines) + "\n}}\n")
    print(f"{place}: {len(found)} operators of {provider} in onnxruntime {onnxruntime.__version__}")


if __name__ == "__main__":
    main(*sys.argv[1:])
