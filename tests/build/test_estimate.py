"""What an export would write, told before it begins."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

from onnxport.build.estimate import check_room, estimate
from onnxport.build.estimate.folder import read
from onnxport.build.estimate.model import Model
from onnxport.build.estimate.variants import _bytes, codes, weights
from onnxport.build.estimate.weights import Tensor
from onnxport.errors import CheckpointError, OutputError, UsageError
from onnxport.quantize.plan import Plan, scheme
from onnxport.quantize.schemes.apply import quantize
from onnxport.quantize.schemes.blocks import half_scales
from support.commands import invoke

N, K = 96, 160


def language_model(*tensors: Tensor) -> Model:
    """One without a config."""
    return Model("causal", "LlamaForCausalLM", {}, tensors, 0, Path(), Path())


@pytest.mark.parametrize("name", ["fp32", "int8-rows", "int8-blocks", "int4-blocks32-asym", "int4-blocks64", "int4-blocks32-min"])
def test_bytes_of_a_weight_are_those_of_its_scheme(name: str) -> None:
    weight = np.random.default_rng(0).standard_normal((K, N)).astype(np.float32)
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, k]) for n, k in (("x", K), ("y", N)))
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [numpy_helper.from_array(weight, "w")])
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    plan = Plan({"w": name})
    made = model if name == "fp32" else quantize({"model": model}, plan)[0]["model"]
    half_scales.store(made.graph)
    found = sum(value.const_value.nbytes for value in made.graph.initializers.values())
    assert _bytes(scheme(name), N, K) == pytest.approx(found, rel=0.02)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(
        {"model.embed_tokens.weight": torch.zeros(64, 32).bfloat16(), "norm.weight": torch.ones(32).bfloat16()}, tmp_path / "a.safetensors"
    )
    save_file({"model.layers.0.mlp.down_proj.weight": torch.zeros(32, 64).bfloat16()}, tmp_path / "b.safetensors")
    names = {"model.embed_tokens.weight": "a.safetensors", "norm.weight": "a.safetensors"}
    index = {"weight_map": names | {"model.layers.0.mlp.down_proj.weight": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 1, "vocab_size": 64, "tie_word_embeddings": True}))
    return tmp_path


def test_headers_alone_tell_sizes_and_what_is_missing(folder: Path) -> None:
    found = estimate(folder, ("fp32", "int8"))
    assert found.parameters == 64 * 32 + 32 + 32 * 64
    assert found.files["fp32/weights.bin"] == 4 * found.parameters
    assert found.files["int8/weights.bin"] == 64 * 32 + 32 * 64 + 4 * (64 + 32) + 4 * 32
    (folder / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks b.safetensors"):
        estimate(folder)


def test_the_command_makes_nothing(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = invoke("export", folder, "--out", out, "--precision", "fp32", "--dry-run", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["files"]["fp32/weights.bin"] == 4 * 4128
    assert "fp32/weights.bin" in invoke("export", folder, "--out", out, "--dry-run").stdout
    assert not out.exists()
    with pytest.raises(UsageError, match="--dry-run"):
        estimate(tmp_path / "nothing")


def test_what_files_cannot_be_told_of_has_no_estimate(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    for name in ("ViTForImageClassification", "LlavaForConditionalGeneration"):
        (folder / "config.json").write_text(json.dumps(config | {"architectures": [name]}))
        with pytest.raises(UsageError, match=f"--dry-run: .* holds a {name}, expected a language model"):
            estimate(folder)
    for more, what in (
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized already"),
        ({"architecture": "x"}, "no folder of Hugging"),
    ):
        (folder / "config.json").write_text(json.dumps(config | more))
        with pytest.raises(UsageError, match=f"--dry-run: .* {what}.*: leave --dry-run out"):
            estimate(folder)


def test_headers_alone_tell_what_the_index_has_wrong(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": places | {"model.layers.0.mlp.up_proj.weight": "b.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"b.safetensors lacks .* model.layers.0.mlp.up_proj.weight"):
        estimate(folder)
    index.write_text(json.dumps({"weight_map": places}).replace('"norm.weight"', '"norm.weight": "b.safetensors", "norm.weight"'))
    with pytest.raises(CheckpointError, match="names tensors twice: norm.weight"):
        estimate(folder)


def test_a_variant_for_another_target_has_the_weights_of_one_that_is_made_alike(folder: Path) -> None:
    found = estimate(folder, ("fp32", "int8-weight", "int8"), ("cpu", "web")).files
    assert [name for name in found if name.endswith("weights.bin")] == [f"{name}/weights.bin" for name in ("fp32", "int8-weight", "int8")]
    assert "int8-weight/decoder@web.onnx" in found and "fp32/decoder@web.onnx" in found


def test_a_disk_that_is_too_small_is_refused_before_the_start(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}))
    free, place = 4 * 4128, tmp_path / "place"
    place.mkdir()
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free))
    check_room(folder, place / "out", ("fp32",))
    result = invoke("export", folder, "--out", place / "out", "--precision", "fp32,int8")
    assert result.exit_code == OutputError.exit_code and "the weights of fp32, int8 take" in result.stderr
    assert not list(place.iterdir())
    (place / ".out.work" / "out" / "int8").mkdir(parents=True)
    (place / ".out.work" / "out" / "int8" / "weights.bin").write_bytes(bytes(free))
    check_room(folder, place / "out", ("fp32", "int8"))  # they are there


def test_temporary_files_count_on_their_own_disk_or_beside_the_bundle(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}))
    place, scratch = tmp_path / "place", tmp_path / "scratch"
    place.mkdir()
    scratch.mkdir()
    codes, weights = 64 * 32 + 32 * 64, 64 * 32 + 32 * 64 + 4 * (64 + 32) + 4 * 32
    free = {place: float("inf"), scratch: float("inf")}
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free[Path(path)]))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(scratch))
    monkeypatch.setattr("onnxport.build.estimate.variants.LEAST", 0)
    free[place] = weights + codes // 2
    with pytest.raises(OutputError, match=rf"{place} has .* with temporary files, .*; free space, or set TMPDIR"):
        check_room(folder, place / "out", ("int8",))
    monkeypatch.setattr("onnxport.build.estimate.room._device", lambda path: path == scratch)
    check_room(folder, place / "out", ("int8",))
    free[scratch] = codes // 2
    with pytest.raises(OutputError, match=f"{scratch} has .* temporary files of a variant take .*; free space, or set TMPDIR"):
        check_room(folder, place / "out", ("int8",))
    free[scratch] = codes
    check_room(folder, place / "out", ("int8",))


def test_what_is_fitted_lies_beside_the_bundle_where_the_export_is_resumed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = read(folder)
    monkeypatch.setattr("onnxport.build.estimate.variants.LEAST", 0)
    numbers = 32 * 64  # of the one product: the vocabulary's table is not fitted
    assert codes("int4", model, fitted=True) - codes("int4", model, fitted=False) == numbers
    monkeypatch.setattr("onnxport.build.estimate.variants.LEAST", 1 << 20)
    assert codes("int4", model, fitted=True) == 0  # so small ones stay in memory


def test_a_table_beside_a_projection_of_its_own_is_told_in_four_bits() -> None:
    table, head = (Tensor(name, (1000, 64), 2) for name in ("model.embed_tokens.weight", "lm_head.weight"))
    alone, both = (weights("int4", language_model(*tensors)) for tensors in ([head], [table, head]))
    eight, four = 1000 * 64 + 2 * 1000, 1000 * 64 // 2 + 1000 * 64 // 32 * (2 + 0.5)
    assert (alone, both - alone) == (eight, four)


def test_experts_in_one_tensor_count_as_their_matrices() -> None:
    experts = [Tensor("model.layers.0.mlp.experts.gate_up_proj", (8, 64, 32), 2)]
    apart = [Tensor(f"model.layers.0.mlp.experts.{i}.gate_up_proj.weight", (64, 32), 2) for i in range(8)]
    for name in ("int8", "int4", "fp16"):
        assert weights(name, language_model(*experts)) == weights(name, language_model(*apart))
    kernel = Tensor("model.layers.0.conv.conv.weight", (32, 1, 3), 2)  # a convolution over positions is none
    assert weights("int8", language_model(kernel)) == 4 * 32 * 3
