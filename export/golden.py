"""Golden answers of models that read token ids: inputs at several shapes and real text, answered by the user's own class.

Inputs are beginnings of texts where there is a tokenizer, else seeded random ids: on those, sums in float32 can move a learned model's own
logits by 2e-4 of their size, for they are nothing that it was trained on.

A model that generates is judged on text where it knows the language of some: it makes more of what follows than a guess over its vocabulary
would. Random weights do not, and are judged by how far their logits are from the original's.

Those of plain modules are made in `routes.direct`, those of ONNX files in `onnx_file.original`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import cycle, islice, takewhile
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from onnxport.compare.sample_texts import QUESTIONS
from onnxport.compare.texts import Sample, golden_texts, token_rows
from onnxport.export.deferred import in_step, is_large
from onnxport.export.description import CausalOriginal, Seq2SeqOriginal
from onnxport.export.source import Source
from onnxport.export.user_code import check_alike
from onnxport.runtime.arrays import padded
from onnxport.runtime.bundle.golden import TEXT
from onnxport.runtime.bundle.kept import Kept
from onnxport.runtime.tasks.chat import ChatTemplate
from onnxport.runtime.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from onnxport.export.description import EncoderModel

POSITIONS = 24  # positions x vocabulary floats are stored for a large vocabulary
GREEDY_TOKENS, GREEDY_OF_LARGE = 16, 4
# (source lengths, target lengths) a row: batch 1, a ragged batch with a length of 1, and 1 x 1
SEQ2SEQ_SHAPES = [([7], [5]), ([1, 4, 9], [3, 1, 4]), ([1], [1])]
CAUSAL_SHAPES = [[6], [1, 5, 3], [1]]
ENCODER_SHAPES = [[5], [1, 7, 3], [1]]
GREEDY_SHAPES = [3, 8, 1]
WIDE, FEW_TOKENS = 4096, 8  # numbers of an answer a token, above which texts are cut: golden answers are kept in the bundle
SHORT, PAIR, TEXT_ROWS = 32, 96, 10  # tokens of a text, or of a question with its context, whose answer is kept whole, and rows of a batch
WORDS = (9, 24)  # of a vocabulary, at random
LONG, BEFORE, SCORED = 256, 32, 48  # of a text, tokens that are judged, behind as many at most; of a text so long, the last ones
PIECE = 32  # positions whose distributions are made at once
KNOWN = 0.8  # share of the entropy of a guess over the vocabulary above which a model's nats a token are no better than that
FEWEST = 64  # tokens that a model is judged on
SOURCES, ANSWER = 12, 24  # texts that an encoder-decoder answers, the shortest, and tokens of an answer
SOURCE_ROWS = 4  # of a batch: an answer's logits are a whole vocabulary wide
SAMPLE = (  # a question and its context
    "Where did the first steam railway for passengers open in 1825?",
    "The Stockton and Darlington Railway, which opened on 27 September 1825, carried coal and passengers between towns in north-east "
    "England; its first engine, Locomotion No. 1, was built by Robert Stephenson and Company in Newcastle.",
)


class Inputs:
    """Ids of a vocabulary that are none of the special ones, unless nothing else is there: of texts in turn, else random.

    texts: ids of texts as a model reads them. A row is the beginning of one, or more than one where it is longer. A special token that a
    text begins with is kept.
    """

    def __init__(self, seed: int, special: set[int], texts: Sequence[Sequence[int]] = ()) -> None:
        self.random, self.special = np.random.default_rng(seed), special
        usual = ([*text[:1], *(i for i in text[1:] if i not in special)] for text in texts)
        self.texts = cycle([text for text in usual if text]) if texts else None

    def rows(self, vocabulary: int, lengths: list[int], pad: int, start: int | None = None) -> Tensor:
        """int64 [rows, longest], padded on the right; each row begins with `start` where one is given."""
        ids = np.full((len(lengths), max(lengths)), pad, dtype=np.int64)
        drawn = self._random(vocabulary, lengths) if self.texts is None else [_beginning(self.texts, length) for length in lengths]
        for row, length, values in zip(ids, lengths, drawn, strict=True):
            row[:length] = values
            if start is not None:
                row[0] = start
        return torch.from_numpy(ids)

    def _random(self, vocabulary: int, lengths: list[int]) -> list[np.ndarray]:
        usual = np.array([i for i in range(vocabulary) if i not in self.special] or list(range(vocabulary)))
        return [self.random.choice(usual, length) for length in lengths]


def _beginning(texts: Iterator[list[int]], length: int) -> np.ndarray:
    """The first ids of the next text, or of several where it is shorter."""
    row: list[int] = []
    while len(row) < length:
        row += next(texts)
    return np.array(row[:length])


def real(lengths: list[int]) -> Tensor:
    """int32 [rows, longest]: 1 where a row has a token."""
    return (torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]).int()


def fit(lengths: list[int], max_length: int | None) -> list[int]:
    """The lengths, none longer than `max_length` (None: no bound)."""
    return [min(length, max_length) if max_length is not None else length for length in lengths]


def scaled(lengths: list[int], vocabulary: int) -> list[int]:
    """Longer rows where the vocabulary is small enough to store them, and shorter ones where a position takes a megabyte; 1 stays."""
    factor = 2 if vocabulary <= 1000 else 1 if vocabulary <= 100_000 else 0.5
    return [math.ceil(length * factor) if length > 1 else 1 for length in lengths]


def special(ids: Mapping[str, Any]) -> set[int]:
    """Every id that is named; one name may stand for several."""
    return {i for value in ids.values() if value is not None for i in (value if isinstance(value, list) else [value])}


def seq2seq_goldens(
    model: Seq2SeqOriginal,
    ids: dict[str, Any],
    max_length: int | None,
    max_source_length: int | None = None,
    longest: int | None = None,
    source: Source | None = None,
) -> dict[str, np.ndarray]:
    """Cases `seq0..`, `greedy` and, of what has a tokenizer in its `source` and knows some of the texts, `text`, as in golden.npz.

    With `longest`, one more case with a source of so many tokens, but not more than the model takes.
    """
    pad, start = ids["pad_id"], ids["decoder_start_id"]
    source_rows, target_rows = model.source_rows, model.target_rows
    most = max_length if max_source_length is None else max_source_length
    read = Inputs(20240229, special(ids), _golden_rows(source, "source", most, source_rows))
    written = Inputs(20240301, special(ids), _golden_rows(source, "target", max_length, target_rows))
    result: dict[str, np.ndarray] = {}
    calls: list[Callable[[], Tensor]] = []
    long = [] if longest is None else [([longest, max(1, longest // 3)], [2, 1])]
    for i, (sources, targets) in enumerate([*SEQ2SEQ_SHAPES, *long]):
        sources, targets = fit(sources, most), fit(scaled(targets, target_rows), max_length)
        rows, mask = read.rows(source_rows, sources, pad), real(sources)
        target = written.rows(target_rows, targets, pad, start)
        calls.append(partial(model.forward, rows, mask, target))
        result |= {f"seq{i}/source_ids": rows.numpy(), f"seq{i}/source_mask": mask.numpy(), f"seq{i}/target_ids": target.numpy()}
        result[f"seq{i}/target_lengths"] = np.array(targets)
    lengths = fit(GREEDY_SHAPES, most)
    rows, mask = read.rows(source_rows, lengths, pad), real(lengths)
    greedy: Callable[[], Any] = partial(greedy_seq2seq, model, rows, mask, ids, min(GREEDY_TOKENS, max_length or GREEDY_TOKENS))
    answers, *found = in_step(model.modules, [greedy, *calls, calls[0]])
    again = found.pop()
    check_alike("the model", [found[0]], [again])
    for i, logits in enumerate(found):
        result[f"seq{i}/logits"] = (logits * real(result[f"seq{i}/target_lengths"].tolist())[:, :, None]).numpy()
    result |= {"greedy/source_ids": rows.numpy(), "greedy/source_mask": mask.numpy()} | _answers(answers, pad)
    return result | (_answered_texts(model, ids, source, most, max_length) if source is not None else {})


def greedy_seq2seq(model: Seq2SeqOriginal, source: Tensor, mask: Tensor, ids: dict[str, Any], count: int) -> list[list[int]]:
    """Plain greedy decoding without a cache: the lists hold neither the start nor the end token."""
    return [until(row[1:].tolist(), special({"eos_id": ids["eos_id"]})) for row in _greedy_targets(model, source, mask, ids, count)]


def _greedy_targets(model: Seq2SeqOriginal, source: Tensor, mask: Tensor, ids: dict[str, Any], count: int) -> Tensor:
    """int64 [rows, 1 + count]: the start token, and what plain greedy decoding answers, also behind an end."""
    memory = model.encode(source, mask)
    target = torch.full((len(source), 1), ids["decoder_start_id"])
    for _ in range(count):
        token = model.decode(target, memory, mask)[:, -1].argmax(-1)
        target = torch.cat([target, token[:, None]], 1)
    return target


def _answered_texts(
    model: Seq2SeqOriginal, ids: dict[str, Any], source: Source, most: int | None, max_length: int | None
) -> dict[str, np.ndarray]:
    """The case `text`: short texts, the beginnings of the original's own greedy answers to them, and what is kept of its distributions.

    {} where the model makes no more of any text, after itself as a source, than a guess would: its own answers cannot tell, for they are
    what it holds most probable.
    """
    rows = sorted(_golden_rows(source, "source", most, model.source_rows), key=len)[:SOURCES]
    knows = [partial(_knows_text, model, ids, source, sample, most, max_length) for sample in golden_texts()]
    if not knows[0]() and not any(in_step(model.modules, knows[1:])):  # most models know the first
        return {}
    ends, count = special({"eos_id": ids["eos_id"]}), min(ANSWER, max_length - 1 if max_length is not None else ANSWER)

    def answered(batch: list[list[int]]) -> list[tuple[list[int], list[Kept]]]:
        read, mask = map(torch.from_numpy, padded(batch, ids["pad_id"]))
        written = _greedy_targets(model, read, mask, ids, count)
        logits = model.forward(read, mask, written)
        found = []
        for row, scores in zip(written.tolist(), logits, strict=True):
            length = 1 + min(len(until(row[1:], ends)) + 1, count)  # with its end
            found.append((row[:length], _kept(scores[: length - 1], row[1:length])))
        return found

    batches = [rows[begin : begin + SOURCE_ROWS] for begin in range(0, len(rows), SOURCE_ROWS)]
    found = [one for answers in in_step(model.modules, [partial(answered, batch) for batch in batches]) for one in answers]
    targets, kept = [target for target, _ in found], [one for _, distributions in found for one in distributions]
    return _text_case(targets, [range(1, len(target)) for target in targets], kept, ids["pad_id"], rows)


def _knows_text(
    model: Seq2SeqOriginal, ids: dict[str, Any], source: Source, sample: Sample, most: int | None, max_length: int | None
) -> bool:
    """Whether a model foretells a text that it reads better than a guess over its vocabulary would."""
    sources = _sample_rows(source, "source", (sample,), most, model.source_rows)
    targets = _sample_rows(source, "target", (sample,), max_length, model.target_rows)
    if not sources or not targets:
        return False
    read, written = torch.tensor(sources), torch.tensor([[ids["decoder_start_id"], *targets[0][:-1]]])
    logits = model.forward(read, torch.ones_like(read).int(), written)[0]
    return _knows(_kept(logits, targets[0]), logits.shape[-1])


def causal_goldens(
    model: CausalOriginal, ids: dict[str, Any], max_length: int | None, source: Source | None = None
) -> dict[str, np.ndarray]:
    """Cases `seq0..` (`input_ids`, `lengths`, `logits`), `greedy` (`source_ids` hold the prompts) and, of what has a tokenizer in its
    `source` and knows some of the texts, `text`."""
    if source is not None and source.goldens is not None:
        return source.goldens
    vocabulary = model.rows
    rows = [] if source is None else _language_rows(source, max_length, vocabulary)
    inputs = Inputs(20240229, special(ids), rows)
    result: dict[str, np.ndarray] = {}
    shapes = [fit(scaled(lengths, vocabulary), max_length) for lengths in CAUSAL_SHAPES]
    cases = [inputs.rows(vocabulary, lengths, ids["pad_id"]) for lengths in shapes]
    lengths = fit(GREEDY_SHAPES, max(1, max_length // 2) if max_length is not None else None)
    prompts, mask = inputs.rows(vocabulary, lengths, ids["pad_id"]), real(lengths)
    most = GREEDY_OF_LARGE if is_large(model.modules) else GREEDY_TOKENS
    count = min(most, max_length - max(lengths) + 1) if max_length is not None else most
    starts = [row[:length] for row, length in zip(prompts, lengths, strict=True)]
    scored = [_scored(row) for row in rows]
    calls: list[Callable[[], Any]] = [partial(model.causal, given) for given in (*cases, cases[0])]
    calls += [partial(greedy_causal, model, row, ids["eos_id"], count) for row in starts]
    calls += [partial(_foretold, model, row, places) for row, places in zip(rows, scored, strict=True)]
    found = iter(in_step(model.modules, calls))  # what is made of a large model's weights serves all of them
    logits = list(islice(found, len(cases) + 1))
    check_alike("the model", logits[:1], [logits.pop()])
    for i, (of_rows, given, answer) in enumerate(zip(shapes, cases, logits, strict=True)):
        answer = answer * real(of_rows)[:, :, None]
        result |= {f"seq{i}/input_ids": given.numpy(), f"seq{i}/lengths": np.array(of_rows), f"seq{i}/logits": answer.numpy()}
    answers = list(islice(found, len(starts)))
    result |= {"greedy/source_ids": prompts.numpy(), "greedy/source_mask": mask.numpy()} | _answers(answers, ids["pad_id"])
    return result | _texts(rows, scored, list(found), ids)


def _language_rows(source: Source, max_length: int | None, vocabulary: int) -> list[list[int]]:
    """The texts that a language model is judged on: the kit's, and those of the source's user."""
    most = LONG if max_length is None else min(LONG, max_length)
    own = _sample_rows(source, "source", [Sample("", text) for text in source.texts], most, vocabulary)
    return [row for row in _golden_rows(source, "source", max_length, vocabulary) + own if len(row) > 1]


def _foretold(model: CausalOriginal, row: list[int], places: range) -> list[Kept]:
    """What a model says comes next at some places of a text; [] where it is no better than a guess."""
    logits = model.causal(torch.tensor([row[: places.stop - 1]]), last=len(places))[0]
    kept = _kept(logits, row[places.start : places.stop])
    return kept if _knows(kept, logits.shape[-1]) else []


def _texts(rows: list[list[int]], scored: list[range], found: list[list[Kept]], ids: dict[str, Any]) -> dict[str, np.ndarray]:
    """The case `text`: the texts of which a model foretells more than a guess would; {} where that is next to nothing."""
    if sum(len(kept) for text in found for kept in text) < FEWEST:
        return {}
    known = [i for i, text in enumerate(found) if text]
    kept = [kept for text in found for kept in text]
    return _text_case([rows[i] for i in known], [scored[i] for i in known], kept, ids["pad_id"])


def _scored(row: list[int]) -> range:
    """The places of a text that are judged."""
    first = max(1, len(row) - SCORED)
    first = first if len(row) > LONG else min(first, BEFORE)
    return range(first, min(first + SCORED, len(row)))


def _golden_rows(source: Source | None, side: str, most: int | None, vocabulary: int) -> list[list[int]]:
    """The kit's golden texts as the model reads them on a side; [] without a source or a tokenizer."""
    return [] if source is None else _sample_rows(source, side, golden_texts(), most, vocabulary)


def _sample_rows(source: Source, side: str, samples: Sequence[Sample], most: int | None, vocabulary: int) -> list[list[int]]:
    """Texts as the model reads them on a side, conversations through its template; [] without a tokenizer."""
    data = source.tokenizers.get(side) or next(iter(source.tokenizers.values()), None)
    if data is None:
        return []
    chat = None if source.chat is None else ChatTemplate(source.chat.text, source.chat.tokens)
    return token_rows(samples, TextTokenizer(data), chat, most, vocabulary)


def _kept(logits: Tensor, following: list[int]) -> list[Kept]:
    """What is kept of logits [positions, vocabulary] and the ids that follow, made in pieces."""
    parts = range(0, len(following), PIECE)
    return [Kept.of(logits[i : i + PIECE].float().numpy(), np.array(following[i : i + PIECE])) for i in parts]


def _knows(kept: list[Kept], vocabulary: int) -> bool:
    """Whether what follows is foretold better than by a guess, whose nats a token are the logarithm of the vocabulary."""
    return -float(Kept.joined(kept).logprobs.mean(dtype=np.float64)) <= KNOWN * math.log(vocabulary)


def _text_case(
    targets: list[list[int]], scored: list[range], kept: list[Kept], pad: int, sources: list[list[int]] | None = None
) -> dict[str, np.ndarray]:
    """Arrays by `text/NAME`. scored: places of each target whose distributions are kept. sources: of an encoder-decoder."""
    names = ("input_ids", "lengths") if sources is None else ("target_ids", "target_lengths")
    arrays: dict[str, np.ndarray] = dict(zip(names, (padded(targets, pad)[0], np.array([*map(len, targets)])), strict=True))
    if sources is not None:
        arrays |= dict(zip(("source_ids", "source_mask"), padded(sources, pad), strict=True))
    arrays |= {"first": np.array([places.start for places in scored]), "scored": np.array([*map(len, scored)])}
    arrays |= Kept.joined(kept).arrays()
    return {f"{TEXT}/{name}": array for name, array in arrays.items()}


def greedy_causal(model: CausalOriginal, prompt: Tensor, eos: int | list[int] | None, count: int) -> list[int]:
    """Plain greedy continuation of one prompt [length], without a cache."""
    row = prompt[None]
    for _ in range(count):
        row = torch.cat([row, model.causal(row, last=1)[:, -1].argmax(-1)[:, None]], 1)
    return until(row[0, len(prompt) :].tolist(), special({"eos_id": eos}))


def encoder_goldens(model: EncoderModel, tokenizer: bytes | None = None, longest: int | None = None) -> dict[str, np.ndarray]:
    """Cases `case0..` with `in/<input>` and `out/<output>`, at several shapes.

    Of random ids, where a second part of each row is of the second token type if there are several; with a tokenizer (the bytes of a
    tokenizer.json) of texts instead, with their special tokens in their places: on other input learned weights answer next to nothing, and
    a relative error says little. Cases of whole texts are called `text0..`. With `longest`, one more case with as many tokens as the model
    takes, but not more than that.
    """
    texts = [] if tokenizer is None else token_rows(golden_texts(), TextTokenizer(tokenizer), end=model.rows)
    inputs = Inputs(20240229, special({"pad": model.pad_id, "end": model.end_id}), texts)
    shapes = [fit(lengths, model.max_length) for lengths in ENCODER_SHAPES]
    if tokenizer is None:
        cases = {f"case{i}": _plain_inputs(inputs, model, lengths) for i, lengths in enumerate(shapes)}
    else:
        token, *batches = text_inputs(tokenizer, model)
        cases = {"case0": token} | {f"{TEXT}{i}": arrays for i, arrays in enumerate(batches)}
    if longest is not None:
        most = min(longest, _longest_text(model) or longest)
        cases["long"] = _plain_inputs(inputs, model, [most, max(1, most // 3)])
    again, *answers = in_step(model.modules, [partial(model.answer, arrays) for arrays in (cases["case0"], *cases.values())])
    check_alike("the model", list(answers[0].values()), list(again.values()))
    result: dict[str, np.ndarray] = {}
    for (case, arrays), answer in zip(cases.items(), answers, strict=True):
        result |= {f"{case}/in/{name}": tensor.numpy() for name, tensor in arrays.items()}
        result |= {f"{case}/out/{name}": tensor.numpy() for name, tensor in answer.items()}
    return result


def ended_rows(inputs: Inputs, model: EncoderModel, lengths: list[int]) -> Tensor:
    """int64 [rows, longest], padded on the right; each row ends as the model's texts do."""
    rows = inputs.rows(model.rows, lengths, model.pad_id)
    if model.end_id is not None:
        for row, length in zip(rows, lengths, strict=True):
            row[length - 1] = model.end_id
    return rows


def _plain_inputs(inputs: Inputs, model: EncoderModel, lengths: list[int]) -> dict[str, Tensor]:
    arrays = {"input_ids": ended_rows(inputs, model, lengths), "attention_mask": real(lengths).long()}
    if model.types:
        arrays["token_type_ids"] = ((torch.arange(max(lengths)) >= 2) & (model.types > 1)).long() * arrays["attention_mask"]
    return arrays


def text_inputs(tokenizer: bytes, model: EncoderModel) -> list[dict[str, Tensor]]:
    """A batch of a single token, and batches of texts: of several lengths, a question with its context beside words of the tokenizer's own
    vocabulary, whatever language that is, and what comes with the kit, where answers are narrow enough to be kept. Ids beyond the model's
    table are left out, and what is longer than it is cut."""
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
    if not _wide(model):
        asks = "start_logits" in model.outputs
        more = [(one["question"], one["context"]) for one in QUESTIONS] if asks else [(sample.text,) for sample in golden_texts()]
        rows = sorted((_read(reader, text, model, PAIR if asks else SHORT) for text in more), key=len)
        batches += [rows[i : i + TEXT_ROWS] for i in range(0, len(rows), TEXT_ROWS)]
    return [_padded(rows, model) for rows in batches]


def _read(reader: Tokenizer, text: tuple[str, ...], model: EncoderModel, most: int | None = None) -> list[tuple[int, int]]:
    """(id, token type) of each token."""
    encoding = reader.encode(text[0], text[1] if len(text) > 1 else None)
    row = [(i, type_id) for i, type_id in zip(encoding.ids, encoding.type_ids, strict=True) if i < model.rows]
    bounds = [bound for bound in (most, _longest_text(model)) if bound is not None]
    return _ended(row[: min(bounds, default=None)] or [(model.pad_id, 0)], model)


def _longest_text(model: EncoderModel) -> int | None:
    """Tokens of a text: few where answers are wide."""
    bounds = [bound for bound in (model.max_length, FEW_TOKENS if _wide(model) else None) if bound is not None]
    return min(bounds, default=None)


def _wide(model: EncoderModel) -> bool:
    """Whether each token has a wide answer, such as a score for every token of the vocabulary."""
    return any(isinstance(shape[-1], int) and shape[-1] > WIDE for shape in model.outputs.values())


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
