"""The machine that a measurement was made on: processor, memory, system and versions of packages."""

import os
import platform
import re
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from onnxport.runtime.processor import cores, quota, saturates

_FEATURES = ("avx2", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16", "asimddp", "i8mm")
_BUSY_SHARE = 0.9
_PACKAGES = ("onnxport", "onnxruntime", "onnxruntime-gpu", "numpy", "tokenizers", "sacrebleu")


def describe(packages: Iterable[str] = ()) -> dict[str, Any]:
    """cpu, cores, quota, features, ram_bytes, os and versions (of what is installed among ours and `packages`).

    saturates: whether sums of products of 8 bits need kernels of their own here, see onnxport.runtime.processor; None without onnxruntime.
    """
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
        "saturates": _saturates(),
        "ram_bytes": _ram_bytes(),
        "os": f"{platform.system()} {platform.release()}",
        "load_average": [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "versions": versions,
    }


def busy(facts: Mapping[str, Any], variants: Mapping[str, Mapping[str, Any]]) -> str:
    """How busy the machine was with other work while variants were timed; "" where it was not. facts: see `describe`.

    It is told by the share of the timed seconds in which the calling thread had a processor: ONNX Runtime's caller works or spins, so that
    it is about 1 where nothing else runs. Where that is not known, by the load average before anything was started.
    """
    shares = [
        values["cpu_share"]
        for name, values in variants.items()
        if name != "pytorch" and values.get("device") == "cpu" and values.get("cpu_share") is not None
    ]
    load, cpus = (facts["load_average"] or [0.0])[0], facts["available_cpus"]
    before = f"load average {load:.1f} on {cpus} CPUs before"
    if not shares:
        return before if load > cpus + 0.5 else ""
    least = min(shares)
    return f"a timed run had a processor for {least:.0%} of its time; {before}" if least < _BUSY_SHARE else ""


def saturation_note(facts: Mapping[str, Any], variants: Iterable[str]) -> str | None:
    """A sentence on the int8 variants among `variants` where the processor lacks VNNI; None elsewhere. facts: see `describe`."""
    slower = [name for name in variants if name in ("int8", "int8-static")]
    if not slower or not facts["saturates"]:
        return None
    return (
        f"{', '.join(slower)}: on this processor without VNNI slower kernels add products of 8 bits, the same answers for more "
        "time; int8-reduced, with weights of 7 bits, is quicker here"
    )


def _saturates() -> bool | None:
    try:
        return saturates()
    except Exception:  # a broken onnxruntime is for `doctor` to report, not to fail on
        return None


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
    total = re.search(r"MemTotal:\s+(\d+) kB", _text("/proc/meminfo"))
    limits = [int(total[1]) * 1024] if total else []
    limits += [int(text) for text in [_text("/sys/fs/cgroup/memory.max").strip()] if text.isdigit()]
    return min(limits) if limits else None
