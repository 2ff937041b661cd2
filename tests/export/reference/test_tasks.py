"""The original in PyTorch does every task by the runtime's rules: only the model is another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onnxport.errors import UsageError
from onnxport.export.reference.model import PyTorchReference
from support import causal_folders, hf_folders, tiny_encoder

INPUTS = ["input_ids", "token_type_ids", "attention_mask"]  # what the tokenizer gives, as its folder says
NAMES = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
TEXTS = ["the cat sat", "a dog, by the door", "no", "all of it went by so fast that no one saw it " * 4]


def bert(folder: Path, kind: str, **more: Any) -> tuple[PyTorchReference, Any]:
    """A reference of a random BERT, and transformers' class itself."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=len(tiny_encoder.PIECES), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=64, pad_token_id=0, **more,
    )  # fmt: skip
    model = getattr(transformers, kind)(config).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    model.save_pretrained(folder)
    tiny_encoder.tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": INPUTS, **NAMES})
    )
    return PyTorchReference(str(folder)), model


@torch.no_grad()
def outputs(model: Any, *text: str) -> Any:
    encoding = tiny_encoder.tokenizer().encode(*text)
    return model(input_ids=torch.tensor([encoding.ids]), token_type_ids=torch.tensor([encoding.type_ids]))


def test_labels(tmp_path: Path) -> None:
    reference, model = bert(tmp_path, "BertForSequenceClassification", id2label={0: "calm", 1: "glad", 2: "sad"})
    found = reference.classify([*TEXTS, ("a cat", "a dog")])
    for given, one in zip([*((text,) for text in TEXTS[:3]), ("a cat", "a dog")], [*found[:3], found[4]], strict=True):
        shares = outputs(model, *given).logits[0].softmax(-1)
        assert one.scores == pytest.approx({model.config.id2label[i]: float(share) for i, share in enumerate(shares)}, abs=1e-5)
    assert found[3].label in ("calm", "glad", "sad")  # longer than the model: windows
    with pytest.raises(UsageError, match="does not generate"):
        reference.generate(["text"])


def test_answers(tmp_path: Path) -> None:
    reference, model = bert(tmp_path, "BertForQuestionAnswering")
    context = "my cat sat on this mat"
    (found,) = reference.answer(question=["who?"], context=[context])
    assert context[found.start : found.end] == found.answer
    encoding, output = tiny_encoder.tokenizer().encode("who?", context), outputs(model, "who?", context)
    inside = torch.tensor([part == 1 for part in encoding.sequence_ids])
    allowed = inside.clone()
    allowed[0] = True
    first, last = (logits[0].masked_fill(~allowed, -torch.inf).softmax(-1) * inside for logits in (output.start_logits, output.end_logits))
    assert found.score == pytest.approx(float(torch.triu(first[:, None] * last[None]).max()), rel=1e-4)


def test_vectors(tmp_path: Path) -> None:
    reference, model = bert(tmp_path, "BertModel")
    wanted = [outputs(model, text).last_hidden_state[0].mean(0).numpy() for text in TEXTS[:3]]
    np.testing.assert_allclose(reference.encode(TEXTS[:3]), wanted, atol=1e-5)


def test_likelihoods_and_scores(tmp_path: Path) -> None:
    model = causal_folders.make("gpt2")
    model.save_pretrained(tmp_path)
    reference = PyTorchReference(str(tmp_path))
    ids = np.random.default_rng(0).integers(3, 97, (1, 20))
    with torch.no_grad():
        logprobs = model(torch.tensor(ids)).logits[0].log_softmax(-1).numpy()
    own = logprobs[np.arange(19), ids[0, 1:]]
    (found,) = reference.likelihoods(ids.tolist())
    assert (found.negative_log, found.tokens) == (pytest.approx(-own.sum(), rel=1e-5), 19)
    (scored,) = reference.score([ids[0, :12].tolist()], [ids[0, 12:].tolist()], top=2)
    np.testing.assert_allclose(scored.token_logprobs, own[11:], atol=1e-4)
    np.testing.assert_array_equal(scored.top_ids, np.argsort(-logprobs[11:19], 1)[:, :2])
    together = reference.likelihoods([ids[0].tolist(), [5, 6, 7]], window=6, stride=2)
    alone = [reference.likelihoods([one], window=6, stride=2)[0] for one in (ids[0].tolist(), [5, 6, 7])]
    assert [one.negative_log for one in together] == pytest.approx([one.negative_log for one in alone], rel=1e-5)


def test_scores_of_an_encoder_decoder(tmp_path: Path) -> None:
    folder = hf_folders.marian(tmp_path / "marian")
    reference = PyTorchReference(str(folder))
    sources, targets = [[5, 9, 12, 0], [7, 0]], [[8, 3, 0], [4, 0]]
    found = reference.score(sources, targets)
    model = reference.model.model
    start = model.config.decoder_start_token_id
    for source, target, one in zip(sources, targets, found, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([[start, *target[:-1]]])).logits[0]
        wanted = logits.log_softmax(-1)[torch.arange(len(target)), torch.tensor(target)]
        np.testing.assert_allclose(one.token_logprobs, wanted.numpy(), atol=1e-4)
    with pytest.raises(UsageError, match="models that continue a text"):
        reference.likelihoods([[5, 6]])
