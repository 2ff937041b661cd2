"""How far a variant may be from the original module's own answers; beyond it, an export fails with exit code 3.

`relative_error` is the root mean square of the difference over that of the golden logits (or outputs) about their mean; it stands on
learned and on random weights alike, where agreements of tokens depend on how near two tokens are. The table is in docs/parity.md too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnxport.errors import DeviceError
from onnxport.quantize.plan import Plan
from onnxport.runtime.sessions import PROVIDERS
from onnxport.runtime.verify import check_bounds

if TYPE_CHECKING:
    pass


BOUNDS: dict[str, dict[str, float]] = {
    "fp32": {"relative_error": 1e-4},
    "fp16": {"relative_error": 1e-2},
    "int8": {"relative_error": 1e-1},
    "int8-reduced": {"relative_error": 1e-1},
    "int8-weight": {"relative_error": 1e-1},
    "int8-static": {"relative_error": 2e-1},
    "int4": {"relative_error": 3e-1},
    "int4-hqq": {"relative_error": 3e-1},
    "int4-gptq": {"relative_error": 3e-1},
    "bf16": {"relative_error": 5e-2},
    "auto": {"relative_error": 3e-1},
}


def check_bf16() -> None:
    """DeviceError where bf16 could be neither checked nor run: ONNX Runtime has kernels for it on a GPU only."""
    import onnxruntime

    found = onnxruntime.get_available_providers()
    if PROVIDERS["cuda"] not in found:
        raise DeviceError(
            f"bf16 runs on CUDA only, and this onnxruntime has {', '.join(found)}: leave bf16 out of --precision, or make it where "
            "onnxport[gpu] is installed"
        )


def check(precision: str, parity: dict[str, Any]) -> dict[str, Any]:
    """The parity of a variant with its bounds in it.

    Raises:
        ParityError: a value is not finite or beyond its bound.
    """
    check_bounds(precision, BOUNDS[precision], parity, "leave it out with --precision, or report this if it is fp32")
    return {**parity, "bounds": BOUNDS[precision]}


PRECISIONS = tuple(BOUNDS)
CALIBRATED = ("int8-static", "int4-gptq", "auto")
CALIBRATABLE = {"int8", "int8-reduced", "fp16"}  # take calibration data, and the golden inputs where there is none
DEFAULT = ("fp32", "fp16", "int8")


# Rows: one kernel for any number of rows, and no row's scale depends on the rows beside it.
# Blocks: nearer to the weights and quicker for a single row, slower for many; sums over blocks depend on the number of rows.
RECIPES = {
    "fp32": Plan({"*": "fp32"}),
    "fp16": Plan({"*": "fp16"}),
    "bf16": Plan({"*": "bf16"}),
    "int8": Plan({"*": "int8-rows"}),
    "int8-reduced": Plan({"*": "int8-rows-reduced"}),
    "int8-weight": Plan({"*": "int8-blocks"}),
    "int8-static": Plan({"*": "int8-static"}),
    "int4": Plan({"*": "int4-blocks64"}),
    "int4-hqq": Plan({"*": "int4-blocks64-asym-hqq"}),
    "int4-gptq": Plan({"*": "int4-blocks64-gptq"}),
}
