"""The original as a peer decodes exactly as the user's own class does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from onnxport.errors import TextError, UsageError
from onnxport.export import CausalLM, Encoder
from onnxport.export.deferred import has_deferred
from onnxport.export.exported import Exported
from onnxport.export.reference import model
from onnxport.export.reference.model import PyTorchReference
from support import causal_folders
from support import tiny_torch as tiny
from support.plain_beam import beam_search


@pytest.fixture(scope="module")
def reference(folder: Path) -> PyTorchReference:
    return PyTorchReference(str(folder))


def test_weights_that_do_not_fit_are_read_from_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = causal_folders.write(tmp_path / "llama", "llama", num_hidden_layers=1) / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    held = PyTorchReference(str(file.parent))
    monkeypatch.setattr(model, "_free_memory", lambda: 0.0)
    read = PyTorchReference(str(file.parent))
    assert has_deferred(read.modules[0]) and not has_deferred(held.modules[0])
    rows = [[5, 9, 12], [7]]
    assert read.generate(rows, max_new_tokens=6) == held.generate(rows, max_new_tokens=6)


SOURCES = [[5, 9, 12, 4, 2], [7], [30, 31, 8], []]


def test_greedy_equals_the_golden_answers(reference: PyTorchReference, from_folder: Exported) -> None:
    goldens = from_folder.goldens
    sources = [row[mask > 0].tolist() for row, mask in zip(goldens["greedy/source_ids"], goldens["greedy/source_mask"], strict=True)]
    wanted = [row[:length].tolist() for row, length in zip(goldens["greedy/tokens"], goldens["greedy/lengths"], strict=True)]
    assert [result["tokens"] for result in reference.generate(sources, max_new_tokens=16)] == wanted


@pytest.mark.parametrize("beam", [2, 4])
def test_beam_equals_a_plain_search(reference: PyTorchReference, beam: int) -> None:
    results = reference.generate(SOURCES, max_new_tokens=9, beam=beam)
    model = reference.model
    for source, result in zip(SOURCES[:3], results, strict=False):
        with torch.no_grad():
            ids = torch.tensor([source])
            memory = model.encode(ids, torch.ones_like(ids))

            def following(rows: torch.Tensor, memory: torch.Tensor = memory, ids: torch.Tensor = ids) -> torch.Tensor:
                count = len(rows)
                return model.decode(rows, memory.expand(count, -1, -1), torch.ones_like(ids).expand(count, -1))[:, -1]

            tokens, score = beam_search(following, 1, 2, beam, 9)
        assert result["tokens"] == tokens and result["score"] == pytest.approx(score, abs=1e-4)
    assert results[3] == {"text": "", "tokens": [], "score": 0.0}


def test_batches_do_not_change_answers(reference: PyTorchReference) -> None:
    for beam in (1, 3):
        together = reference.generate(SOURCES, max_new_tokens=8, beam=beam)
        assert [r["tokens"] for r in together] == [r["tokens"] for r in reference.generate(SOURCES, 8, beam=beam, batch_size=1)]


def test_least_and_most_tokens(reference: PyTorchReference) -> None:
    for beam in (1, 2):
        assert {len(r["tokens"]) for r in reference.generate(SOURCES[:3], 12, 12, beam)} == {12}
        assert all(len(r["tokens"]) <= 32 for r in reference.generate(SOURCES[:3], 99, beam=beam))  # as many as there are positions


def test_text_goes_through_the_tokenizers(reference: PyTorchReference) -> None:
    (by_text,), (by_ids,) = reference.generate(["w5 w9 w12"], 6), reference.generate([[5, 9, 12]], 6)
    assert by_text == by_ids and by_text["text"] == "".join(f"w{i}" if i > 2 else "" for i in by_text["tokens"])


def test_causal_prompts_of_different_lengths() -> None:
    model = CausalLM(transformer=tiny.encoder_stack(), embedding=nn.Embedding(20, 16), pad_id=0, bos_id=1, eos_id=2)
    reference = PyTorchReference(model)
    prompts = [[3, 4, 5, 6], [7], [8, 9]]
    together = [result["tokens"] for result in reference.generate(prompts, 5)]
    assert together == [reference.generate([prompt], 5)[0]["tokens"] for prompt in prompts]
    with pytest.raises(TextError, match="no tokenizer"):
        reference.generate(["text"])
    with pytest.raises(UsageError, match="it does not run on arrays"):
        reference.run({})
    with pytest.raises(UsageError, match="does not encode"):
        reference.encode(["text"])


def test_encoder_gives_vectors_of_length_one() -> None:
    model = Encoder(transformer=tiny.encoder_stack(), embedding=nn.Embedding(20, 16), tokenizer=tiny.words(20))
    vectors = PyTorchReference(model).encode(["w3 w4 w5", "w6"])
    alone = PyTorchReference(model).encode(["w6"])
    assert vectors.shape == (2, 16) and abs((vectors**2).sum(1) - 1).max() < 1e-5 and abs(vectors[1] - alone[0]).max() < 1e-5


def test_no_texts_give_no_vectors_and_a_run_changes_nothing() -> None:
    embedding, tokenizer = nn.Embedding(20, 16), tiny.words(20)
    model = Encoder(transformer=tiny.encoder_stack(), embedding=embedding, head=nn.Linear(16, 3), pooling="first", tokenizer=tokenizer)
    reference = PyTorchReference(model)
    ids = np.array([[3, 4, 5]])
    headless = Encoder(transformer=tiny.encoder_stack(), embedding=embedding, tokenizer=tokenizer)
    assert PyTorchReference(headless).encode([]).shape == (0, 16)
    first, again = (reference.run({"input_ids": ids, "attention_mask": np.ones_like(ids)})["logits"] for _ in range(2))
    assert first.shape == (1, 3) and np.array_equal(first, again)
    assert model.pooling == "first" and model.transformer.training
