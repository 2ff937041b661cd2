"""Keys that transformers itself never reads are passed over, and lengths count what they count in its `generate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from onnxport.build.stages import build
from onnxport.errors import TextError
from onnxport.export.hugging_face.generation_settings import not_obeyed, read_generation
from onnxport.export.resolve import resolve
from onnxport.export.transformers_library import unread_keys
from onnxport.runtime import load
from support import causal_folders as folders
from support.refusals import assert_refused

NOBODYS = {"unsloth_version": "2025.3", "transformers.js_config": {"dtype": "q4"}, "_model_name_or_path": "x", "my_own": [1]}
NOBODYS |= {"unk_token_id": 0, "model_max_length": 77, "_attn_implementation_autoset": True}


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gpt2", "bert", "roberta", "marian", "bart", "t5", "xlnet"])
def test_what_no_class_reads_is_told_from_what_one_does(model_type: str) -> None:
    assert unread_keys(model_type, NOBODYS) == set(NOBODYS)
    assert not unread_keys(model_type, ["quantization_config", "auto_map", "pad_token_id", "vocab_size"])
    assert ("sliding_window" in unread_keys(model_type, ["sliding_window"])) is False  # what loads any model speaks of it


def test_keys_that_nobody_reads_change_nothing(tmp_path: Path) -> None:
    folder = folders.write(tmp_path, "llama")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | NOBODYS))
    assert resolve(folder).family == "llama"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"bits": 4}}))
    assert_refused(folder, "quantization_config has the quant_method None")


def test_a_configuration_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    import transformers

    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64, "num_hash_buckets": 64}
    transformers.CanineModel(transformers.CanineConfig(**sizes, max_position_embeddings=256)).save_pretrained(tmp_path)
    assert_refused(tmp_path, "model_type 'canine'", "no vocab_size")


def test_settings_that_are_not_obeyed_are_told(tmp_path: Path) -> None:
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": 2, "use_cache": True, "cache_implementation": "static", "my_own": 3, "low_memory": None}))
    (found,) = not_obeyed(path)
    assert found.startswith("generation_config.json: cache_implementation, my_own not obeyed")
    path.write_text(json.dumps({"eos_token_id": 2, "max_length": 9}))
    assert not not_obeyed(path) and not not_obeyed(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"max_length": 20, "min_length": 9}, {"max_total_tokens": 20, "min_total_tokens": 9}),
        ({"max_length": 20, "max_new_tokens": 7, "min_length": 9, "min_new_tokens": 3}, {"max_new_tokens": 7, "min_new_tokens": 3}),
        ({"max_length": 20, "min_new_tokens": 3}, {"max_total_tokens": 20, "min_new_tokens": 3}),
    ],
)
def test_lengths_of_a_language_model_count_the_prompt(given: dict[str, Any], wanted: dict[str, Any]) -> None:
    from transformers import GenerationConfig

    assert read_generation(GenerationConfig(**given), 50, [2], False) == (wanted, [])


def test_a_bundle_stops_where_generate_does(tmp_path: Path) -> None:
    prompts = [[5, 9, 33, 12], [7, 3, 8], [4] * 11]
    model = folders.make("llama")
    free = model.generate(torch.tensor(prompts[:1]), max_new_tokens=20, do_sample=False, eos_token_id=None)[0, 4:].tolist()
    end = next(token for token in free[2:] if token not in free[:2])  # comes early unless min_length forbids it
    model.save_pretrained(tmp_path / "source")
    said = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": end, "min_length": 10, "max_length": 14}
    (tmp_path / "source" / "generation_config.json").write_text(json.dumps(said))
    again = type(model).from_pretrained(tmp_path / "source").eval()
    with load(build(str(tmp_path / "source"), tmp_path / "bundle", precision=("fp32",)).path, threads=1) as ours:
        for prompt, found in zip(prompts, ours.generate(prompts), strict=True):
            row = again.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False)
            new = row[0, len(prompt) :].tolist()
            assert list(found.tokens) == (new[: new.index(end)] if end in new else new)
            assert len(new) <= 14 - len(prompt)
        with pytest.raises(TextError, match="max_length of prompt and answer is 14; give max_new_tokens"):
            ours.generate([[4] * 14])
        assert len(ours.generate([[4] * 14], min_new_tokens=3, max_new_tokens=3)[0].tokens) == 3  # the caller's own lengths go first
