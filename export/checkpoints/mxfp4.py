"""MXFP4, as OpenAI's gpt-oss has its experts: 4-bit floats in blocks of 32 with a power of two each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from onnxport.export.checkpoints.codes import fp4


def weight(parts: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Tensor:
    """blocks uint8 [experts, rows, K / 32, 16], scales uint8 [experts, rows, K / 32] → float32 [experts, K, rows], as the class has it.

    See transformers/integrations/mxfp4.py, convert_moe_packed_tensors.
    """
    values, exponents = fp4(parts["blocks"]), parts["scales"].int() - 127
    if values.shape[:-1] != exponents.shape or values.dim() != 4:
        raise ValueError(f"blocks {list(parts['blocks'].shape)} and scales {list(exponents.shape)} do not fit each other")
    return torch.ldexp(values, exponents[..., None]).flatten(2).transpose(1, 2).contiguous()
