"""What of the processor the runtime must know: its cores, and whether it saturates products of uint8 and int8.

x86 processors without VNNI add pairs of such products in 16 bits, which saturate: 2 * 255 * 127 > 32767. There a session is set to
read weights that could get there as uint8 (their values and zero points plus 128) and takes kernels that add in 32 bits: the same sums as
with VNNI, somewhat slower. Where VNNI is, those kernels would cost far more, so the processor is tested first.
"""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from onnxport.runtime.memory.native import native

if TYPE_CHECKING:
    import onnxruntime


X86 = ("x86_64", "AMD64")
# MatMulInteger of a (uint8) and b (int8) as an ONNX file of opset 10; the runtime has no package that writes one.
PROBE = (
    b'\x08\x05:=\n\x18\n\x01a\n\x01b\x12\x01c"\rMatMulInteger\x12\x00'
    b"Z\t\n\x01a\x12\x04\n\x02\x08\x02Z\t\n\x01b\x12\x04\n\x02\x08\x03b\t\n\x01c\x12\x04\n\x02\x08\x06B\x04\n\x00\x10\n"
)


@functools.cache
def saturates() -> bool:
    """Whether ONNX Runtime's usual kernels lose sums of products of uint8 and int8 on this processor; tested once, with the worst case."""
    if platform.machine() not in X86:
        return False
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    a, b = np.full((2, 64), 255, np.uint8), np.full((64, 16), 127, np.int8)
    with native:
        session = onnxruntime.InferenceSession(PROBE, options, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"a": a, "b": b})
    return bool((found != 64 * 255 * 127).any())


def make_exact(options: onnxruntime.SessionOptions) -> None:
    """Set the options of a session so that it adds products of 8 bits without loss."""
    if saturates():
        options.add_session_config_entry("session.x64quantprecision", "1")


def quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """CPUs this container may use (cgroup v2, then v1); None without a limit."""
    try:
        limit, period = (root / "cpu.max").read_text().split()[:2]
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        pass
    try:
        limit = (root / "cpu/cpu.cfs_quota_us").read_text()
        return None if int(limit) <= 0 else int(limit) / int((root / "cpu/cpu.cfs_period_us").read_text())
    except (OSError, ValueError, ZeroDivisionError):
        return None


def cores(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores this process may use: the least of the machine's, its affinity's and its container's."""
    found = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        found = min(found, len(os.sched_getaffinity(0)))
    limit = quota(root)
    return max(1, found if limit is None else min(found, int(limit)))
