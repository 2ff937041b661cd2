"""Answers and labels of exported BERTs against transformers: its tokenizer's windows, its model's logits, its pipelines' rules."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification, PreTrainedTokenizerFast

from onnxport.build.stages import build
from onnxport.runtime import load
from support import tiny_encoder as tiny

SIZES = {
    "vocab_size": len(tiny.PIECES), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
    "max_position_embeddings": 48, "pad_token_id": 0,
}  # fmt: skip
INPUTS = ["input_ids", "token_type_ids", "attention_mask"]  # what the tokenizer gives, as its folder says
NAMES = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
QUESTION = "Who sat there?"
CONTEXT = "The cat sat on the mat, and the dog lay by the door. " * 4


def exported(model: Any, folder: Path) -> Path:
    """The bundle of a model with random weights, fp32."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.eval().parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    model.save_pretrained(folder / "source")
    tiny.tokenizer().save(str(folder / "source" / "tokenizer.json"))
    (folder / "source" / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": INPUTS, **NAMES})
    )
    return build(str(folder / "source"), folder / "bundle", precision=("fp32",)).path


def theirs(*texts: str, stride: int) -> Any:
    """Windows by transformers' tokenizer, padded."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tiny.tokenizer(), **NAMES)
    return tokenizer(
        *texts, truncation="only_second" if len(texts) > 1 else True, max_length=SIZES["max_position_embeddings"], stride=stride,
        return_overflowing_tokens=True, return_token_type_ids=True, padding=True, return_tensors="pt",
    )  # fmt: skip


@torch.no_grad()
def logits(model: Any, windows: Any) -> Any:
    return model(**{name: windows[name] for name in ("input_ids", "attention_mask", "token_type_ids")})


def test_answers_are_those_of_the_original(tmp_path: Path) -> None:
    model = BertForQuestionAnswering(BertConfig(**SIZES))
    with load(exported(model, tmp_path), threads=1) as ours:
        (found,) = ours.answer(question=QUESTION, context=CONTEXT, stride=9, n_best=3, max_answer_tokens=12)
    windows = theirs(QUESTION, CONTEXT, stride=9)
    output = logits(model, windows)
    assert len(windows["input_ids"]) > 3
    best: list[tuple[float, int, int]] = []
    nothing = 1.0
    for i, encoding in enumerate(windows.encodings):
        inside = np.array([part == 1 for part in encoding.sequence_ids])
        allowed = inside | (np.arange(len(inside)) == 0)
        first, last = (
            torch.softmax(torch.where(torch.tensor(allowed), one[i].double(), -torch.inf), 0).numpy()
            for one in (output.start_logits, output.end_logits)
        )
        nothing = min(nothing, first[0] * last[0])
        first, last = first * inside, last * inside
        score, start, end = max((first[s] * last[e], s, e) for s in range(len(first)) for e in range(s, min(len(first), s + 12)))
        words = encoding.token_to_word(start), encoding.token_to_word(end)
        best.append((score, encoding.word_to_chars(words[0], 1)[0], encoding.word_to_chars(words[1], 1)[1]))
    score, start, end = max(best)
    assert found.score == pytest.approx(score, rel=1e-4)
    assert (found.start, found.end, found.answer) == (start, end, CONTEXT[start:end])
    assert found.no_answer_score == pytest.approx(nothing, rel=1e-4)
    assert len(found.alternatives) == 2


def test_labels_are_those_of_the_original(tmp_path: Path) -> None:
    labels = {0: "calm", 1: "glad", 2: "sad"}
    model = BertForSequenceClassification(BertConfig(**SIZES, num_labels=3, id2label=labels, problem_type="multi_label_classification"))
    with load(exported(model, tmp_path), threads=1) as ours:
        short, pair, long = ours.classify(["the cat", ("the cat", "a dog"), CONTEXT], stride=9)
    for result, texts in ((short, ["the cat"]), (pair, ["the cat", "a dog"]), (long, [CONTEXT])):
        windows = theirs(*texts, stride=9)
        weights = windows["attention_mask"].sum(1, keepdim=True).double()
        wanted = torch.sigmoid((logits(model, windows).logits * weights).sum(0) / weights.sum())
        assert [result.scores[name] for name in labels.values()] == pytest.approx(wanted.tolist(), abs=1e-5)
