"""Golden texts: of a model that knows them, what it makes of each; of any other, none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from onnxport.compare.texts import Sample, golden_texts, token_rows
from onnxport.export.description import EncoderModel
from onnxport.export.golden import BEFORE, LONG, SCORED, Inputs, causal_goldens, encoder_goldens, seq2seq_goldens
from onnxport.export.source import Source
from onnxport.runtime.bundle.golden import TEXT, by_case
from onnxport.runtime.bundle.kept import Kept, log_softmax
from onnxport.runtime.tokenizer import TextTokenizer

IDS: dict[str, Any] = {"pad_id": 0, "bos_id": None, "eos_id": 1, "decoder_start_id": 0}
BYTES = {character: i + 2 for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
ROWS = 2 + len(BYTES)


@pytest.fixture(scope="module")
def source() -> Source:
    """What has a tokenizer of bytes."""
    made = Tokenizer(models.BPE({"<pad>": 0, "</s>": 1} | BYTES, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return Source(None, "tiny", "tiny", tokenizers={"source": made.to_str().encode()})  # type: ignore[arg-type]


def pairs_seen(source: Source) -> Tensor:
    """Logits [previous, next] of bytes, by how often one follows another in the texts: a model that knows them."""
    counts = np.full((ROWS, ROWS), 0.01)
    for row in token_rows(golden_texts(), TextTokenizer(source.tokenizers["source"])):
        np.add.at(counts, (row[:-1], row[1:]), 1)
    return torch.from_numpy(np.log(counts).astype(np.float32))


class Pairs:
    """A language model, and an encoder-decoder, by a table of logits [previous, next]."""

    modules: list[Any] = []
    rows = source_rows = target_rows = ROWS

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def causal(self, ids: Tensor, last: int | None = None) -> Tensor:
        return self.table[ids if last is None else ids[:, -last:]]

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        return ids[:, :, None].float()

    def decode(self, target_ids: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        return self.table[target_ids]

    def forward(self, ids: Tensor, mask: Tensor, target_ids: Tensor) -> Tensor:
        return self.table[target_ids]


def test_a_language_model_that_knows_the_texts_is_judged_on_them(source: Source) -> None:
    table = pairs_seen(source)
    case = by_case(causal_goldens(Pairs(table), IDS, 300, source))[TEXT]
    kept = Kept.read(case)
    assert len(case["input_ids"]) > 15 and case["lengths"].max() == 300
    lengths = case["lengths"]
    first = np.maximum(1, lengths - SCORED)
    assert (case["first"] == np.where(lengths > LONG, first, np.minimum(first, BEFORE))).all() and (lengths > LONG).any()
    assert (case["scored"] == np.minimum(SCORED, lengths - case["first"])).all() and len(kept) == case["scored"].sum()
    row, begin = case["input_ids"][0], int(case["first"][0])
    expected = log_softmax(table.numpy()[row[begin - 1 : begin + 4]])
    np.testing.assert_allclose(kept.logprobs[:5], expected[np.arange(5), row[begin : begin + 5]], rtol=1e-5)
    assert kept.top_ids[:5, 0].tolist() == expected.argmax(1).tolist()


@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, 5.0])
def test_random_weights_are_judged_by_their_logits_alone(source: Source, scale: float) -> None:
    table = scale * torch.randn(ROWS, ROWS, generator=torch.Generator().manual_seed(1))
    assert sorted(by_case(causal_goldens(Pairs(table), IDS, 300, source))) == ["greedy", "seq0", "seq1", "seq2"]
    assert sorted(by_case(seq2seq_goldens(Pairs(table), IDS, 300, source=source))) == ["greedy", "seq0", "seq1", "seq2"]


def test_inputs_are_beginnings_of_texts(source: Source) -> None:
    """On random ids sums in float32 move a learned model's logits by as much as a fault of its export would."""
    rows = token_rows(golden_texts(), TextTokenizer(source.tokenizers["source"]))
    cases = by_case(causal_goldens(Pairs(pairs_seen(source)), IDS, 300, source))
    found = [
        row[:length].tolist()
        for i in range(3)
        for row, length in zip(cases[f"seq{i}"]["input_ids"], cases[f"seq{i}"]["lengths"], strict=True)
    ]
    lengths = cases["greedy"]["source_mask"].sum(1)
    found += [row[:length].tolist() for row, length in zip(cases["greedy"]["source_ids"], lengths, strict=True)]
    assert found == [row[: len(one)] for row, one in zip(rows, found, strict=False)]
    written = by_case(seq2seq_goldens(Pairs(pairs_seen(source)), IDS, 300, source=source))["seq0"]
    assert written["source_ids"][0].tolist() == rows[0][:7] and written["target_ids"][0].tolist() == [
        0,
        *rows[0][1 : written["target_lengths"][0]],
    ]


def test_a_row_that_is_longer_than_a_text_goes_on_with_the_next() -> None:
    inputs = Inputs(1, {0, 1}, [[0, 5, 6, 1], [7, 1, 8, 9]])
    assert inputs.rows(10, [6, 2], 0).tolist() == [[0, 5, 6, 7, 8, 9], [0, 5, 0, 0, 0, 0]]
    assert inputs.rows(10, [3], 0, start=4).tolist() == [[4, 8, 9]]


def _by_script() -> tuple[list[Sample], list[Sample]]:
    """Texts in Latin letters, and others."""
    others = [sample for sample in golden_texts() if sample.language in ("zh", "ja", "ru", "ar")]
    return [sample for sample in golden_texts() if sample not in others], others


def test_texts_that_a_model_does_not_know_are_left_out(source: Source) -> None:
    table = pairs_seen(source)
    tokenizer = TextTokenizer(source.tokenizers["source"])
    latin, others = ({i for row in token_rows(some, tokenizer) for i in row} for some in _by_script())
    foreign = sorted(others - latin)  # bytes of other scripts, of which it knows nothing
    table[foreign] = 5 * torch.randn(len(foreign), ROWS, generator=torch.Generator().manual_seed(1))
    whole = by_case(causal_goldens(Pairs(pairs_seen(source)), IDS, 300, source))[TEXT]
    fewer = by_case(causal_goldens(Pairs(table), IDS, 300, source))[TEXT]
    assert 5 < len(fewer["input_ids"]) < len(whole["input_ids"])


def test_without_a_tokenizer_there_are_no_texts(source: Source) -> None:
    assert TEXT not in by_case(causal_goldens(Pairs(pairs_seen(source)), IDS, 300, Source(None, "tiny", "tiny")))  # type: ignore[arg-type]


def test_an_encoder_decoder_is_followed_along_its_own_answers(source: Source) -> None:
    table = pairs_seen(source)
    table[:, 1] = -30.0  # no answer ends
    table[BYTES["n"], 1] = 30.0  # but behind an n
    case = by_case(seq2seq_goldens(Pairs(table), IDS, 60, source=source))[TEXT]
    assert case["source_ids"].shape[0] == 12 and (case["first"] == 1).all()
    for row, length in zip(case["target_ids"], case["target_lengths"], strict=True):
        greedy = [0]
        while len(greedy) < 25 and greedy[-1] != 1:
            greedy.append(int(table[greedy[-1]].argmax()))
        assert row[:length].tolist() == greedy
    assert len(Kept.read(case)) == case["scored"].sum() and (case["scored"] == case["target_lengths"] - 1).all()


@pytest.mark.parametrize(("width", "texts"), [(8, 24), (5000, 5)])
def test_encoders_are_asked_more_texts_where_answers_are_narrow(source: Source, width: int, texts: int) -> None:
    def answer(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"logits": inputs["input_ids"][:, :, None].float().expand(-1, -1, width)}

    model = EncoderModel([], answer, None, {"logits": ("batch", "sequence", width)}, ROWS, 0, 40, ("token-classification",))
    cases = by_case(encoder_goldens(model, source.tokenizers["source"], longest=1024))
    found = [case for name, case in cases.items() if name.startswith(TEXT)]
    assert sum(len(case["in/input_ids"]) for case in found) == texts
    assert max(case["in/input_ids"].shape[1] for case in found) == (40 if width == 8 else 8)
    assert sorted(set(cases) - {name for name in cases if name.startswith(TEXT)}) == ["case0", "long"]
