"""Is a bundle whole and right: hashes, graphs, golden answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnxport.errors import ParityError
from onnxport.runtime.bundle import Bundle, Variant
from onnxport.runtime.parity import replay
from onnxport.runtime.session import Sessions


def verify(path: str | Path, threads: int | None = None) -> dict[str, Any]:
    """Check everything that can be checked on this machine.

    Returns {"path", "files" (how many), "unlisted" (files the manifest does not name), "search" (they load), "variants": name → parity
    found now}. BundleError for a changed, missing or unloadable file; ParityError when golden answers are not reproduced within the bounds
    that the manifest records.
    """
    bundle = Bundle.open(path, verify=True)
    sessions = Sessions.choose("cpu", threads)
    for file in bundle.search.values():
        sessions.open(bundle.file(file))
    variants = {}
    for name, variant in bundle.variants.items():
        variants[name] = replay(bundle, name, threads=threads)
        check_bounds(variant, variants[name])
    return {
        "path": str(bundle.path), "files": len(bundle.files), "unlisted": bundle.unlisted(), "search": sorted(bundle.search),
        "variants": variants,
    }  # fmt: skip


def check_bounds(variant: Variant, found: dict[str, Any]) -> None:
    """ParityError when `found` breaks a bound of the variant: agreements have a least value, all else a greatest."""
    if not found["finite"]:
        raise ParityError(f"variant {variant.name}: values that are not finite, expected the golden answers; export the model again")
    bounds = variant.parity.get("bounds", {})
    for metric, bound in bounds.items():
        value = found.get(metric)
        agreement = metric.endswith("agreement")
        if value is None or not (value >= bound if agreement else value <= bound):
            relation = "at least" if agreement else "at most"
            shown = "not measured" if value is None else f"{value:.3g}"
            raise ParityError(
                f"variant {variant.name}: {metric} is {shown}, expected {relation} {bound:g}; export the model again on this version"
            )
