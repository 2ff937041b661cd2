"""Golden answers of models that read token ids: seeded inputs at several shapes, answered by the user's own class.

Those of plain modules are made in `routes.direct`, those of ONNX files in `onnx_file.original`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from onnxport.export.description import CausalOriginal, Seq2SeqOriginal
from onnxport.export.user_code import check_alike

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from onnxport.export.description import EncoderModel

POSITIONS = 24  # positions x vocabulary floats are stored for a large vocabulary
GREEDY_TOKENS = 16
# (source lengths, target lengths) a row: batch 1, a ragged batch with a length of 1, and 1 x 1
SEQ2SEQ_SHAPES = [([7], [5]), ([1, 4, 9], [3, 1, 4]), ([1], [1])]
CAUSAL_SHAPES = [[6], [1, 5, 3], [1]]
ENCODER_SHAPES = [[5], [1, 7, 3], [1]]
GREEDY_SHAPES = [3, 8, 1]
WIDE, FEW_TOKENS = 4096, 8  # numbers of an answer a token, above which texts are cut: golden answers are kept in the bundle
WORDS = (9, 24)  # of a vocabulary, at random
SAMPLE = (  # a question and its context
    "Where did the first steam railway for passengers open in 1825?",
    "The Stockton and Darlington Railway, which opened on 27 September 1825, carried coal and passengers between towns in north-east "
    "England; its first engine, Locomotion No. 1, was built by Robert Stephenson and Company in Newcastle.",
)


class Inputs:
    """Random ids of a vocabulary that are none of the special ones, unless nothing else is there."""

    def __init__(self, seed: int, special: set[int]) -> None:
        self.random, self.special = np.random.default_rng(seed), special

    def rows(self, vocabulary: int, lengths: list[int], pad: int, start: int | None = None) -> Tensor:
        """int64 [rows, longest], padded on the right; each row begins with `start` where one is given."""
        usual = np.array([i for i in range(vocabulary) if i not in self.special] or list(range(vocabulary)))
        ids = np.full((len(lengths), max(lengths)), pad, dtype=np.int64)
        for row, length in zip(ids, lengths, strict=True):
            row[:length] = self.random.choice(usual, length)
            if start is not None:
                row[0] = start
        return torch.from_numpy(ids)


def real(lengths: list[int]) -> Tensor:
    """int32 [rows, longest]: 1 where a row has a token."""
    return (torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]).int()


def fit(lengths: list[int], max_length: int | None) -> list[int]:
    """The lengths, none longer than `max_length` (None: no bound)."""
    return [min(length, max_length) if max_length is not None else length for length in lengths]


def scaled(lengths: list[int], vocabulary: int) -> list[int]:
    """Longer rows where the vocabulary is small enough to store them; a length of 1 stays."""
    factor = 2 if vocabulary <= 1000 else 1
    return [length * factor if length > 1 else 1 for length in lengths]


def special(ids: Mapping[str, Any]) -> set[int]:
    """Every id that is named; one name may stand for several."""
    return {i for value in ids.values() if value is not None for i in (value if isinstance(value, list) else [value])}


def seq2seq_goldens(
    model: Seq2SeqOriginal, ids: dict[str, Any], max_length: int | None, max_source_length: int | None = None, longest: int | None = None
) -> dict[str, np.ndarray]:
    """Cases `seq0..` and `greedy`, as the bundle's golden.npz names them.

    With `longest`, one more case with a source of so many tokens, but not more than the model takes.
    """
    inputs = Inputs(20240229, special(ids))
    pad, start = ids["pad_id"], ids["decoder_start_id"]
    source_rows, target_rows = model.source_rows, model.target_rows
    most = max_length if max_source_length is None else max_source_length
    result: dict[str, np.ndarray] = {}
    long = [] if longest is None else [([longest, max(1, longest // 3)], [2, 1])]
    for i, (sources, targets) in enumerate([*SEQ2SEQ_SHAPES, *long]):
        sources, targets = fit(sources, most), fit(scaled(targets, target_rows), max_length)
        source, mask = inputs.rows(source_rows, sources, pad), real(sources)
        target = inputs.rows(target_rows, targets, pad, start)
        logits = model.forward(source, mask, target)
        if not i:
            check_alike("the model", [logits], [model.forward(source, mask, target)])
        logits = logits * real(targets)[:, :, None]
        result |= {f"seq{i}/source_ids": source.numpy(), f"seq{i}/source_mask": mask.numpy(), f"seq{i}/target_ids": target.numpy()}
        result |= {f"seq{i}/target_lengths": np.array(targets), f"seq{i}/logits": logits.numpy()}
    lengths = fit(GREEDY_SHAPES, most)
    source, mask = inputs.rows(source_rows, lengths, pad), real(lengths)
    rows = greedy_seq2seq(model, source, mask, ids, min(GREEDY_TOKENS, max_length or GREEDY_TOKENS))
    return result | {"greedy/source_ids": source.numpy(), "greedy/source_mask": mask.numpy()} | _answers(rows, pad)


def greedy_seq2seq(model: Seq2SeqOriginal, source: Tensor, mask: Tensor, ids: dict[str, Any], count: int) -> list[list[int]]:
    """Plain greedy decoding without a cache: the lists hold neither the start nor the end token."""
    memory = model.encode(source, mask)
    target = torch.full((len(source), 1), ids["decoder_start_id"])
    for _ in range(count):
        token = model.decode(target, memory, mask)[:, -1].argmax(-1)
        target = torch.cat([target, token[:, None]], 1)
    return [until(row[1:].tolist(), special({"eos_id": ids["eos_id"]})) for row in target]


def causal_goldens(model: CausalOriginal, ids: dict[str, Any], max_length: int | None) -> dict[str, np.ndarray]:
    """Cases `seq0..` (`input_ids`, `lengths`, `logits`) and `greedy` (`source_ids` hold the prompts)."""
    inputs = Inputs(20240229, special(ids))
    vocabulary = model.rows
    result: dict[str, np.ndarray] = {}
    for i, lengths in enumerate(CAUSAL_SHAPES):
        lengths = fit(scaled(lengths, vocabulary), max_length)
        rows = inputs.rows(vocabulary, lengths, ids["pad_id"])
        logits = model.causal(rows)
        if not i:
            check_alike("the model", [logits], [model.causal(rows)])
        logits = logits * real(lengths)[:, :, None]
        result |= {f"seq{i}/input_ids": rows.numpy(), f"seq{i}/lengths": np.array(lengths), f"seq{i}/logits": logits.numpy()}
    lengths = fit(GREEDY_SHAPES, max(1, max_length // 2) if max_length is not None else None)
    prompts, mask = inputs.rows(vocabulary, lengths, ids["pad_id"]), real(lengths)
    count = min(GREEDY_TOKENS, max_length - max(lengths) + 1) if max_length is not None else GREEDY_TOKENS
    answers = [greedy_causal(model, row[:length], ids["eos_id"], count) for row, length in zip(prompts, lengths, strict=True)]
    return result | {"greedy/source_ids": prompts.numpy(), "greedy/source_mask": mask.numpy()} | _answers(answers, ids["pad_id"])


def greedy_causal(model: CausalOriginal, prompt: Tensor, eos: int | list[int] | None, count: int) -> list[int]:
    """Plain greedy continuation of one prompt [length], without a cache."""
    row = prompt[None]
    for _ in range(count):
        row = torch.cat([row, model.causal(row)[:, -1].argmax(-1)[:, None]], 1)
    return until(row[0, len(prompt) :].tolist(), special({"eos_id": eos}))


def encoder_goldens(model: EncoderModel, tokenizer: bytes | None = None, longest: int | None = None) -> dict[str, np.ndarray]:
    """Cases `case0..` with `in/<input>` and `out/<output>`, at several shapes.

    Of random ids, where a second part of each row is of the second token type if there are several; with a tokenizer (the bytes of a
    tokenizer.json) of texts instead, with their special tokens in their places: on other input learned weights answer next to nothing, and
    a relative error says little. With `longest`, one more case with as many tokens as the model takes, but not more than that.
    """
    inputs = Inputs(20240229, special({"pad": model.pad_id, "end": model.end_id}))
    shapes = [fit(lengths, model.max_length) for lengths in ENCODER_SHAPES]
    batches = [_random_inputs(inputs, model, lengths) for lengths in shapes] if tokenizer is None else text_inputs(tokenizer, model)
    if longest is not None:
        most = min(longest, _longest_text(model) or longest)
        batches.append(_random_inputs(inputs, model, [most, max(1, most // 3)]))
    check_alike("the model", list(model.answer(batches[0]).values()), list(model.answer(batches[0]).values()))
    result: dict[str, np.ndarray] = {}
    for i, arrays in enumerate(batches):
        result |= {f"case{i}/in/{name}": tensor.numpy() for name, tensor in arrays.items()}
        result |= {f"case{i}/out/{name}": tensor.numpy() for name, tensor in model.answer(arrays).items()}
    return result


def ended_rows(inputs: Inputs, model: EncoderModel, lengths: list[int]) -> Tensor:
    """int64 [rows, longest], padded on the right; each row ends as the model's texts do."""
    rows = inputs.rows(model.rows, lengths, model.pad_id)
    if model.end_id is not None:
        for row, length in zip(rows, lengths, strict=True):
            row[length - 1] = model.end_id
    return rows


def _random_inputs(inputs: Inputs, model: EncoderModel, lengths: list[int]) -> dict[str, Tensor]:
    arrays = {"input_ids": ended_rows(inputs, model, lengths), "attention_mask": real(lengths).long()}
    if model.types:
        arrays["token_type_ids"] = ((torch.arange(max(lengths)) >= 2) & (model.types > 1)).long() * arrays["attention_mask"]
    return arrays


def text_inputs(tokenizer: bytes, model: EncoderModel) -> list[dict[str, Tensor]]:
    """Batches of 1, 3 and 2 rows: a single token, texts of several lengths, a question with its context beside words of the tokenizer's own
    vocabulary, whatever language that is. Ids beyond the model's table are left out, and what is longer than it is cut."""
    from tokenizers import Tokenizer

    reader = Tokenizer.from_str(tokenizer.decode())
    reader.no_padding()
    reader.no_truncation()
    random = np.random.default_rng(20240229)
    words = [reader.decode(random.integers(0, model.rows, count).tolist()) for count in WORDS]
    question, context = SAMPLE
    texts: list[list[tuple[str, ...]]] = [[(context,)], [(question,), (context,), (words[0],)], [(question, context), (words[1],)]]
    batches = [[_read(reader, text, model) for text in batch] for batch in texts]
    batches[0] = [_ended(batches[0][0][:1], model)]
    return [_padded(rows, model) for rows in batches]


def _read(reader: Tokenizer, text: tuple[str, ...], model: EncoderModel) -> list[tuple[int, int]]:
    """(id, token type) of each token."""
    encoding = reader.encode(text[0], text[1] if len(text) > 1 else None)
    row = [(i, type_id) for i, type_id in zip(encoding.ids, encoding.type_ids, strict=True) if i < model.rows]
    return _ended(row[: _longest_text(model)] or [(model.pad_id, 0)], model)


def _longest_text(model: EncoderModel) -> int | None:
    """Tokens of a text: few where each has a wide answer, such as a score for every token of the vocabulary."""
    wide = any(isinstance(shape[-1], int) and shape[-1] > WIDE for shape in model.outputs.values())
    bounds = [bound for bound in (model.max_length, FEW_TOKENS if wide else None) if bound is not None]
    return min(bounds, default=None)


def _ended(row: list[tuple[int, int]], model: EncoderModel) -> list[tuple[int, int]]:
    """A row whose last token is the one that the model's texts must end with."""
    return row if model.end_id is None or row[-1][0] == model.end_id else [*row[:-1], (model.end_id, row[-1][1])]


def _padded(rows: list[list[tuple[int, int]]], model: EncoderModel) -> dict[str, Tensor]:
    lengths = [len(row) for row in rows]
    ids, types = torch.full((len(rows), max(lengths)), model.pad_id), torch.zeros(len(rows), max(lengths), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)], types[i, : len(row)] = torch.tensor([one for one, _ in row]), torch.tensor([type_id for _, type_id in row])
    arrays = {"input_ids": ids, "attention_mask": real(lengths).long()}
    return arrays | ({"token_type_ids": types.clamp(max=model.types - 1)} if model.types else {})


def until(row: list[int], ends: set[int]) -> list[int]:
    """The row up to, and without, its first end."""
    return list(takewhile(lambda token: token not in ends, row))


def _answers(rows: list[list[int]], pad: int) -> dict[str, np.ndarray]:
    tokens = np.full((len(rows), max([1, *map(len, rows)])), pad, dtype=np.int64)
    for line, row in zip(tokens, rows, strict=True):
        line[: len(row)] = row
    return {"greedy/tokens": tokens, "greedy/lengths": np.array([len(row) for row in rows])}
