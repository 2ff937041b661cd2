"""What devices confirmed of a bundle: confirmations.json beside bundle.json, which no hash and no signature covers.

    {"int8@cuda": [{"device": "cuda", "files": "…", "date": "2026-01-31", "parity": {…}, "machine": {…}}]}

A variant for another target is checked on the CPU when it is made. Where `verify --device cuda --record` replayed the golden answers within
their bounds on such a device, this file says so. `files` is the hash of all that the variant then was, so that a variant which was made
anew is not taken for confirmed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from onnxport.errors import BundleError
from onnxport.files import read_regular
from onnxport.runtime.bundle.publish import write_file
from onnxport.runtime.bundle.reader import CONFIRMATIONS, Bundle

MOST = 1 << 24  # bytes
Confirmation = dict[str, Any]


def confirmations(bundle: Bundle) -> dict[str, list[Confirmation]]:
    """Of each variant what was confirmed of it as it is now, the newest last; variants without any are left out. BundleError."""
    place = bundle.path / CONFIRMATIONS
    try:
        found = json.loads(read_regular(place, MOST))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as e:
        raise BundleError(
            f"{place}: cannot be read as JSON ({type(e).__name__}); remove it, it is no part of what the bundle needs"
        ) from None
    valid: dict[str, list[Confirmation]] = {}
    for name in bundle.variants:
        entries = found.get(name) if isinstance(found, dict) else None
        same = [one for one in entries or () if isinstance(one, dict) and one.get("files") == _digest(bundle, name)]
        valid |= {name: same} if same else {}
    return valid


def record(bundle: Bundle, device: str, found: Mapping[str, Mapping[str, Any]], machine: Mapping[str, Any]) -> None:
    """Write that variants were right on a device, beside what is there of others and other machines.

    found: name → parity that was measured, within its bounds. machine: what it was measured on. BundleError, OutputError.
    """
    known = confirmations(bundle)
    for name, parity in found.items():
        entry = {
            "device": device,
            "files": _digest(bundle, name),
            "date": datetime.now(UTC).date().isoformat(),
            "parity": dict(parity),
            "machine": dict(machine),
        }
        others = [one for one in known.get(name, []) if (one["device"], one.get("machine")) != (device, entry["machine"])]
        known[name] = [*others, entry]
    text = json.dumps(known, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    write_file(bundle.path / CONFIRMATIONS, text.encode(), force=True)


def _digest(bundle: Bundle, name: str) -> str:
    """Of all files that a variant is, by their hashes in the manifest."""
    listed = "".join(f"{file} {bundle.files[file].sha256}\n" for file in sorted(bundle.variants[name].files))
    return hashlib.sha256(listed.encode()).hexdigest()
