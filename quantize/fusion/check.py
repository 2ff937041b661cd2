"""A check of the kernels that really run: ONNX Runtime writes the graph after its own optimizations, and its nodes are counted."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

from onnxport.errors import FusionError
from onnxport.graph.edit import Miss, is_op
from onnxport.graph.normalize import name_shapes
from onnxport.graph.session import open_file
from onnxport.quantize.fusion.rule import Rule
from onnxport.quantize.fusion.targets import TARGETS

if TYPE_CHECKING:
    import onnxruntime


def node_counts(path: str | Path) -> dict[str, int]:
    """How many nodes of each type the graph in `path` has once the CPU provider of ONNX Runtime has optimized it."""
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "optimized.onnx"

        def write_optimized(options: onnxruntime.SessionOptions) -> None:
            options.optimized_model_filepath = str(written)
            # Weights stay where they are: only the nodes are asked for.
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
            options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")

        open_file(path, adjust=write_optimized)
        model = onnx.load(str(written), load_external_data=False)
    return dict(Counter(node.op_type for node in model.graph.node))


def check_runs(path: str | Path, expected: dict[str, int], rules_of: str = "cpu") -> dict[str, int]:
    """Compare the kernels that really run with what fusion should have reached; returns the count found for each rule of `expected`.

    The graph is optimized as on the CPU; `rules_of` names the fusion target whose rules are counted. Rules that it does not use, and rules
    that only remove nodes, leave nothing to count and are passed over. Raises `FusionError` naming rule, found, expected, and the reason of
    the first failed match.
    """
    known = {rule.name for row in TARGETS.values() for rule in row.all_rules}
    by_name = {rule.name: rule for rule in TARGETS[rules_of].all_rules}
    running = node_counts(path)
    found: dict[str, int] = {}
    for name, count in expected.items():
        if name not in known:
            raise FusionError(
                f"{Path(path).name}: fusion rule '{name}' is not known, expected one of {sorted(known)}; correct the expectation"
            )
        if name not in by_name or not by_name[name].kernel:
            continue
        found[name] = running.get(by_name[name].kernel, 0)
        if found[name] != count:
            raise FusionError(
                f"{Path(path).name}: {name} found {found[name]} times, expected {count}; {_reason(path, by_name[name])}; "
                "make the module match the rule, or correct the expectation"
            )
    return found


def _reason(path: str | Path, rule: Rule) -> str:
    """Why the rule did not apply to what is left in the file."""
    model = ir.load(str(path))
    name_shapes(model)  # a stored graph has none inside
    graph = model.graph
    for node in graph:
        if is_op(node, rule.anchor):
            try:
                rule.check(graph, rule.pattern(node))
            except Miss as reason:
                return f"at {node.name or node.outputs[0].name}: {reason}"
    return f"no {rule.anchor} is left in the file, so the model has fewer of them or ONNX Runtime replaced the kernel"
