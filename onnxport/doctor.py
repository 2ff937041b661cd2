"""What this machine can do for onnxport: processor, providers, versions, and known clashes."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from onnxport import __version__

PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "tokenizers", "torch", "onnx", "onnxscript", "transformers", "sacrebleu")
FEATURES = ("avx2", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm")


def examine() -> dict[str, Any]:
    """Facts and problems of this machine, as plain values."""
    from onnxport.runtime.session import available_threads

    versions = {name: found for name in PACKAGES if (found := _version(name)) is not None}
    features = _features()
    providers: list[str] = []
    problems: list[str] = []
    try:
        import onnxruntime

        providers = onnxruntime.get_available_providers()
    except ImportError as error:
        problems.append(f"onnxruntime cannot be imported ({error}): pip install onnxport[cpu] or onnxport[gpu]")
    if "onnxruntime" in versions and "onnxruntime-gpu" in versions:
        problems.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: "
            "uninstall both, then install the one that you need"
        )
    elif "onnxruntime-gpu" in versions and "CUDAExecutionProvider" not in providers:
        problems.append(
            "onnxruntime-gpu is installed but offers no CUDAExecutionProvider: another wheel may have overwritten it; reinstall it"
        )
    notes = []
    if platform.machine() in ("x86_64", "AMD64") and not {"avx512_vnni", "avx_vnni"} & features.keys():
        notes.append("no VNNI: int8 is slower here, and its multiply-add may saturate; compare int8 with fp32 before you deploy it")
    return {
        "onnxport": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _model_name(),
        "cores": os.cpu_count(),
        "threads": available_threads(),
        "memory_bytes": _memory(),
        "features": sorted(features),
        "providers": providers,
        "versions": versions,
        "problems": problems,
        "notes": notes,
    }


def render(findings: dict[str, Any]) -> str:
    """The findings as text."""
    memory = findings["memory_bytes"]
    lines = [
        f"onnxport {findings['onnxport']}, Python {findings['python']}, {findings['system']}",
        f"processor  {findings['processor']}: {findings['cores']} cores, {findings['threads']} threads granted",
        f"features   {', '.join(findings['features']) or 'unknown'}",
        f"memory     {memory / 2**30:.1f} GiB" if memory else "memory     unknown",
        f"providers  {', '.join(findings['providers']) or 'none'}",
        f"packages   {', '.join(f'{name} {version}' for name, version in findings['versions'].items())}",
    ]
    lines += [f"problem    {text}" for text in findings["problems"]]
    lines += [f"note       {text}" for text in findings["notes"]]
    lines.append("something is wrong: see above" if findings["problems"] else "nothing is wrong")
    return "\n".join(lines)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpuinfo(*keys: str) -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip().lower() in keys:
                return value.strip()
    except OSError:
        pass
    return ""


def _features() -> dict[str, None]:
    present = set(_cpuinfo("flags", "features").split())
    return {name: None for name in FEATURES if name in present}


def _model_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
