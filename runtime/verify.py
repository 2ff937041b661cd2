"""Is a bundle whole and right: hashes, graphs, golden answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxport.errors import ParityError
from onnxport.runtime.bundle import Bundle
from onnxport.runtime.parity import replay
from onnxport.runtime.session import Sessions


def verify(path: str | Path, threads: int | None = None) -> dict[str, Any]:
    """Check everything that can be checked on this machine.

    Returns {"path", "files" (how many), "unlisted" (files the manifest does not name), "search" (they load), "variants": name → parity
    found now}, each on the CPU where it was not made for CUDA alone. BundleError for a changed, missing or unloadable file; DeviceError for
    a variant whose device cannot be had; ParityError when golden answers are not reproduced within the bounds
    that the manifest records.
    """
    bundle = Bundle.open(path, verify=True)
    sessions = Sessions.choose("cpu", threads)
    for file in bundle.search.values():
        sessions.open(bundle.file(file))
    variants = {}
    for name, variant in bundle.variants.items():
        device = "cuda" if variant.target == "cuda" else "cpu"
        variants[name] = replay(bundle, name, device, threads)
        check_bounds(name, variant.parity.get("bounds", {}), variants[name])
    return {
        "path": str(bundle.path), "files": len(bundle.files), "unlisted": bundle.unlisted(), "search": sorted(bundle.search),
        "variants": variants,
    }  # fmt: skip


def check_bounds(
    name: str, bounds: Mapping[str, float], found: Mapping[str, Any], advice: str = "export the model again on this version"
) -> None:
    """ParityError when what was `found` of variant `name` breaks a bound: agreements have a least value, all else a greatest.

    Nothing passes by absence: not a variant without bounds, nor a metric that was not measured.
    """
    if not found.get("finite"):
        raise ParityError(f"variant {name}: values that are not finite, expected the golden answers; {advice}")
    if not isinstance(bounds, Mapping) or not bounds:
        raise ParityError(f"variant {name}: no bounds are recorded, expected at least relative_error; {advice}")
    for metric, bound in bounds.items():
        if isinstance(bound, bool) or not isinstance(bound, (int, float)):
            raise ParityError(f"variant {name}: the bound of {metric} is {bound!r}, expected a number; {advice}")
        value, agreement = found.get(metric), metric.endswith("agreement")
        if value is None or not (value >= bound if agreement else value <= bound):
            relation = "at least" if agreement else "at most"
            shown = "not measured" if value is None else f"{value:.3g}"
            raise ParityError(f"variant {name}: {metric} is {shown}, expected {relation} {bound:g}; {advice}")
