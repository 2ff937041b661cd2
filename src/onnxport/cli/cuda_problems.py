"""What onnxruntime-gpu lacks on this machine: the driver, CUDA's libraries, a version that fits."""

from __future__ import annotations

import contextlib
import ctypes
import io
from collections.abc import Iterator, Mapping
from typing import Any

# Libraries that its CUDA provider loads, by the version of CUDA that it was built for, and the package that brings each.
LIBRARIES = {
    "13": {
        "libcudart.so.13": "nvidia-cuda-runtime",
        "libcublas.so.13": "nvidia-cublas",
        "libcublasLt.so.13": "nvidia-cublas",
        "libcurand.so.10": "nvidia-curand",
        "libcudnn.so.9": "nvidia-cudnn-cu13",
    },
    "12": {
        "libcudart.so.12": "nvidia-cuda-runtime-cu12",
        "libcublas.so.12": "nvidia-cublas-cu12",
        "libcublasLt.so.12": "nvidia-cublas-cu12",
        "libcurand.so.10": "nvidia-curand-cu12",
        "libcudnn.so.9": "nvidia-cudnn-cu12",
    },
}
OLDEST = (1, 31)  # onnxruntime-gpu whose kernels variants for CUDA are made of


def cuda_problems(onnxruntime: Any, gpu: Mapping[str, Any]) -> Iterator[str]:
    """What stands in the way of an installed onnxruntime-gpu, a sentence each with what to do. gpu: see compare.measure.gpu."""
    built_for = str(getattr(onnxruntime, "cuda_version", "") or "")
    if "reason" in gpu:
        yield f"onnxruntime-gpu is installed, and CUDA cannot run: {gpu['reason']}; install NVIDIA's driver, or onnxport[cpu] for the CPU"
    elif built_for and _numbers(gpu["cuda"]) < _numbers(built_for.split(".")[0]):
        yield (
            f"onnxruntime-gpu is built for CUDA {built_for}, and the driver {gpu['driver']} takes CUDA {gpu['cuda']} at most: "
            "install a newer driver, or an onnxruntime-gpu for that CUDA"
        )
    if _numbers(onnxruntime.__version__)[:2] < OLDEST:
        yield f"onnxruntime-gpu is {onnxruntime.__version__}, expected {'.'.join(map(str, OLDEST))} or newer: upgrade it"
    missing = _missing(onnxruntime, LIBRARIES.get(built_for.split(".")[0], {}))
    if missing:
        packages = " ".join(dict.fromkeys(missing.values()))
        yield f"CUDA's {', '.join(missing)} cannot be loaded: pip install {packages} (onnxport[gpu] brings them)"


def _missing(onnxruntime: Any, libraries: Mapping[str, str]) -> dict[str, str]:
    """Those of the libraries that cannot be loaded, once the packages that bring them are looked through."""
    if libraries and hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):  # it prints what it does not find
            onnxruntime.preload_dlls()
    found = {}
    for library, package in libraries.items():
        try:
            ctypes.CDLL(library)
        except OSError:
            found[library] = package
    return found


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
