"""Tiny folders of a Llama, stored as other tools quantize weights, and the numbers that these stand for, by each format's formula."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GptOssConfig, GptOssForCausalLM

from support import causal_folders

SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_key_value_heads": 2, "vocab_size": 120}
Stored = tuple[dict[str, Tensor], Tensor]  # parts by the ends of their names, and the weight that they stand for
Store = Callable[[Tensor, torch.Generator], Stored]


def write(
    folder: Path, store: Callable[[Tensor, torch.Generator], Stored], settings: Mapping[str, Any], seed: int = 0, **config: Any
) -> dict[str, Tensor]:
    """A Llama whose layers' products are stored by `store`. Returns the weights that they stand for, by name."""
    causal_folders.write(folder, "llama", seed, **SIZES | config)
    tensors, wanted = load_file(folder / "model.safetensors"), {}
    generator = torch.Generator().manual_seed(seed)
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        parts, weight = store(tensors.pop(name), generator)
        tensors |= {name.removesuffix(".weight") + end: value.contiguous() for end, value in parts.items()}
        wanted[name] = weight
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    set_config(folder, quantization_config=dict(settings))
    return wanted


def write_mxfp4(folder: Path, layers: int = 2) -> None:
    """A GPT-OSS whose experts are random 4-bit floats in blocks of 32 with powers of two as their scales."""
    config = GptOssConfig(
        vocab_size=97, hidden_size=64, intermediate_size=32, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=8, max_position_embeddings=64, pad_token_id=0,
        eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    GptOssForCausalLM(config).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, k, rows = tensors.pop(name).shape
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (experts, rows, k // 32, 16), dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(120, 125, (experts, rows, k // 32), dtype=torch.uint8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    set_config(folder, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]})


def set_config(folder: Path, **values: Any) -> None:
    """More keys in config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | values))


def packed(codes: Tensor, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """Codes [rows, n] in int32 words [rows, n * bits / 32], one behind the other, the lowest bits first; `order` says which comes where in
    each 32 bits."""
    codes = codes.long()
    codes = codes.unflatten(1, (-1, len(order)))[..., list(order)].flatten(1) if order else codes
    stream = ((codes[..., None] >> torch.arange(bits)) & 1).flatten(1).unflatten(1, (-1, 32))
    total = (stream << torch.arange(32)).sum(-1)
    return torch.where(total >= 2**31, total - 2**32, total).to(torch.int32)


def codes(weight: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [N, K], scales float16 [N, groups] and zeros [N, groups] near a weight."""
    blocks = weight.unflatten(1, (-1, group))
    low, high = blocks.amin(-1).clamp(max=0), blocks.amax(-1).clamp(min=0)
    scale = ((high - low) / (2**bits - 1)).half()
    zero = (-low / scale.float()).round().clamp(1, 2**bits - 1)
    code = (blocks / scale.float()[..., None] + zero[..., None]).round().clamp(0, 2**bits - 1)
    return code.flatten(1), scale, zero


def gptq(bits: int = 4, group: int = 32, sorted_inputs: bool = False, added: int = 1) -> Store:
    """GPTQ; sorted_inputs: groups lie across the inputs (desc_act), in one order for all that read the same ones, as its tools leave them.
    added: 1 in the first format, 0 in "gptq_v2"."""

    def store(weight: Tensor, generator: torch.Generator) -> Stored:
        k = weight.shape[1]
        place = torch.randperm(k, generator=torch.Generator().manual_seed(k)) if sorted_inputs else torch.arange(k)
        code, scale, zero = codes(weight[:, place], bits, group)
        back = torch.empty_like(code)
        back[:, place] = code
        index = torch.empty(k, dtype=torch.int32)
        index[place] = (torch.arange(k) // group).int()
        parts = {".qweight": packed(back, bits).t(), ".qzeros": packed((zero - added).t(), bits), ".scales": scale.t(), ".g_idx": index}
        wanted = scale.float()[:, index.long()] * (back - zero[:, index.long()])
        return parts, wanted

    return store


def awq(weight: Tensor, generator: torch.Generator) -> Stored:
    """AWQ in 4 bits and groups of 32."""
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    code, scale, zero = codes(weight, 4, 32)
    parts = {".qweight": packed(code.t(), 4, order), ".qzeros": packed(zero.t(), 4, order), ".scales": scale.t()}
    return parts, ((code - zero.repeat_interleave(32, 1)) * scale.float().repeat_interleave(32, 1))


def fp8_tiles(weight: Tensor, generator: torch.Generator, tile: int = 32) -> Stored:
    """8-bit floats with a factor for each tile; the last tiles are cut."""
    n, k = weight.shape
    scale = torch.rand(-(-n // tile), -(-k // tile), generator=generator) / 100 + 1e-3
    wide = scale.repeat_interleave(tile, 0)[:n].repeat_interleave(tile, 1)[:, :k]
    stored = (weight / wide).clamp(-448, 448).to(torch.float8_e4m3fn)
    return {".weight": stored, ".weight_scale_inv": scale}, stored.float() * wide


def scaled(kind: torch.dtype, shape: str) -> Store:
    """int8 or 8-bit floats with one scale, one for each output ("rows"), or one for each 16 inputs of one ("groups")."""

    def store(weight: Tensor, generator: torch.Generator) -> Stored:
        largest = 127 if kind == torch.int8 else 448
        rows = weight.abs().amax(1, keepdim=True)
        scale = {"all": rows.max().reshape(1), "rows": rows, "groups": weight.unflatten(1, (-1, 16)).abs().amax(-1)}[shape] / largest
        wide = scale.repeat_interleave(16, 1) if shape == "groups" else scale
        stored = (weight / wide).round().to(kind) if kind == torch.int8 else (weight / wide).to(kind)
        return {".weight": stored, ".weight_scale": scale}, stored.float() * wide

    return store


def pack_quantized(bits: int = 4, zeros: bool = False, sorted_inputs: bool = False) -> Store:
    """compressed-tensors' packed integers in groups of 32."""

    def store(weight: Tensor, generator: torch.Generator) -> Stored:
        n, k = weight.shape
        code, scale, zero = codes(weight, bits, 32)
        zero = zero if zeros else torch.full_like(zero, 2.0 ** (bits - 1))
        place = torch.randperm(k, generator=generator) if sorted_inputs else torch.arange(k)
        index = place.int() // 32
        parts = {".weight_packed": packed(code, bits), ".weight_scale": scale, ".weight_shape": torch.tensor([n, k])}
        parts |= {".weight_zero_point": packed(zero.t(), bits).t()} if zeros else {}
        parts |= {".weight_g_idx": index} if sorted_inputs else {}
        return parts, scale.float()[:, index.long()] * (code - zero[:, index.long()])

    return store


FP4 = torch.tensor([0.0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def nvfp4(weight: Tensor, generator: torch.Generator) -> Stored:
    """4-bit floats in groups of 16, whose scales are 8-bit floats with a divisor for all."""
    n, k = weight.shape
    codes = torch.randint(0, 16, (n, k), generator=generator)
    scale = (1 + torch.rand(n, k // 16, generator=generator)).to(torch.float8_e4m3fn)
    divisor = torch.tensor([8.0])
    parts = {
        ".weight_packed": (codes[:, ::2] | (codes[:, 1::2] << 4)).to(torch.uint8),
        ".weight_scale": scale,
        ".weight_global_scale": divisor,
    }
    return parts, FP4[codes] * (scale.float() / divisor).repeat_interleave(16, 1)


def nf4(nested: bool) -> Store:
    """bitsandbytes in 4 bits: a table of 16 values, blocks of 64, whose scales may be in 8 bits by a table of their own."""

    def store(weight: Tensor, generator: torch.Generator) -> Stored:
        n, k = weight.shape
        table, large = torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 256)
        codes = torch.randint(0, 16, (n * k,), generator=generator)
        absmax = torch.rand(n * k // 64, generator=generator)
        state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [n, k]}
        parts = {".weight": ((codes[::2] << 4) | codes[1::2]).to(torch.uint8)[:, None], ".weight.quant_map": table}
        if nested:
            levels = torch.randint(0, 256, absmax.shape, generator=generator)
            own = torch.rand(-(-len(absmax) // 16), generator=generator)
            absmax = large[levels] * own.repeat_interleave(16)[: len(levels)] + 1.5
            state |= {"nested_blocksize": 16, "nested_dtype": "float32", "nested_offset": 1.5}
            parts |= {".weight.absmax": levels.to(torch.uint8), ".weight.nested_absmax": own, ".weight.nested_quant_map": large}
        else:
            parts[".weight.absmax"] = absmax
        text = json.dumps(state).encode()
        parts[".weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(text), dtype=torch.uint8)
        return parts, (table[codes] * absmax.repeat_interleave(64)).reshape(n, k)

    return store


def int8_rows(weight: Tensor, generator: torch.Generator) -> Stored:
    """bitsandbytes in 8 bits: scales are the largest magnitudes of outputs."""
    largest = weight.abs().amax(1)
    codes = (weight / largest[:, None] * 127).round().to(torch.int8)
    return {".weight": codes, ".SCB": largest, ".weight_format": torch.tensor(0, dtype=torch.uint8)}, codes.float() * (largest / 127)[
        :, None
    ]
