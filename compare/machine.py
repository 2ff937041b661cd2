"""The machine a measurement was made on."""

import os
import platform
import re
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from onnxport.runtime.session import cores, quota

_FEATURES = ("avx2", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16", "asimddp", "i8mm")
X86 = ("x86_64", "AMD64")
VNNI = {"avx512_vnni", "avx_vnni", "amx_int8"}
_PACKAGES = ("onnxport", "onnxruntime", "onnxruntime-gpu", "numpy", "tokenizers", "sacrebleu")


def describe(packages: Iterable[str] = ()) -> dict[str, Any]:
    """cpu, cores, quota, features, ram_bytes, os and versions (of what is installed among ours and `packages`)."""
    facts = _cpuinfo()
    flags = set(facts.get("flags", facts.get("Features", "")).split())
    versions = {"python": platform.python_version()}
    for package in (*_PACKAGES, *packages):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpu": facts.get("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "available_cpus": cores(),
        "cpu_quota": quota(),
        "features": [feature for feature in _FEATURES if feature in flags],
        "ram_bytes": _ram_bytes(),
        "os": f"{platform.system()} {platform.release()}",
        "load_average": [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "versions": versions,
    }


def saturates(facts: Mapping[str, Any]) -> bool:
    """Whether products of 8 bit may be added in 16 bits on a machine as `describe` tells of it: x86 without VNNI (or AMX)."""
    return facts["architecture"] in X86 and bool(facts["features"]) and not VNNI & set(facts["features"])


def saturation_note(facts: Mapping[str, Any], variants: Iterable[str]) -> str | None:
    """What to know of the int8 variants among `variants` on a machine; None where there is nothing."""
    risky = [name for name in variants if name in ("int8", "int8-static")]
    if not risky or not saturates(facts):
        return None
    return (
        f"{', '.join(risky)}: this processor has no VNNI, so that products of 8 bit may saturate and cost quality that they do not cost "
        "elsewhere; int8-reduced, with weights of 7 bits, cannot"
    )


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _cpuinfo() -> dict[str, str]:
    """The first processor's fields of /proc/cpuinfo; empty where there is none."""
    pairs = (line.partition(":") for line in _text("/proc/cpuinfo").split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _ram_bytes() -> int | None:
    found = re.search(r"MemTotal:\s+(\d+) kB", _text("/proc/meminfo"))
    limits = [int(found[1]) * 1024] if found else []
    limits += [int(text) for text in [_text("/sys/fs/cgroup/memory.max").strip()] if text.isdigit()]
    return min(limits) if limits else None
