"""How far a variant may be from the original module's own answers; beyond it, an export fails with exit code 3.

`relative_error` is the root mean square of the difference over that of the golden logits (or outputs) about their mean;
`greedy_agreement` is the share of golden greedy tokens up to the first that differs. The table stands in docs/parity.md too.
"""

from typing import Any

from onnxport.errors import ParityError

BOUNDS: dict[str, dict[str, float]] = {
    "fp32": {"relative_error": 1e-4},
    "fp16": {"relative_error": 1e-2},
    "int8": {"relative_error": 1e-1},
}


def check(name: str, precision: str, parity: dict[str, Any]) -> dict[str, Any]:
    """The parity of variant `name` with its bounds in it.

    Raises:
        ParityError: a value is not finite or beyond its bound.
    """
    bounds = BOUNDS[precision]
    if not parity.get("finite", True):
        raise ParityError(f"variant {name} gives values that are not finite on the golden inputs: leave it out with --precision")
    for metric, bound in bounds.items():
        if not parity[metric] <= bound:
            raise ParityError(
                f"variant {name} is too far from the original module: {metric} {parity[metric]:.3g}, bound {bound:g}; "
                "leave the variant out with --precision, or report this if it is fp32"
            )
    return {**parity, "bounds": bounds}
