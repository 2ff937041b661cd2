"""The machine a measurement was made on."""

import os
import platform
import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

_FEATURES = ("avx2", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16", "asimddp", "i8mm")
_PACKAGES = ("onnxport", "onnxruntime", "onnxruntime-gpu", "numpy", "tokenizers", "sacrebleu")


def available_cpus() -> int:
    """Processors this process may use: affinity and the container's quota counted. At least 1."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:
        count = os.cpu_count() or 1
    quota = _quota()
    return max(1, min(count, int(quota))) if quota else max(1, count)


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
        "available_cpus": available_cpus(),
        "cpu_quota": _quota(),
        "features": [feature for feature in _FEATURES if feature in flags],
        "ram_bytes": _ram_bytes(),
        "os": f"{platform.system()} {platform.release()}",
        "load_average": [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "versions": versions,
    }


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _cpuinfo() -> dict[str, str]:
    """The first processor's fields of /proc/cpuinfo; empty where there is none."""
    pairs = (line.partition(":") for line in _text("/proc/cpuinfo").split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _quota() -> float | None:
    """Processors that the container's quota allows, or None."""
    version2 = _text("/sys/fs/cgroup/cpu.max").split()
    if len(version2) == 2 and version2[0].isdigit():
        return int(version2[0]) / int(version2[1])
    quota = _text("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").strip()
    period = _text("/sys/fs/cgroup/cpu/cpu.cfs_period_us").strip()
    if quota.isdigit() and period.isdigit() and int(quota) > 0:
        return int(quota) / int(period)
    return None


def _ram_bytes() -> int | None:
    found = re.search(r"MemTotal:\s+(\d+) kB", _text("/proc/meminfo"))
    limits = [int(found[1]) * 1024] if found else []
    limits += [int(text) for text in [_text("/sys/fs/cgroup/memory.max").strip()] if text.isdigit()]
    return min(limits) if limits else None
