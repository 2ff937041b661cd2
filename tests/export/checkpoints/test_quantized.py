"""Folders that are quantized already: their weights are the very numbers that the codes stand for, by each format's own formula."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from onnxport.export.checkpoints.codes import unpack
from onnxport.export.resolve import resolve
from onnxport.quantize.schemes.blocks.stored import scheme_of
from support import quantized_folders as folders
from support.refusals import assert_refused

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}


def loaded(folder: Path, **options: Any) -> dict[str, Tensor]:
    found = resolve(folder, **options)
    assert found.name == folder.name and set(found.hashes) >= {"config.json", "model.safetensors"}
    return dict(found.adapter.model.state_dict())


def agree(folder: Path, wanted: dict[str, Tensor]) -> None:
    found = loaded(folder)
    assert wanted
    for name, weight in wanted.items():
        assert torch.equal(found[name], weight), name


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("sorted_inputs", [False, True])
def test_gptq(tmp_path: Path, bits: int, sorted_inputs: bool) -> None:
    settings = GPTQ | {"bits": bits, "desc_act": sorted_inputs}
    wanted = folders.write(tmp_path, folders.gptq(bits, 32, sorted_inputs), settings)
    agree(tmp_path, wanted)
    zeros = "-asym" if bits >= 4 else ""  # 4 bits hold those of fewer on both sides of 0
    carried = f"int{max(4, bits)}-blocks32{zeros}{'-sorted' if sorted_inputs else ''}"
    for name, weight in wanted.items():
        assert scheme_of(weight.numpy()) == carried, name


def test_three_bits_lie_across_words_as_autogptq_packs_them() -> None:
    """Ten codes in the first word, two bits of the eleventh, and so on: auto_gptq/nn_modules/qlinear/qlinear_cuda.py."""
    codes = torch.randint(0, 8, (32,), generator=torch.Generator().manual_seed(0))
    words = [0, 0, 0]
    for place, code in enumerate(codes.tolist()):
        if place < 10:
            words[0] |= code << (place * 3)
        elif place == 10:
            words[0] |= (code & 3) << 30
            words[1] |= code >> 2
        elif place < 21:
            words[1] |= code << ((place - 11) * 3 + 1)
        elif place == 21:
            words[1] |= (code & 1) << 31
            words[2] |= code >> 1
        else:
            words[2] |= code << ((place - 22) * 3 + 2)
    packed = torch.tensor([word - 2**32 if word >= 2**31 else word for word in words], dtype=torch.int32)
    assert torch.equal(unpack(packed[None], 3)[0].long(), codes)


def test_the_second_format_of_gptq_holds_zeros_as_they_are(tmp_path: Path) -> None:
    agree(tmp_path, folders.write(tmp_path, folders.gptq(added=0), GPTQ | {"checkpoint_format": "gptq_v2"}))


def test_biases_that_gptq_made_up_are_left_out(tmp_path: Path) -> None:
    wanted = folders.write(tmp_path, folders.gptq(), GPTQ)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors |= {name.replace(".weight", ".bias"): torch.zeros(len(weight)) for name, weight in wanted.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    agree(tmp_path, wanted)
    save_file(tensors | {"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}, tmp_path / "model.safetensors")
    assert_refused(tmp_path, "unexpected tensors: model.layers.0.self_attn.q_proj.bias")


def test_awq(tmp_path: Path) -> None:
    agree(tmp_path, folders.write(tmp_path, folders.awq, AWQ))


def compressed(kind: str, **group: Any) -> dict[str, Any]:
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
    return {
        "quant_method": "compressed-tensors",
        "format": kind,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights} | group},
    }


FLOAT8 = torch.float8_e4m3fn
BITSANDBYTES = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


@pytest.mark.parametrize(
    ("store", "settings"),
    [
        pytest.param(folders.fp8_tiles, {"quant_method": "fp8", "weight_block_size": [32, 32], "activation_scheme": "dynamic"}, id="fp8"),
        pytest.param(folders.scaled(FLOAT8, "rows"), {"quant_method": "fbgemm_fp8"}, id="fbgemm"),
        pytest.param(folders.pack_quantized(), compressed("pack-quantized"), id="pack-quantized"),
        pytest.param(folders.pack_quantized(8), compressed("pack-quantized"), id="pack-quantized-8"),
        pytest.param(folders.pack_quantized(zeros=True), compressed("pack-quantized"), id="pack-quantized-zeros"),
        pytest.param(folders.pack_quantized(zeros=True, sorted_inputs=True), compressed("pack-quantized"), id="pack-quantized-sorted"),
        pytest.param(
            folders.scaled(torch.int8, "rows"), compressed("int-quantized", input_activations={"num_bits": 8}), id="int-quantized"
        ),
        pytest.param(folders.scaled(torch.int8, "groups"), compressed("int-quantized"), id="int-quantized-groups"),
        pytest.param(folders.scaled(FLOAT8, "all"), compressed("float-quantized"), id="float-quantized-all"),
        pytest.param(folders.scaled(FLOAT8, "rows"), compressed("naive-quantized"), id="float-quantized-rows"),
        pytest.param(folders.nvfp4, compressed("nvfp4-pack-quantized"), id="nvfp4"),
        pytest.param(folders.nf4(False), BITSANDBYTES, id="nf4"),
        pytest.param(folders.nf4(True), BITSANDBYTES, id="nf4-nested"),
        pytest.param(folders.int8_rows, {"load_in_8bit": True}, id="int8"),
    ],
)
def test_other_formats(tmp_path: Path, store: Any, settings: dict[str, Any]) -> None:
    agree(tmp_path, folders.write(tmp_path, store, settings))


def test_fine_grained_fp8_is_what_transformers_makes_of_it(tmp_path: Path) -> None:
    settings = {"quant_method": "fp8", "weight_block_size": [32, 32], "activation_scheme": "dynamic", "modules_to_not_convert": ["lm_head"]}
    folders.write(tmp_path, folders.fp8_tiles, settings)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=transformers.FineGrainedFP8Config(dequantize=True, weight_block_size=(32, 32)), dtype=torch.float32
    )
    agree(tmp_path, {name: value for name, value in theirs.state_dict().items() if name.endswith("_proj.weight")})


def test_mxfp4_is_what_transformers_makes_of_it(tmp_path: Path) -> None:
    folders.write_mxfp4(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=transformers.Mxfp4Config(dequantize=True), dtype=torch.float32
    )
    agree(tmp_path, {name: value for name, value in theirs.state_dict().items() if "experts" in name})


def test_scales_of_a_cache_are_left_out_and_said(tmp_path: Path) -> None:
    wanted = folders.write(tmp_path, folders.scaled(FLOAT8, "rows"), compressed("float-quantized") | {"kv_cache_scheme": {"num_bits": 8}})
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {f"model.layers.0.self_attn.{part}_scale": torch.ones(1) for part in "kv"}, tmp_path / "model.safetensors")
    agree(tmp_path, wanted)
    assert any("cache" in note for note in resolve(tmp_path).notes)


def test_settings_in_a_file_of_their_own(tmp_path: Path) -> None:
    wanted = folders.write(tmp_path, folders.gptq(), GPTQ)
    folders.set_config(tmp_path, quantization_config=None)
    (tmp_path / "quantize_config.json").write_text('{"bits": 4, "group_size": 32, "desc_act": false}')
    agree(tmp_path, wanted)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"quant_method": "aqlm"}, ["quant_method 'aqlm', expected one of gptq, awq"]),
        ({"quant_method": ["gptq"]}, ["quant_method ['gptq'], expected one of"]),
        ([4], ["quantization_config is [4], expected an object"]),
        (GPTQ | {"checkpoint_format": "marlin"}, ["checkpoint_format is 'marlin', expected gptq or gptq_v2"]),
        (AWQ | {"version": "gemv"}, ["version is 'gemv', expected gemm"]),
        (GPTQ | {"checkpoint_format": ["gptq"]}, ["checkpoint_format is ['gptq'], expected gptq or gptq_v2"]),
        (compressed("dense") | {"transform_config": [1]}, ["transform_config"]),
        (compressed("dense") | {"config_groups": [1]}, ["holds no weight in the form of compressed-tensors"]),
        (compressed("marlin-24"), ["format is 'marlin-24'"]),
        (compressed("pack-quantized"), ["holds no weight in the form of compressed-tensors"]),
    ],
)
def test_what_is_not_known_is_refused(tmp_path: Path, settings: Any, parts: list[str]) -> None:
    folders.write(tmp_path, folders.gptq(), GPTQ)
    folders.set_config(tmp_path, quantization_config=settings)
    assert_refused(tmp_path, *parts)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("qzeros", torch.zeros(2, 5, dtype=torch.int32), "do not agree"),
        ("scales", None, "it lacks 'scales'"),
        ("g_idx", torch.full((64,), 7, dtype=torch.int32), "g_idx does not lead from 64 inputs to 2 groups"),
        ("qweight", torch.zeros(0, 64, dtype=torch.int32), "cannot be read as GPTQ"),
        ("scales", torch.full((2, 64), torch.nan, dtype=torch.float16), "q_proj.weight holds NaN or infinity"),
    ],
)
def test_damaged_codes_are_refused(tmp_path: Path, part: str, value: Tensor | None, message: str) -> None:
    folders.write(tmp_path, folders.gptq(), GPTQ)
    tensors = load_file(tmp_path / "model.safetensors")
    name = f"model.layers.0.self_attn.q_proj.{part}"
    del tensors[name]
    save_file(tensors | ({} if value is None else {name: value}), tmp_path / "model.safetensors")
    assert str(tmp_path) in assert_refused(tmp_path, message)
