"""GPTQ as AutoGPTQ and GPTQModel write it: `qweight`, `qzeros`, `scales` and, where inputs were sorted, `g_idx`.

The formula is that of auto_gptq/nn_modules/qlinear/qlinear_cuda.py: scale * (code - (zero + 1)), in float32 here; files of the format
"gptq_v2" hold the zero itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from onnxport.export.checkpoints.codes import unpack

FORMATS = {"gptq": 1, "gptq_v2": 0}  # checkpoint_format → what is added to a zero


def problem(settings: Mapping[str, Any]) -> str | None:
    """What of the settings cannot be read."""
    found = settings.get("checkpoint_format") or "gptq"
    if not isinstance(found, str) or found not in FORMATS:
        return f"checkpoint_format is {found!r:.40}, expected {' or '.join(FORMATS)}"
    return "the layout is that of Marlin, expected that of GPTQ" if settings.get("is_marlin_format") else None


def weight(parts: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Tensor:
    """qweight int32 [K * bits / 32, N], qzeros int32 [groups, N * bits / 32], scales [groups, N], g_idx int32 [K] → float32 [N, K]."""
    scales, qweight, qzeros = parts["scales"].float(), parts["qweight"], parts["qzeros"]
    groups, n = scales.shape
    bits = qzeros.shape[1] * 32 // n
    codes, zeros = unpack(qweight.t().contiguous(), bits), unpack(qzeros, bits)
    k = codes.shape[1]
    if zeros.shape != scales.shape or len(codes) != n:
        raise ValueError(f"qweight {list(qweight.shape)}, qzeros {list(qzeros.shape)} and scales {list(scales.shape)} do not agree")
    group = parts["g_idx"].long() if "g_idx" in parts else torch.arange(k) // (-(-k // groups))
    if group.shape != (k,) or int(group.min()) < 0 or int(group.max()) >= groups:
        raise ValueError(f"g_idx does not lead from {k} inputs to {groups} groups")
    zero = zeros.float() + FORMATS[settings.get("checkpoint_format") or "gptq"]
    return scales.t()[:, group] * (codes.float() - zero.t()[:, group])
