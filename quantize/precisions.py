"""A table of the precisions that a variant can have.

A variant beyond its bounds is left out of the bundle, and the export ends with exit code 3. A model that reads text and knows its language
is judged on text: by what it thinks comes next, or by its vectors and labels. All others, and those with random weights, are judged by
`relative_error`: the root mean square of the difference over that of the golden logits (or outputs) about their mean. It means the same on
learned and on random weights, where agreements of tokens depend on how near two tokens are; but on learned weights and random ids it is no
measure of what a variant is worth. The bounds are in docs/parity.md too, and what each precision is for in docs/precisions.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from onnxport.errors import DeviceError, UsageError
from onnxport.quantize.plan import Plan
from onnxport.runtime.bundle.variant_names import TARGETS, split
from onnxport.runtime.other_names import hint
from onnxport.runtime.sessions import CPU, CUDA, Device

ANY_DEVICE = "any"
REFERENCE = "fp32"  # the variant that calibration data is read through and that others are made from


@dataclass(frozen=True)
class Bounds:
    """What a variant's parity may be at most, or of agreements and cosines at least; metrics are those of `runtime.verify.replay`.

    always: the relative error counts also where there are texts to judge by.
    """

    relative_error: float
    kl: float
    top1_agreement: float
    perplexity_change: float
    cosine: float
    label_agreement: float
    always: bool = False

    def of(self, parity: Mapping[str, Any]) -> dict[str, float]:
        """The bounds that count, by metric: of texts where some were measured, else that of the relative error."""
        measured = [name for name in ON_TEXTS if parity.get(name) is not None]
        return {name: getattr(self, name) for name in (["relative_error"] if self.always or not measured else []) + measured}


ON_TEXTS = ("kl", "top1_agreement", "perplexity_change", "cosine", "label_agreement")

SAME = Bounds(1e-4, kl=1e-6, top1_agreement=0.999, perplexity_change=1e-4, cosine=0.999999, label_agreement=1.0, always=True)
HALF = Bounds(1e-2, kl=1e-3, top1_agreement=0.99, perplexity_change=0.005, cosine=0.9999, label_agreement=0.99)
BRAIN_HALF = replace(HALF, relative_error=5e-2, cosine=0.999, label_agreement=0.97)
EIGHT_BITS = Bounds(1e-1, kl=0.01, top1_agreement=0.94, perplexity_change=0.02, cosine=0.99, label_agreement=0.95)
FOUR_BITS = Bounds(3e-1, kl=0.10, top1_agreement=0.80, perplexity_change=0.12, cosine=0.95, label_agreement=0.90)


@dataclass(frozen=True)
class Precision:
    """One precision.

    plan: the schemes of the weights; None where a search finds them. on_texts: those of a language model that knows the kit's texts, which
    can be fitted to them; None for `plan`.
    bounds: what the parity of a variant may be.
    calibration: whether calibration data is needed, useful (where there is none, the kit's texts serve models that read text, and golden
    inputs all others) or unused.
    device: the only device that has its kernels; None for any.
    generates: whether models that generate can have it: their caches need a type that NumPy has.
    default: an export makes it where no precision is named.
    by_rule: nothing is tried on texts: what is sensitive in a language model is told by a rule, see `sensitive_weights.by_rule`.
    """

    name: str
    plan: Plan | None
    bounds: Bounds
    calibration: Literal["needed", "useful", "unused"] = "unused"
    device: Device | None = None
    generates: bool = True
    default: bool = False
    by_rule: bool = False
    on_texts: Plan | None = None

    @property
    def relative_error(self) -> float:
        """The largest that a variant may have where it is judged by that."""
        return self.bounds.relative_error

    @property
    def searched(self) -> bool:
        """Whether its plan is found by a search within a budget."""
        return self.plan is None

    @property
    def own_cache(self) -> bool:
        """Whether its key/value cache keeps the type of the graph, for its bounds are narrower than what 8 bits lose."""
        return self.name == REFERENCE or (self.plan is not None and self.plan.half is not None)

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
        Precision(REFERENCE, Plan({"*": "fp32"}), SAME, default=True),
        Precision("fp16", Plan({"*": "fp16"}), HALF, "useful", default=True),
        Precision("int8", Plan({"*": "int8-rows"}), EIGHT_BITS, "useful", default=True, on_texts=Plan({"*": "int8-rows-rotated"})),
        Precision(
            "int8-reduced", Plan({"*": "int8-rows-reduced"}), EIGHT_BITS, "useful", on_texts=Plan({"*": "int8-rows-rotated-reduced"})
        ),
        Precision("int8-weight", Plan({"*": "int8-blocks"}), EIGHT_BITS, "useful", on_texts=Plan({"*": "int8-blocks32"})),
        Precision("int8-static", Plan({"*": "int8-static"}), replace(EIGHT_BITS, relative_error=2e-1), "needed"),
        Precision("int4", Plan({"*": "int4-blocks64"}), FOUR_BITS, "useful", on_texts=Plan({"*": "int4-blocks32-asym-rotated-gptq"})),
        Precision("int4-rtn", Plan({"*": "int4-blocks32-asym"}), FOUR_BITS, by_rule=True),
        Precision("int4-hqq", Plan({"*": "int4-blocks64-asym-hqq"}), FOUR_BITS, "useful"),
        Precision("int4-gptq", Plan({"*": "int4-blocks64-gptq"}), FOUR_BITS, "needed"),
        Precision("bf16", Plan({"*": "bf16"}), BRAIN_HALF, device=CUDA, generates=False),
        Precision("auto", None, FOUR_BITS, "needed"),
    )
}
DEFAULT = tuple(row.name for row in PRECISIONS.values() if row.default)
# The precision whose recipe makes another one on targets that have no products of integers; None where there is none.
_ELSEWHERE = {"int8": "int8-weight", "int8-reduced": None, "int8-static": None, "auto": None}


def made_as(variant: str) -> Precision:
    """The row whose recipe makes a variant. UsageError: its precision or its target is not known, or the target cannot have it."""
    name, target = split(variant)
    if name not in PRECISIONS:
        raise UsageError(f"precision {name!r} is not known: expected some of {', '.join(PRECISIONS)}{hint('precision', name)}")
    if target not in TARGETS:
        raise UsageError(f"target {target!r} is not known: expected some of {', '.join(TARGETS)}")
    made = name if target == CPU.name else _ELSEWHERE.get(name, name)
    device = None if made is None else PRECISIONS[made].device
    if made is None or (device is not None and target not in (CPU.name, device.name)):
        some = ", ".join(one for one in PRECISIONS if _ELSEWHERE.get(one, one) is not None)
        raise UsageError(f"{variant}: {target} has no kernels for {name}, expected one of {some}; leave {variant} out of --precision")
    return PRECISIONS[made]


def device_of(plan: Plan) -> str:
    """The device that a plan's graphs need, a manifest's `target`: "any" where every device has the kernels, else "cpu" or "cuda".

    It is no fusion target: those are in `fusion.targets`.
    """
    if plan.kv is not None:
        return CPU.name
    if plan.half is not None:
        device = PRECISIONS[plan.half].device
        return ANY_DEVICE if device is None else device.name
    return ANY_DEVICE if set(plan.schemes.values()) == {"fp32"} else CPU.name
