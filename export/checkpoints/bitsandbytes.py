"""bitsandbytes: 4 bits by a table of 16 values with a scale for each block (NF4, FP4), and LLM.int8() with one for each output.

The formulas are those of bitsandbytes/functional.py, dequantize_4bit and int8_vectorwise_dequant.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from onnxport.export.checkpoints.codes import unpack

STATES = ("weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4")


def four_bits(parts: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Tensor:
    """weight uint8 [N * K / 2, 1], the upper four bits first, absmax [blocks], quant_map [16] and a state in JSON → float32 [N, K]."""
    state = json.loads(bytes(next(parts[name] for name in STATES if name in parts).numpy()))
    scale = parts["weight.absmax"]
    if "weight.nested_absmax" in parts:  # scales in 8 bits, with scales of their own
        nested = parts["weight.nested_absmax"].float().repeat_interleave(int(state["nested_blocksize"]))[: len(scale)]
        scale = parts["weight.nested_quant_map"].float()[scale.long()] * nested + float(state["nested_offset"])
    codes = unpack(parts["weight"].flatten(), 4).unflatten(0, (-1, 2)).flip(1).flatten()
    n, k = (int(size) for size in state["shape"])
    wide = scale.float().repeat_interleave(int(state["blocksize"]))
    if n * k > min(len(codes), len(wide)):
        raise ValueError(f"{len(codes)} codes and {len(scale)} scales do not hold a weight of [{n}, {k}]")
    return (parts["weight.quant_map"].float()[codes[: n * k].long()] * wide[: n * k]).reshape(n, k)


def eight_bits(parts: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Tensor:
    """weight int8 [N, K], SCB [N] → float32 [N, K]."""
    if int(parts["weight_format"]) if "weight_format" in parts else 0:
        raise ValueError("weight_format is not that of rows")
    return parts["weight"].float() * (parts["SCB"].float() / 127)[:, None]


def weight(parts: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Tensor:
    """Either of the two, by the type of the weight."""
    return (eight_bits if parts["weight"].dtype == torch.int8 else four_bits)(parts, settings)
