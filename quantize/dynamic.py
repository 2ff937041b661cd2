"""The default INT8 recipe: which kernel every weight gets, as a table, and the plan that says what each got."""

from __future__ import annotations

import onnx_ir as ir

from onnxport.errors import CheckpointError
from onnxport.quantize import blocks, rows
from onnxport.quantize.fusion.constants import fold_constants
from onnxport.quantize.fusion.core import remove_dead
from onnxport.quantize.linear import Linear, linears, lookups

# precision -> what the weight is for -> scheme.
# Rows: one kernel for any number of rows, and no row's scale depends on the rows beside it.
# Blocks: nearer to the weights and quicker for a single row, slower for many; sums over blocks depend on the number of rows.
RECIPES: dict[str, dict[str, str]] = {
    "int8": {"linear": "int8-rows", "lookup": "int8-rows"},
    "int8-weight": {"linear": "int8-blocks", "lookup": "int8-blocks"},
}
# What the kernels take; a weight outside stays in float32, and the plan says so.
FEWEST_INPUTS = 16  # K: the smallest block
FEWEST_ROWS = 16  # rows of a table: smaller ones (types, languages) cost nothing as they are
KEPT = "float32"


def to_int8(models: dict[str, ir.Model], recipe: dict[str, str] | None = None) -> tuple[dict[str, ir.Model], dict[str, str]]:
    """Quantized copies of the graphs of a variant (role -> graph, float32, fused or standard) and the plan.

    Weights of linear layers and token embeddings become 8-bit; biases, norms, positions and everything between stay float32, as do
    caches and logits. The plan maps the PyTorch name of a weight to its scheme: `int8-rows`, `int8-blocks<size>`, `float32`.
    `recipe` maps "linear" and "lookup" to a scheme, that of `int8` by default.
    """
    table = RECIPES["int8"] if recipe is None else recipe
    plan: dict[str, str] = {}
    done: dict[str, ir.Model] = {}
    for role, model in models.items():
        done[role] = copy = model.clone()
        fold_constants(copy.graph)
        _linears(copy.graph, table["linear"], plan)
        _lookups(copy.graph, table["lookup"], plan)
        remove_dead(copy.graph)
        copy.graph.sort()
    if not any("int8" in scheme for scheme in plan.values()):
        raise CheckpointError(
            f"no weight of this model can be int8: it has no linear layer of at least {FEWEST_INPUTS} inputs and no token embedding; "
            "leave int8 out of --precision"
        )
    return done, plan


def _note(plan: dict[str, str], parameter: str, scheme: str) -> None:
    """A weight with two uses has two schemes only if they differ."""
    known = plan.get(parameter, "").split("+") if parameter in plan else []
    plan[parameter] = "+".join(known if scheme in known else [*known, scheme])


def _linears(graph: ir.Graph, scheme: str, plan: dict[str, str]) -> None:
    shared: dict[ir.Value, rows.Quantized] = {}
    found: list[Linear] = list(linears(graph))
    for linear in found:
        if scheme == KEPT or linear.shape[0] < FEWEST_INPUTS:
            _note(plan, linear.parameter, KEPT)
        elif scheme == "int8-rows":
            if linear.x not in shared:
                shared[linear.x] = rows.quantize_rows(graph, linear.node, linear.x)
            rows.replace(graph, linear, shared[linear.x])
            _note(plan, linear.parameter, "int8-rows")
        else:
            size = blocks.replace_linear(graph, linear)
            _note(plan, linear.parameter, f"int8-blocks{size}")


def _lookups(graph: ir.Graph, scheme: str, plan: dict[str, str]) -> None:
    for lookup in list(lookups(graph)):
        rows_of, k = lookup.table.shape
        if scheme == KEPT or k < FEWEST_INPUTS or rows_of < FEWEST_ROWS:
            _note(plan, lookup.parameter, KEPT)
        elif scheme == "int8-rows":
            rows.replace_lookup(graph, lookup)
            _note(plan, lookup.parameter, scheme)
        else:
            _note(plan, lookup.parameter, f"int8-blocks{blocks.replace_lookup(graph, lookup)}")
