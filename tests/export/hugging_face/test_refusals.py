"""Every Hugging Face folder that cannot be exported is refused in one line, before anything is traced."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from onnxport.errors import UsageError
from support import hf_folders
from support import tiny_torch as tiny
from support.refusals import assert_refused

WRITERS = {"marian": hf_folders.marian, "bart": hf_folders.bart}


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write(tmp_path_factory.mktemp(name) / name) for name, write in WRITERS.items()}


@pytest.fixture
def folder(originals: dict[str, Path], tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy to spoil: Marian, unless the test is parametrized otherwise."""
    return Path(shutil.copytree(originals[getattr(request, "param", "marian")], tmp_path / "copy"))


def change(folder: Path, file: str = "config.json", **changes: Any) -> Path:
    path = folder / file
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))
    return folder


@pytest.mark.parametrize(
    ("folder", "changes", "parts"),
    [
        (
            "marian",
            {"model_type": "nosuch"},
            ["model_type 'nosuch'", "does not know", '"architecture": "torch.nn', "an encoder-decoder"],
        ),
        ("marian", {"model_type": "opt"}, ["is_encoder_decoder is True, expected a decoder alone", "expected one of OPTForCausalLM"]),
        ("marian", {"model_type": ["marian"]}, ["model_type ['marian']"]),
        ("marian", {"quantization_config": {"bits": 4}}, ["quantization_config has the quant_method None, expected one of gptq"]),
        ("marian", {"head_dim": 4, "auto_map": {}}, ["head_dim is not a key", "auto_map is not a key"]),
        ("marian", {"normalize_before": True}, ["normalize_before is True, expected one of False"]),
        ("marian", {"normalize_embedding": True}, ["normalize_embedding is True"]),
        ("marian", {"static_position_embeddings": False}, ["static_position_embeddings is False"]),
        ("marian", {"add_final_layer_norm": True}, ["add_final_layer_norm is True"]),
        ("marian", {"decoder_vocab_size": 61}, ["embeddings are shared but vocab_size is 97 and decoder_vocab_size 61"]),
        ("marian", {"architectures": ["MarianForCausalLM"]}, ["MarianForCausalLM", "expected one of MarianMTModel, MarianModel"]),
        ("marian", {"activation_function": "mish"}, ["activation_function is 'mish'", "'swish'"]),
        ("marian", {"d_model": "32"}, ["transformers refuses", "Field 'd_model' expected int"]),
        ("marian", {"decoder_layers": 0}, ["decoder_layers is 0"]),
        ("marian", {"encoder_attention_heads": 5}, ["d_model 32 does not divide by encoder_attention_heads 5"]),
        ("marian", {"num_hidden_layers": 6}, ["num_hidden_layers is 6, expected encoder_layers's 2"]),
        ("marian", {"is_encoder_decoder": False}, ["is_encoder_decoder is False"]),
        ("marian", {"dropout": "much"}, ["transformers refuses", "dropout"]),
        ("bart", {"architectures": ["BartForSequenceClassification"]}, ["missing tensors: classification_head.dense.weight"]),
        ("bart", {"normalize_embedding": False}, ["normalize_embedding is False"]),
        ("bart", {"force_bos_token_to_be_generated": True}, ["expected forced_bos_token_id"]),
        ("bart", {"prefix": "summarize: "}, ["prefix is 'summarize: '"]),
    ],
    indirect=["folder"],
    ids=lambda value: str(value)[:60],
)
def test_config(folder: Path, changes: dict[str, Any], parts: list[str]) -> None:
    assert_refused(change(folder, **changes), *parts)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"num_beam_groups": 2}, ["num_beam_groups is 2, which a bundle cannot do"]),
        ({"penalty_alpha": 0.6, "encoder_repetition_penalty": 3.0}, ["penalty_alpha is 0.6", "encoder_repetition_penalty is 3.0"]),
        ({"exponential_decay_length_penalty": [5, 1.1]}, ["exponential_decay_length_penalty is [5, 1.1]"]),
        ({"do_sample": True, "typical_p": 0.5}, ["typical_p is 0.5"]),
        ({"do_sample": True, "num_beams": 2}, ["do_sample is True with num_beams 2"]),
        ({"guidance_scale": 1.5, "stop_strings": ["."]}, ["guidance_scale is 1.5", "stop_strings is ['.']"]),
        ({"bad_words_ids": [[97]]}, ["bad_words_ids is 97, expected an id from 0 to 96"]),
        ({"eos_token_id": [0, 99]}, ["eos_token_id is 99"]),
        ({"decoder_start_token_id": ...}, ["neither decoder_start_token_id nor bos_token_id"]),
        ({"no_repeat_ngram_size": 2.5}, ["no_repeat_ngram_size is 2.5, expected an integer"]),
        ({"num_beams": 2, "length_penalty": 11.0}, ["length_penalty is 11.0, expected a number from -10 to 10"]),
        ({"do_sample": True, "top_p": 1.5}, ["top_p is 1.5, expected a number from 1.175e-38 to 1"]),
        ({"max_length": 9, "min_new_tokens": 10}, ["min_new_tokens is 10, expected at most max_new_tokens (8)"]),
        ({"max_new_tokens": 3, "min_length": 5}, ["min_new_tokens is 4, expected at most max_new_tokens (3)"]),
    ],
    ids=lambda value: str(value)[:60],
)
def test_generation_settings(folder: Path, changes: dict[str, Any], parts: list[str]) -> None:
    assert_refused(change(folder, "generation_config.json", **changes), *parts)


def test_generation_config_that_is_none(folder: Path) -> None:
    (folder / "generation_config.json").write_text("[1]")
    assert_refused(folder, "generation_config.json holds a JSON list")
    (folder / "generation_config.json").write_text("{")
    assert_refused(folder, "generation_config.json is not valid JSON")


def test_all_gaps_are_told_at_once(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.encoder.layers.1.fc1.bias"], tensors["model.shared.weight"]
    tensors |= {
        "surprise.weight": torch.ones(2),
        "model.encoder.layers.0.fc1.bias": torch.ones(47),
        "model.encoder.layers.0.fc2.bias": torch.full((32,), torch.nan),
        "model.decoder.layers.0.fc2.bias": torch.ones(32, dtype=torch.int64),
    }
    save_file(tensors, path, {"format": "pt"})
    change(folder, "generation_config.json", num_beam_groups=2)
    assert_refused(
        folder,
        "missing tensors: model.shared.weight, model.encoder.layers.1.fc1.bias",
        "unexpected tensors: surprise.weight",
        "model.encoder.layers.0.fc1.bias has shape [47], expected [48]",
        "model.encoder.layers.0.fc2.bias holds NaN or infinity",
        "model.decoder.layers.0.fc2.bias is int64, expected a floating type",
        "num_beam_groups is 2",
    )


def test_untied_head_is_missing(folder: Path) -> None:
    assert_refused(change(folder, tie_word_embeddings=False), "missing tensors", "lm_head.weight", "model.encoder.embed_tokens.weight")


def test_weight_files(folder: Path) -> None:
    whole = folder / "model.safetensors"
    data = whole.read_bytes()
    whole.write_bytes(data[: len(data) // 2])
    assert_refused(folder, "model.safetensors is not a whole safetensors file")
    whole.unlink()
    assert_refused(folder, "has no weights; expected model.safetensors or model.safetensors.index.json")
    torch.save({}, folder / "pytorch_model.bin")
    assert_refused(folder, "only pickled weights (pytorch_model.bin)", "--allow-pickle")
    assert_refused(folder, "missing tensors", allow_pickle=True)
    index = folder / "model.safetensors.index.json"
    for text, part in (
        ("{", "model.safetensors.index.json is not valid JSON"),
        ("{}", "has a weight_map that does not lead from tensors to files of the folder"),
        ('{"weight_map": {"a": "../b"}}', "does not lead from tensors to files of the folder"),
        ('{"weight_map": {"a": "part-1.safetensors", "a": "part-2.safetensors"}}', "names tensors twice: a"),
        ('{"weight_map": {"a": "part-1.safetensors"}}', "names files that are not there: part-1.safetensors"),
    ):
        index.write_text(text)
        assert_refused(folder, part)
    save_file({"b": torch.ones(1)}, folder / "part-1.safetensors")
    assert_refused(folder, "part-1.safetensors lacks tensors that model.safetensors.index.json places there: a")


def test_adapter_of_peft(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    assert_refused(folder, "adapter_config.json", "--adapter")


@pytest.mark.parametrize("folder", ["bart"], indirect=True)
def test_tokenizer_with_more_ids_than_rows(folder: Path) -> None:
    tiny.words(98).save(str(folder / "tokenizer.json"))
    assert_refused(folder, "the source tokenizer has ids up to 97 and the source vocabulary 97 rows")


def test_transformers_is_not_installed_or_too_old(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    monkeypatch.setattr(transformers, "__version__", "4.57.6")
    assert_refused(folder, "transformers 5", "4.57.6", "onnxport[export]", error=UsageError)
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert_refused(folder, "needs transformers", "onnxport[export]", error=UsageError)


def test_impossible_task(folder: Path) -> None:
    assert_refused(folder, "task embedding is not possible", "translation", error=UsageError, task="embedding")
