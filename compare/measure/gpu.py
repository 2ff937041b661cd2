"""The first NVIDIA GPU and its driver, as the driver's own library tells them; no package is needed for it."""

from __future__ import annotations

import ctypes
import os
from typing import Any

LIBRARY = "libnvidia-ml.so.1"
_ROOM = 96  # bytes of a text that the library writes


def describe() -> dict[str, Any]:
    """{"gpu", "driver", "cuda" (the newest that the driver takes), "memory_bytes"}, or {"reason"} why there is none."""
    try:
        library: Any = ctypes.CDLL(LIBRARY)
    except OSError:
        return {"reason": f"{LIBRARY} is not installed: there is no NVIDIA driver"}
    if error := library.nvmlInit_v2():
        return {"reason": f"the NVIDIA driver does not answer (error {error})"}
    driver, version = ctypes.create_string_buffer(_ROOM), ctypes.c_int()
    library.nvmlSystemGetDriverVersion(driver, _ROOM)
    library.nvmlSystemGetCudaDriverVersion_v2(ctypes.byref(version))
    facts = {"driver": driver.value.decode(), "cuda": f"{version.value // 1000}.{version.value % 1000 // 10}"}
    handle = ctypes.c_void_p()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    find = library.nvmlDeviceGetHandleByIndex_v2 if visible.isdigit() else library.nvmlDeviceGetHandleByUUID
    if error := find(int(visible) if visible.isdigit() else visible.encode(), ctypes.byref(handle)):
        return facts | {"reason": f"the driver knows no GPU {visible or '(CUDA_VISIBLE_DEVICES is empty)'} (error {error})"}
    name, memory = ctypes.create_string_buffer(_ROOM), (ctypes.c_ulonglong * 3)()
    library.nvmlDeviceGetName(handle, name, _ROOM)
    library.nvmlDeviceGetMemoryInfo(handle, memory)
    return facts | {"gpu": name.value.decode(), "memory_bytes": int(memory[0])}
