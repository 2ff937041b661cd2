"""Whole bundles of folders that are quantized already: their answers are those of transformers' class with the weights that codes mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from torch import Tensor

from onnxport.build.stages import build
from onnxport.runtime import load
from support import causal_folders
from support import quantized_folders as folders

IDS = [[5, 17, 2, 40, 9, 33, 60], [8, 8, 71, 3]]
ONE_LAYER = {"num_hidden_layers": 1}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "modules_to_not_convert": ["lm_head"]}
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
FLOAT8 = torch.float8_e4m3fn


def compressed(kind: str) -> dict[str, Any]:
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
    return {
        "quant_method": "compressed-tensors",
        "format": kind,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }


def fp8_tensor(weight: Tensor, generator: torch.Generator) -> folders.Stored:
    """8-bit floats with one scale for all."""
    parts, wanted = folders.scaled(FLOAT8, "all")(weight, generator)
    return {".weight": parts[".weight"], ".weight_scale_inv": parts[".weight_scale"].squeeze()}, wanted


def dequantized(folder: Path, config: Any, **settings: Any) -> Any:
    """A folder as transformers itself reads it."""
    own = config(dequantize=True, **settings)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, quantization_config=own, dtype=torch.float32)


def assert_answers(bundle: Path, original: Any) -> None:
    """The fp32 variant's log-probabilities of each token behind the first are those of the class in float32."""
    with load(bundle, "fp32", threads=1) as model:
        found = model.score([ids[:1] for ids in IDS], [ids[1:] for ids in IDS])
    with torch.no_grad():
        for ids, ours in zip(IDS, found, strict=True):
            logs = original(torch.tensor([ids])).logits[0].log_softmax(-1)
            np.testing.assert_allclose(ours.token_logprobs, [float(logs[at, token]) for at, token in enumerate(ids[1:])], atol=1e-4)


@pytest.mark.parametrize(
    ("store", "settings", "carried"),
    [
        pytest.param(folders.gptq(sorted_inputs=True), GPTQ, "int4", id="gptq-desc-act"),
        pytest.param(folders.awq, AWQ, "int4", id="awq"),
        pytest.param(folders.pack_quantized(), compressed("pack-quantized"), "int4", id="compressed-tensors"),
        pytest.param(folders.scaled(FLOAT8, "rows"), compressed("float-quantized"), None, id="compressed-tensors-fp8"),
        pytest.param(folders.nvfp4, compressed("nvfp4-pack-quantized"), "int8-weight", id="nvfp4"),
        pytest.param(folders.fp8_tiles, FP8 | {"weight_block_size": [32, 32]}, None, id="fp8-tiles"),
        pytest.param(fp8_tensor, FP8 | {"weight_block_size": None}, None, id="fp8-tensor"),
        pytest.param(folders.nf4(nested=True), NF4, None, id="nf4"),
        pytest.param(folders.int8_rows, {"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8-weight", id="llm-int8"),
    ],
)
def test_answers(tmp_path: Path, store: folders.Store, settings: dict[str, Any], carried: str | None) -> None:
    """carried: the variant that the plain command makes, for it has the folder's own codes."""
    wanted = folders.write(tmp_path / "model", store, settings, **ONE_LAYER)
    if settings["quant_method"] == "fp8":
        original = dequantized(tmp_path / "model", transformers.FineGrainedFP8Config, weight_block_size=settings["weight_block_size"])
    else:  # transformers needs packages of each format's own, and most of them a GPU
        original = causal_folders.make("llama", **folders.SIZES, **ONE_LAYER)
        original.load_state_dict(wanted, strict=False)
    made = build(tmp_path / "model", tmp_path / "bundle", precision=None if carried else ("fp32",))
    assert list(made.variants) == ([carried, "fp32"] if carried else ["fp32"])
    assert_answers(made.path, original)


def test_answers_of_experts(tmp_path: Path) -> None:
    folders.write_mxfp4(tmp_path / "model", layers=1)
    original = dequantized(tmp_path / "model", transformers.Mxfp4Config)
    assert_answers(build(tmp_path / "model", tmp_path / "bundle", precision=("fp32",)).path, original)


def test_experts_of_4_bit_floats_are_carried_in_8_bits(tmp_path: Path) -> None:
    """By the plain command: twice such a float is an integer up to 12, so codes stand for the very numbers; see `stored`."""
    folders.write_mxfp4(tmp_path / "model")
    made = build(tmp_path / "model", tmp_path / "bundle", precision=None)
    assert list(made.variants) == ["int8-weight", "fp32"]
    assert any("int8-weight carries without loss" in note for note in made.manifest.value["provenance"]["notes"])
    codes, numbers = (experts(made.path / variant / "decoder.onnx", op) for variant, op in (("int8-weight", "QMoE"), ("fp32", "MoE")))
    assert len(codes) == len(numbers) == 2
    for (up, up_scale, down, down_scale), (up_numbers, down_numbers) in zip(codes, numbers, strict=True):
        np.testing.assert_array_equal(expanded(up, up_scale), up_numbers)
        np.testing.assert_array_equal(expanded(down, down_scale), down_numbers)


def experts(path: Path, op: str) -> list[list[np.ndarray]]:
    """The constant weights and scales of each mixture of a graph, without biases."""
    graph = onnx.load(path).graph
    arrays = {one.name: onnx.numpy_helper.to_array(one, str(path.parent)) for one in graph.initializer}
    wide = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"}  # scales that float16 holds are stored so
    read = [[wide.get(name, name) for name in node.input[2:]] for node in graph.node if node.op_type == op]
    found = [[arrays[name].astype(np.float32) for name in names if name in arrays] for names in read]
    return [[array for array in some if array.ndim == 3] for some in found]


def expanded(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Codes of 8 bits [experts, N, K] with a scale of each block → the numbers that they stand for."""
    size = codes.shape[2] // scale.shape[2]
    whole: np.ndarray = (codes - 128) * scale.repeat(size, 2)
    return whole
