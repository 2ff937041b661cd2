"""Hugging Face's Marian and BART through the canonical model equal transformers' own classes, in every setting and folder layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onnxport.export import golden
from onnxport.export.canonical.graphs import check_seq2seq, expected_fusions
from onnxport.export.hugging_face.seq2seq import HuggingFaceSeq2Seq
from onnxport.export.resolve import resolve
from onnxport.export.source import Source
from onnxport.export.user_code import evaluating
from support import hf_folders

Write = Callable[..., Path]
FAMILIES = pytest.mark.parametrize("write", [hf_folders.marian, hf_folders.bart])


def loaded_by_transformers(folder: Path) -> Any:
    import transformers

    name = json.loads((folder / "config.json").read_text())["model_type"]
    cls = {"marian": transformers.MarianMTModel, "bart": transformers.BartForConditionalGeneration}[name]
    return cls.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()


def assert_canonical_equals_transformers(folder: Path, **options: Any) -> Source:
    """The golden logits are the class's own, and the canonical model gives them by prefill and by cached steps."""
    found = resolve(folder, **options)
    assert isinstance(found.adapter, HuggingFaceSeq2Seq)
    adapter, model = found.adapter, loaded_by_transformers(folder)
    with evaluating(adapter.model):
        goldens = golden.seq2seq_goldens(adapter.original(), adapter.ids, adapter.max_length)
        check_seq2seq(adapter.build(), goldens)
        for case in ("seq0", "seq1", "seq2"):
            source, mask, target = (torch.from_numpy(goldens[f"{case}/{name}"]) for name in ("source_ids", "source_mask", "target_ids"))
            theirs = model(input_ids=source, attention_mask=mask.long(), decoder_input_ids=target).logits.numpy()
            compared = np.arange(target.shape[1])[None, :] < goldens[f"{case}/target_lengths"][:, None]
            assert abs(goldens[f"{case}/logits"] - theirs)[compared].max() < 1e-4
    return found


def change_config(folder: Path, file: str = "config.json", **changes: Any) -> Path:
    """Keys of a JSON file replaced; `...` drops one."""
    path = folder / file
    config = (json.loads(path.read_text()) if path.exists() else {}) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))
    return folder


SETTINGS: list[dict[str, Any]] = [
    {},
    {"encoder_layers": 1, "decoder_layers": 3},
    {"encoder_layers": 3, "decoder_layers": 1, "encoder_ffn_dim": 20, "decoder_ffn_dim": 70},
    {"d_model": 40, "encoder_attention_heads": 2, "decoder_attention_heads": 10},  # heads of 20 and 4
    {"d_model": 64, "encoder_attention_heads": 1, "decoder_attention_heads": 2},  # heads of 64 and 32
    {"d_model": 160, "encoder_attention_heads": 8, "decoder_attention_heads": 2, "decoder_layers": 1},  # heads of 20 and 80
    {"scale_embedding": False},
    {"scale_embedding": True},
    {"tie_word_embeddings": False},
    {"max_position_embeddings": 5},
    *[{"activation_function": name} for name in ("relu", "gelu", "silu", "gelu_new", "quick_gelu", "tanh", "relu2", "gelu_pytorch_tanh")],
]


@FAMILIES
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(map(str, settings)) or "usual")
def test_every_setting_equals_transformers(tmp_path: Path, write: Write, settings: dict[str, Any]) -> None:
    found = assert_canonical_equals_transformers(write(tmp_path / "model", **settings))
    assert found.family == write.__name__ and found.name == "model"


@pytest.mark.parametrize("tied", [True, False])
def test_marian_with_vocabularies_apart(tmp_path: Path, tied: bool) -> None:
    sizes = {"vocab_size": 97, "decoder_vocab_size": 61, "share_encoder_decoder_embeddings": False, "tie_word_embeddings": tied}
    adapter = assert_canonical_equals_transformers(hf_folders.marian(tmp_path, **sizes)).adapter
    original, decoder = adapter.original(), adapter.build().graphs["decoder"].module
    assert (original.source_rows, original.target_rows, decoder.vocabulary) == (97, 61, 61)
    assert (decoder.head is None) == tied  # a tied table stays one tensor


def test_a_logits_bias_of_zeros_is_left_out(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = hf_folders.bart(tmp_path) / "model.safetensors"
    tensors = load_file(path)
    del tensors["final_logits_bias"]
    save_file(tensors, path, {"format": "pt"})
    adapter = assert_canonical_equals_transformers(tmp_path).adapter
    assert adapter.build().graphs["decoder"].module.head_bias is None


MARIAN_4 = {
    "_name_or_path": "somewhere/else",
    "add_bias_logits": False,
    "add_final_layer_norm": False,
    "bad_words_ids": [[96]],
    "bos_token_id": 0,
    "classif_dropout": 0.0,
    "classifier_dropout": 0.0,
    "extra_pos_embeddings": 97,
    "gradient_checkpointing": False,
    "id2label": {"0": "LABEL_0"},
    "label2id": {"LABEL_0": 0},
    "max_length": 33,
    "normalize_before": False,
    "normalize_embedding": False,
    "num_beams": 6,
    "num_hidden_layers": 2,
    "static_position_embeddings": True,
    "torch_dtype": "float16",
    "transformers_version": "4.22.0.dev0",
    "dtype": ...,
    "is_decoder": ...,
    "tie_word_embeddings": ...,
}
BART_4 = {
    "_num_labels": 3,
    "add_final_layer_norm": False,
    "early_stopping": True,
    "force_bos_token_to_be_generated": True,
    "forced_bos_token_id": 0,
    "length_penalty": 2.0,
    "max_length": 30,
    "min_length": 6,
    "no_repeat_ngram_size": 3,
    "normalize_before": False,
    "normalize_embedding": True,
    "num_beams": 4,
    "num_hidden_layers": 2,
    "output_past": True,
    "prefix": " ",
    "static_position_embeddings": False,
    "task_specific_params": {"summarization": {"num_beams": 4}},
    "transformers_version": "4.7.0.dev0",
    "dtype": ...,
    "tie_word_embeddings": ...,
}


def test_configs_of_transformers_4(tmp_path: Path) -> None:
    """Generation settings stand in config.json, and count while there is no generation_config.json."""
    folder = change_config(hf_folders.marian(tmp_path / "marian"), **MARIAN_4)
    ignored = assert_canonical_equals_transformers(folder)
    assert ignored.adapter.generation == {"forced_eos_id": 0} and ignored.task == "translation"
    (folder / "generation_config.json").unlink()
    found = resolve(folder)
    assert found.adapter.generation == {"forced_eos_id": 0, "bad_words": [[96]], "beam": 6, "max_new_tokens": 32}
    assert found.adapter.ids == {"pad_id": 96, "bos_id": 0, "eos_id": 0, "decoder_start_id": 96}
    folder = change_config(hf_folders.bart(tmp_path / "bart"), **BART_4)
    (folder / "generation_config.json").unlink()
    found = assert_canonical_equals_transformers(folder)
    assert found.task == "summarization" and found.adapter.generation == {
        "forced_bos_id": 0,
        "forced_eos_id": 2,
        "no_repeat_ngram": 3,
        "beam": 4,
        "length_penalty": 2.0,
        "early_stopping": True,
        "max_new_tokens": 29,
        "min_new_tokens": 5,
    }


@FAMILIES
def test_shards_pickles_half_precision_and_models_without_a_head(tmp_path: Path, write: Write) -> None:
    model = loaded_by_transformers(write(tmp_path / "one", seed=3))
    wanted = resolve(tmp_path / "one").adapter.model.state_dict()
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    write(tmp_path / "pickle", seed=4)
    (tmp_path / "pickle" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pickle" / "pytorch_model.bin")  # tied tensors under each of their names
    for name, options in (("shards", {}), ("pickle", {"allow_pickle": True})):
        found = assert_canonical_equals_transformers(tmp_path / name, **options)
        assert all(torch.equal(tensor, wanted[key]) for key, tensor in found.adapter.model.state_dict().items())
        assert {"config.json", "generation_config.json"} < set(found.hashes)
    model.half().save_pretrained(tmp_path / "half")
    assert_canonical_equals_transformers(tmp_path / "half")
    model.float().final_logits_bias.zero_()
    model.model.save_pretrained(tmp_path / "bare")
    assert json.loads((tmp_path / "bare" / "config.json").read_text())["architectures"] == [type(model.model).__name__]
    change_config(tmp_path / "bare", "generation_config.json", **json.loads((tmp_path / "one" / "generation_config.json").read_text()))
    assert_canonical_equals_transformers(tmp_path / "bare")


def test_norm_of_the_embeddings_counts_among_the_fusions(tmp_path: Path) -> None:
    for write, counts in ((hf_folders.marian, (4, 6)), (hf_folders.bart, (4, 7))):  # after tokens and positions, in the decoder
        expected = expected_fusions(resolve(write(tmp_path / write.__name__)).adapter.build())
        assert (expected["encoder"]["skip_layer_norm"], expected["decoder"]["skip_layer_norm"]) == counts
