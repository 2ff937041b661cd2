"""A table of the precisions that a variant can have.

A precision's bound is on `relative_error`: the root mean square of the difference over that of the golden logits (or outputs) about their
mean. It means the same on learned and on random weights, where agreements of tokens depend on how near two tokens are. A variant beyond its
bound fails the export with exit code 3. The bounds are in docs/parity.md too, and what each precision is for in docs/precisions.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from onnxport.errors import DeviceError
from onnxport.quantize.plan import Plan
from onnxport.runtime.sessions import CPU, CUDA, Device

ANY_DEVICE = "any"
REFERENCE = "fp32"  # the variant that calibration data is read through and that others are made from


@dataclass(frozen=True)
class Precision:
    """One precision.

    plan: the schemes of the weights; None where a search finds them.
    relative_error: the largest that a variant may have.
    calibration: whether calibration data is needed, useful (golden inputs serve where there is none) or unused.
    device: the only device that has its kernels; None for any.
    generates: whether models that generate can have it: their caches need a type that NumPy has.
    default: an export makes it where no precision is named.
    """

    name: str
    plan: Plan | None
    relative_error: float
    calibration: Literal["needed", "useful", "unused"] = "unused"
    device: Device | None = None
    generates: bool = True
    default: bool = False

    @property
    def bounds(self) -> dict[str, float]:
        """Metric of the parity → its bound, as the manifest records them."""
        return {"relative_error": self.relative_error}

    @property
    def searched(self) -> bool:
        """Whether its plan is found by a search within a budget."""
        return self.plan is None

    def check_device(self) -> None:
        """Check that graphs of this precision can run here, and so be checked.

        Raises:
            DeviceError: this onnxruntime lacks the only device that has the kernels.
        """
        if self.device is None:
            return
        import onnxruntime

        found = onnxruntime.get_available_providers()
        if self.device.provider not in found:
            raise DeviceError(
                f"{self.name} runs on {self.device.name.upper()} only, and this onnxruntime has {', '.join(found)}: leave {self.name} out "
                "of --precision, or make it where onnxport[gpu] is installed"
            )


# Rows: one kernel for any number of rows, and no row's scale depends on the rows beside it.
# Blocks: nearer to the weights and quicker for a single row, slower for many; sums over blocks depend on the number of rows.
PRECISIONS = {
    row.name: row
    for row in (
        Precision(REFERENCE, Plan({"*": "fp32"}), 1e-4, default=True),
        Precision("fp16", Plan({"*": "fp16"}), 1e-2, "useful", default=True),
        Precision("int8", Plan({"*": "int8-rows"}), 1e-1, "useful", default=True),
        Precision("int8-reduced", Plan({"*": "int8-rows-reduced"}), 1e-1, "useful"),
        Precision("int8-weight", Plan({"*": "int8-blocks"}), 1e-1),
        Precision("int8-static", Plan({"*": "int8-static"}), 2e-1, "needed"),
        Precision("int4", Plan({"*": "int4-blocks64"}), 3e-1),
        Precision("int4-hqq", Plan({"*": "int4-blocks64-asym-hqq"}), 3e-1),
        Precision("int4-gptq", Plan({"*": "int4-blocks64-gptq"}), 3e-1, "needed"),
        Precision("bf16", Plan({"*": "bf16"}), 5e-2, device=CUDA, generates=False),
        Precision("auto", None, 3e-1, "needed"),
    )
}
DEFAULT = tuple(row.name for row in PRECISIONS.values() if row.default)


def device_of(plan: Plan) -> str:
    """The device that a plan's graphs need, a manifest's `target`: "any" where every device has the kernels, else "cpu" or "cuda".

    It is no fusion target: those are in `fusion.targets`.
    """
    if plan.half is not None:
        device = PRECISIONS[plan.half].device
        return ANY_DEVICE if device is None else device.name
    return ANY_DEVICE if set(plan.schemes.values()) == {"fp32"} else CPU.name
