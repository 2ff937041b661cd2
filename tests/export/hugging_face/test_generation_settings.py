"""Generation settings of Hugging Face folders, and transformers' own `generate` as the reference of a comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from onnxport.errors import TextError
from onnxport.export import golden
from onnxport.export.hugging_face.generation_settings import read_generation, special_ids
from onnxport.export.reference.model import PyTorchReference
from onnxport.export.resolve import resolve
from support import hf_folders
from support import tiny_torch as tiny

SOURCES = [[5, 9, 12, 4, 2], [7], [30, 31, 8], []]


def settings(**given: Any) -> dict[str, Any]:
    """What a bundle is told for these keys of a generation_config.json; nothing may be refused."""
    from transformers import GenerationConfig

    found, problems = read_generation(GenerationConfig(**given), 50, [2], True)
    assert problems == []
    return found


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, {}),
        ({"num_beams": 1, "length_penalty": 1.0, "early_stopping": False, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}, {}),
        ({"temperature": 0.7, "top_k": 5, "top_p": 0.9, "typical_p": 0.5, "min_p": 0.1}, {}),  # nothing without sampling
        ({"do_sample": True}, {"temperature": 1.0, "top_k": 50}),
        ({"do_sample": True, "top_k": 0, "top_p": 1.0}, {"temperature": 1.0}),  # the whole distribution, not greedy
        ({"do_sample": True, "top_k": 0, "top_p": 0.9, "temperature": 0.5}, {"top_p": 0.9, "temperature": 0.5}),
        ({"num_beams": 4, "early_stopping": "never", "length_penalty": 0.6}, {"beam": 4, "early_stopping": "never", "length_penalty": 0.6}),
        ({"forced_bos_token_id": 0, "forced_eos_token_id": [2, 3]}, {"forced_bos_id": 0, "forced_eos_id": [2, 3]}),
        (
            {"forced_eos_token_id": [2], "suppress_tokens": [4, 5], "begin_suppress_tokens": [6]},
            "forced_eos_id suppressed begin_suppressed",
        ),
        ({"bad_words_ids": [[49], [2], [3, 4]]}, {"bad_words": [[49], [3, 4]]}),  # the end itself is never forbidden
        ({"bad_words_ids": [[2]]}, {}),
        ({"max_length": 20, "min_length": 1}, {"max_new_tokens": 19}),
        ({"max_length": 20, "max_new_tokens": 7, "min_length": 9, "min_new_tokens": 3}, {"max_new_tokens": 7, "min_new_tokens": 3}),
        ({"repetition_penalty": 1.2, "renormalize_logits": True}, {"repetition_penalty": 1.2, "renormalize": True}),
    ],
    ids=lambda value: str(value)[:50],
)
def test_settings_that_change_answers_are_carried(given: dict[str, Any], wanted: Any) -> None:
    if isinstance(wanted, str):
        wanted = dict(zip(wanted.split(), (2, [4, 5], [6]), strict=True))
    assert settings(**given) == wanted


def test_special_ids_as_generate_takes_them() -> None:
    from transformers import GenerationConfig

    ids, problems = special_ids(GenerationConfig(eos_token_id=[2, 3], bos_token_id=1), 50, 40, True)
    assert problems == [] and ids == {"pad_id": 2, "bos_id": 1, "eos_id": [2, 3], "decoder_start_id": 1}
    _, problems = special_ids(GenerationConfig(eos_token_id=2, pad_token_id=45, decoder_start_token_id=0), 50, 40, True)
    assert problems == ["pad_token_id is 45, expected an id from 0 to 39"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BART with a tokenizer, two ends, and settings that bite."""
    path = hf_folders.bart(tmp_path_factory.mktemp("bart") / "bart", seed=1, forced_eos_token_id=None)
    tiny.words(97).save(str(path / "tokenizer.json"))
    config = json.loads((path / "generation_config.json").read_text())
    config |= {"eos_token_id": [2, 17], "no_repeat_ngram_size": 2, "min_length": 4, "bad_words_ids": [[1]]}
    (path / "generation_config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def reference(folder: Path) -> PyTorchReference:
    return PyTorchReference(str(folder), 1)


@pytest.mark.parametrize("beam", [1, 3])
def test_reference_is_generate_without_batch_or_cache(reference: PyTorchReference, folder: Path, beam: int) -> None:
    from transformers import BartForConditionalGeneration

    results = reference.generate(SOURCES, 11, beam=beam, batch_size=3)
    model = BartForConditionalGeneration.from_pretrained(folder).eval()
    for source, result in zip(SOURCES[:3], results, strict=False):
        tokens = model.generate(torch.tensor([source]), max_new_tokens=11, num_beams=beam, use_cache=False)[0, 1:].tolist()
        ends = [i for i, token in enumerate(tokens) if token in (2, 17)]
        assert result["tokens"] == (tokens[: ends[0]] if ends else tokens) and len(result["tokens"]) >= 3
        assert result["text"] == "".join(f"w{i}" for i in result["tokens"] if i > 2)
        if beam == 1:  # the score is that of the tokens that were chosen among those that were allowed
            assert result["score"] < 0
    assert results[3] == {"text": "", "tokens": [], "score": 0.0}
    assert len({tuple(result["tokens"]) for result in results[:3]}) > 1


def test_beams_are_the_folders_own(tmp_path: Path) -> None:
    """Where a caller says nothing; as many as a bundle of the folder is told."""
    own = hf_folders.marian(tmp_path / "beams", seed=2, generation={"num_beams": 3})
    found = PyTorchReference(own)
    assert found.adapter.generation["beam"] == 3
    assert found.generate(SOURCES, 9) == found.generate(SOURCES, 9, beam=3) != found.generate(SOURCES, 9, beam=1)


def test_reference_reads_text(reference: PyTorchReference) -> None:
    assert reference.generate(["w5 w9 w12 w4"], 6) == reference.generate([[5, 9, 12, 4]], 6)
    with pytest.raises(TextError, match="has 41 tokens, the model takes at most 40"):
        reference.generate([[3] * 41])


def test_least_and_most_tokens(reference: PyTorchReference) -> None:
    for beam in (1, 2):
        assert {len(r["tokens"]) for r in reference.generate(SOURCES[:3], 12, 12, beam)} == {12}
        assert all(len(r["tokens"]) <= 40 for r in reference.generate(SOURCES[:3], 99, beam=beam))  # as many as there are positions


def test_greedy_without_settings_equals_the_golden_answers(tmp_path: Path) -> None:
    """Score and tokens of a plain greedy search, by hand."""
    source = hf_folders.marian(tmp_path / "marian", seed=2, forced_eos_token_id=None)
    adapter = resolve(source).adapter
    original = adapter.original()
    with torch.no_grad():
        goldens = golden.seq2seq_goldens(original, adapter.ids, adapter.max_length)
        rows = [row[mask > 0].tolist() for row, mask in zip(goldens["greedy/source_ids"], goldens["greedy/source_mask"], strict=True)]
        wanted = [row[:length].tolist() for row, length in zip(goldens["greedy/tokens"], goldens["greedy/lengths"], strict=True)]
        results = PyTorchReference(source).generate(rows, 16)
        assert [result["tokens"] for result in results] == wanted
        for row, result in zip(rows, results, strict=True):
            ids = torch.tensor([row])
            target = torch.tensor([[96, *result["tokens"], *([0] if len(result["tokens"]) < 16 else [])]])
            logprobs = original.forward(ids, torch.ones_like(ids), target[:, :-1]).log_softmax(-1)
            assert result["score"] == pytest.approx(float(logprobs.gather(2, target[:, 1:, None]).sum()), abs=1e-4)
