"""Every folder that cannot be exported is refused in one line that says what was found, what was expected and what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from onnxport.errors import UsageError
from onnxport.export import config_checks
from onnxport.export.resolve import resolve
from support import tiny_torch as tiny
from support.refusals import assert_refused


def folder_with(tmp_path: Path, **tensors: Any) -> Path:
    """The folder with tensors replaced; `...` drops one."""
    changed = tiny.weights_of(tiny.CONFIG) | {name.replace("__", "."): value for name, value in tensors.items()}
    return tiny.write_folder(tmp_path, {name: value for name, value in changed.items() if value is not ...})


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"d_model": 21}, ["d_model 21 does not divide by nhead 2"]),
        ({"d_model": "20"}, ["d_model is '20', expected an integer from 1"]),
        ({"d_model": True}, ["d_model is True"]),
        ({"num_encoder_layers": 0}, ["num_encoder_layers is 0, expected an integer from 1"]),
        ({"num_decoder_layers": -1}, ["num_decoder_layers is -1"]),
        ({"nhead": 0}, ["nhead is 0"]),
        ({"layer_norm_eps": 0}, ["layer_norm_eps is 0, expected a number above 0"]),
        ({"activation": "swish"}, ["activation is 'swish', expected one of 'relu', 'gelu'"]),
        ({"positions": "rotary"}, ["positions is 'rotary'", "'sinusoidal', 'learned', 'none'"]),
        ({"norm_first": 1}, ["norm_first is 1, expected one of True, False"]),
        ({"tie_embeddings": "source"}, ["tie_embeddings is 'source'"]),
        ({"tie_embeddings": True, "target_vocab_size": 41}, ["source_vocab_size is 40 and target_vocab_size 41"]),
        ({"pad_id": 40}, ["pad_id is 40 but target_vocab_size is 40"]),
        ({"eos_id": 99}, ["eos_id is 99"]),
        ({"bos_id": -1}, ["bos_id is -1"]),
        ({"max_length": ...}, ["max_length is missing, which sinusoidal positions need"]),
        ({"nhead": ..., "pad_id": ...}, ["nhead is missing", "pad_id is missing"]),
        ({"num_experts": 8}, ["num_experts is not a key of this architecture"]),
        ({"custom_encoder": None}, ["custom_encoder is not a key"]),
        ({"task": "classification"}, ["task is 'classification'", "'translation'"]),
        ({"embedding_scale": "sqrt"}, ["embedding_scale is 'sqrt', expected a number"]),
        ({"embedding_scale": 10**400}, ["embedding_scale is 1000", "expected a number of float32"]),
        ({"embedding_scale": float("nan")}, ["embedding_scale is nan"]),
        ({"max_length": 10**12}, ["max_length is 1000000000000, expected an integer from 1 to 1000000"]),
        ({"d_model": 2**40}, ["d_model is 1099511627776, expected an integer from 1 to 65536"]),
        ({"num_encoder_layers": 10**9}, ["num_encoder_layers is 1000000000"]),
        ({"dropout": 2}, ["dropout is 2"]),
        ({"architecture": "torch.nn.LSTM"}, ["'torch.nn.LSTM'", 'known for now: "architecture": "torch.nn.Transformer"']),
        ({"architecture": ...}, ["no architecture", "torch.nn.Transformer"]),
        ({"architecture": ..., "model_type": "nosuch"}, ["model_type 'nosuch'", "torch.nn.Transformer", '"model_type" of transformers']),
    ],
    ids=lambda value: str(value)[:50],
)
def test_config(tmp_path: Path, changes: dict[str, Any], parts: list[str]) -> None:
    assert_refused(tiny.write_folder(tmp_path, tiny.weights_of(tiny.CONFIG), **changes), *parts)


def test_all_config_problems_are_told_at_once(tmp_path: Path) -> None:
    source = tiny.write_folder(tmp_path, tiny.weights_of(tiny.CONFIG), nhead="2", extra=1, eos_id=..., num_encoder_layers=0)
    assert_refused(source, "nhead is '2'", "extra is not a key", "eos_id is missing", "num_encoder_layers is 0")


def test_config_is_not_json(tmp_path: Path) -> None:
    source = tiny.write_folder(tmp_path)
    (source / "config.json").write_text("{'d_model': 20}")
    assert_refused(source, "config.json is not valid JSON")
    (source / "config.json").write_text("[1]")
    assert_refused(source, "holds a JSON list, not an object")


def test_config_that_nests_without_end_or_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny.write_folder(tmp_path)
    (source / "config.json").write_text("[" * 100_000)
    assert_refused(source, "config.json is not valid JSON")
    (source / "config.json").write_text('{"d_model": ' + "9" * 5000 + "}")
    assert_refused(source, "config.json is not valid JSON")

    def fails(path: Path, most: int) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(config_checks, "read_regular", fails)
    assert_refused(source, "config.json cannot be read: Permission denied")


def test_config_or_weights_or_folder_missing(tmp_path: Path) -> None:
    assert_refused(tmp_path / "nowhere", "does not exist")
    assert_refused(tmp_path, "has no config.json")
    (tmp_path / "config.json").write_text(json.dumps(tiny.CONFIG))
    assert_refused(tmp_path, "has no weights; expected model.safetensors")
    assert_refused(tmp_path / "config.json", "is neither a folder with config.json")


def test_all_weight_problems_are_told_at_once(tmp_path: Path) -> None:
    names = {
        "transformer__encoder__norm__weight": ...,
        "transformer__decoder__norm__bias": ...,
        "surprise__weight": torch.ones(2),
        "source_embedding__weight": torch.ones(39, 20),
        "transformer__encoder__norm__bias": torch.full((20,), torch.nan),
        "transformer__decoder__norm__weight": torch.ones(20, dtype=torch.int32),
    }
    source = folder_with(tmp_path, **names)
    tiny.words(45).save(str(source / "tokenizer.json"))
    assert_refused(
        source,
        "missing tensors: transformer.encoder.norm.weight, transformer.decoder.norm.bias",
        "unexpected tensors: surprise.weight",
        "source_embedding.weight has shape [39, 20], expected [40, 20]",
        "transformer.encoder.norm.bias holds NaN or infinity",
        "transformer.decoder.norm.weight is int32, expected a floating type",
        "the source tokenizer has ids up to 44 and the source vocabulary 40 rows",
        "the target tokenizer",
    )


def test_infinite_weight(tmp_path: Path) -> None:
    assert_refused(folder_with(tmp_path, source_embedding__weight=torch.full((40, 20), torch.inf)), "source_embedding.weight holds NaN or")


def test_head_beside_tied_embeddings(tmp_path: Path) -> None:
    assert_refused(folder_with(tmp_path, head__weight=torch.ones(40, 20)), "unexpected tensors: head.weight")


def test_truncated_weights(tmp_path: Path) -> None:
    path = tiny.write_folder(tmp_path) / "model.safetensors"
    data = path.read_bytes()
    for end in (len(data) // 2, 20, 0):
        path.write_bytes(data[:end])
        assert_refused(tmp_path, "model.safetensors is not a whole safetensors file", "copy it again")


def test_pickles_only_with_leave(tmp_path: Path) -> None:
    source = tiny.write_folder(tmp_path)
    (source / "model.safetensors").unlink()
    for name in ("model.pt", "model.pth", "pytorch_model.bin"):
        torch.save({"state_dict": tiny.weights_of(tiny.CONFIG)}, source / name)
        assert_refused(source, name, "pickled weights", "--allow-pickle")
        assert resolve(source, allow_pickle=True).adapter.pad_id == 0
        (source / name).unlink()


def test_pickle_with_code_or_damage_is_refused_even_with_leave(tmp_path: Path) -> None:
    source = tiny.write_folder(tmp_path)
    (source / "model.safetensors").unlink()
    torch.save(nn.Linear(2, 2), source / "model.pt")
    assert_refused(source, "cannot be read as weights only", allow_pickle=True)
    (source / "model.pt").write_bytes(b"no pickle at all")
    assert_refused(source, "cannot be read as weights only", allow_pickle=True)
    torch.save({"a": torch.ones(2)}, source / "model.pt")
    data = (source / "model.pt").read_bytes()
    for at in range(0, len(data), 97):  # wherever it is damaged, it is refused, or read as something that the config does not describe
        (source / "model.pt").write_bytes(data[:at] + bytes([data[at] ^ 0x5A]) + data[at + 1 :])
        assert_refused(source, allow_pickle=True)
    sparse = tiny.weights_of(tiny.CONFIG)
    sparse["source_embedding.weight"] = sparse["source_embedding.weight"].to_sparse()
    torch.save(sparse, source / "model.pt")
    assert_refused(source, "source_embedding.weight is as a sparse", allow_pickle=True)
    torch.save([torch.ones(2)], source / "model.pt")
    assert_refused(source, "holds a list, expected a state_dict", allow_pickle=True)


def test_tokenizer_that_is_none(tmp_path: Path) -> None:
    source = tiny.write_folder(tmp_path)
    (source / "tokenizer.json").write_text("{}")
    assert_refused(source, "tokenizer.json is not a tokenizer.json")


@pytest.mark.parametrize("opset", [17, 22, 99])
def test_opset(tmp_path: Path, opset: int) -> None:
    assert_refused(tmp_path, f"opset {opset} cannot be written", error=UsageError, opset=opset)


def test_impossible_task(folder: Path) -> None:
    assert_refused(folder, "task classification is not possible for this Seq2Seq", "translation", error=UsageError, task="classification")
