"""Which variants of which bundles are measured, and under which names."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from onnxport.errors import UsageError
from onnxport.runtime.bundle import Bundle

Entrant = tuple[Bundle, str]  # a bundle and one of its variants


def open_others(bundle: Bundle, paths: Sequence[str | Path]) -> dict[str, Bundle]:
    """Bundles to stand beside `bundle`, by names of their own: each's name, numbered where it is taken. UsageError: another task."""
    found: dict[str, Bundle] = {}
    for path in paths:
        other = Bundle.open(path)
        if other.task != bundle.task:
            raise UsageError(f"{path} is for {other.task}, {bundle.path} for {bundle.task}; compare bundles of one task")
        plain = re.sub(r"[^\w.-]+", "-", other.name) or "other"
        taken, number = {bundle.name, *found}, 2
        name = plain
        while name in taken:
            name, number = f"{plain}-{number}", number + 1
        found[name] = other
    return found


def entrants(bundle: Bundle, others: dict[str, Bundle], precisions: Sequence[str] | None, reference: bool) -> dict[str, Entrant]:
    """What is measured by name: the bundle's variants under their own, those of others as NAME/VARIANT.

    precisions: such names; a variant's alone means that of every bundle that has it; None is all. reference: the bundle's fp32 (its default
    where there is none) is measured in any case, and comes first. UsageError: a name that no bundle has.
    """
    every: dict[str, Entrant] = {name: (bundle, name) for name in bundle.variants}
    every |= {f"{label}/{name}": (other, name) for label, other in others.items() for name in other.variants}
    for name in precisions or ():
        if not any(name in (full, variant) for full, (_, variant) in every.items()):
            close = difflib.get_close_matches(name, every, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            has, holds = ("bundles have", "they hold") if others else ("bundle has", "it holds")
            raise UsageError(f"the {has} no variant {name!r}; {holds} {', '.join(every)}{hint}")
    plain = "fp32" if "fp32" in bundle.variants else bundle.default
    asked = [full for full, (_, variant) in every.items() if precisions is None or full in precisions or variant in precisions]
    return {name: every[name] for name in dict.fromkeys([plain] * reference + asked)}
