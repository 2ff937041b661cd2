"""AWQ as AutoAWQ writes it in its version "gemm": `qweight`, `qzeros` and `scales`.

The formula is that of awq/utils/packing_utils.py, dequantize_gemm: (code - zero) * scale, in float32 here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from onnxport.export.checkpoints.codes import unpack

ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where the outputs 0 to 7 of a word stand in it


def problem(settings: Mapping[str, Any]) -> str | None:
    """What of the settings cannot be read."""
    version = settings.get("version") or settings.get("format") or "gemm"
    if str(version).lower() != "gemm":
        return f"the version is {version!r:.40}, expected gemm"
    if settings.get("bits", settings.get("w_bit", 4)) != 4:
        return f"bits is {settings.get('bits')!r:.40}, expected 4"
    return None if settings.get("zero_point", True) else "zero_point is false, expected true"


def weight(parts: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Tensor:
    """qweight int32 [K, N / 8], qzeros int32 [groups, N / 8], scales [groups, N] → float32 [N, K]."""
    scales = parts["scales"].float()
    codes, zeros = (unpack(parts[name], 4).unflatten(1, (-1, 8))[..., ORDER].flatten(1) for name in ("qweight", "qzeros"))
    (k, n), groups = codes.shape, len(scales)
    if zeros.shape != scales.shape or zeros.shape[1] != n or k % groups:
        raise ValueError(f"codes [{k}, {n}], zeros {list(zeros.shape)} and scales {list(scales.shape)} do not fit each other")
    each = k // groups
    return ((codes.float() - zeros.float().repeat_interleave(each, 0)) * scales.repeat_interleave(each, 0)).t().contiguous()
