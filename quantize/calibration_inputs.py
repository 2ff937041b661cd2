"""Inputs that graphs are calibrated on, as they really read them: made from a file of data, or from a bundle's golden answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxport.compare.data import Dataset, read_data
from onnxport.compare.texts import calibration_texts, token_rows
from onnxport.errors import DataError, one_line
from onnxport.graph.edit import attribute, dims
from onnxport.graph.search_graphs import remove_choice
from onnxport.graph.session import answers
from onnxport.runtime.arrays import read_npz
from onnxport.runtime.bundle import golden, interface
from onnxport.runtime.bundle.kept import Kept
from onnxport.runtime.bundle.manifest import EncodingConfig, GenerationConfig
from onnxport.runtime.bundle.reader import Bundle
from onnxport.runtime.decode.cache import buffer_shapes
from onnxport.runtime.decode.engine import Engine
from onnxport.runtime.encoder import Encoder
from onnxport.runtime.model import Model
from onnxport.runtime.sessions import Sessions
from onnxport.runtime.tasks.chat import ChatTemplate
from onnxport.runtime.tokenizer import TextTokenizer

Feeds = dict[str, list[dict[str, np.ndarray]]]  # role -> inputs by name
FEWEST, MOST = 8, 128  # texts
TOKENS = 256  # of a text; what comes after tells little more
MOST_TOKENS = 2**12  # of a language model's texts together, as many as those of the kit
STEPS = 4  # the last tokens of each answer are read one by one
ROWS = 16  # of a batch of an encoder
FEW = 200  # rows below which a search says that they are few
JUDGED = 8  # rows of a language model's data that become golden texts
Feed = dict[str, np.ndarray]


def feeds(bundle: Bundle, data: str | Path, most: int = MOST, variant: str = "fp32") -> Feeds:
    """Inputs of each graph of a bundle, made from a data file through its fp32 variant.

    Text is what `--data` takes: translations are answered greedily, and the decoder reads those answers; language models read the texts,
    as many as make MOST_TOKENS tokens.
    A bundle without a tokenizer takes a `.npz` of its input arrays. DataError: too few texts, or of another task.
    """
    if bundle.generation is not None and not bundle.tokenizers:
        raise DataError(f"{data}: a model that generates is calibrated on texts, and this bundle has no tokenizer; export it with one")
    if Path(data).suffix == ".npz":
        return _arrays(bundle, Path(data), variant)
    if not bundle.tokenizers:
        raise DataError(f"{data}: this bundle has no tokenizer, so it is calibrated on a .npz of its input arrays, not on texts")
    dataset = read_data(data)
    check_dataset(dataset, bundle, data)
    texts = dataset.read()
    model = Model(bundle, variant, Sessions.on("cpu"))
    chosen = [texts[i] for i in calibrated(len(texts), most, bundle)]
    if model.engine is None:
        return {next(iter(bundle.variants[variant].graphs)): _encoder_feeds(bundle, variant, model, chosen)}
    return _decoder_feeds(model, model.engine, chosen)


def places(count: int, most: int) -> list[int]:
    """Which of `count` rows are calibrated on: at most `most`, evenly spaced, for files are often sorted."""
    fewer = min(most, count)
    return [i * count // fewer for i in range(fewer)]


def calibrated(count: int, most: int, bundle: Bundle) -> list[int]:
    """Which of `count` rows a bundle is calibrated on, at most `most`: of a language model none that become golden texts."""
    language = bundle.generation is not None and bundle.generation.kind == "causal"
    left = sorted(set(range(count)).difference(judged(count) if language else ()))
    return [left[i] for i in places(len(left), most)]


def judged(count: int) -> list[int]:
    """Which of `count` rows become golden texts of a language model: it must not be judged on what it was fitted to."""
    return [i + count // (2 * JUDGED) for i in places(count, JUDGED)] if count >= 2 * FEWEST else []


def judged_texts(data: Path) -> tuple[str, ...]:
    """The texts of a file that become golden texts of a language model. DataError: it cannot be read."""
    if data.suffix == ".npz":
        return ()
    texts = read_data(data).read()
    return tuple(text for i in judged(len(texts)) if isinstance(text := texts[i], str) and text.strip())


def check_dataset(dataset: Dataset, bundle: Bundle, data: str | Path) -> None:
    """DataError unless the data is of the bundle's task and enough of it."""
    asks = bundle.task == "question-answering"
    if asks != (dataset.kind == "questions"):
        wanted = "questions with their contexts" if asks else "texts"
        raise DataError(f"{data}: holds {dataset.kind}, and a bundle for {bundle.task} is calibrated on {wanted}")
    kept = [i for i, text in enumerate(dataset.inputs) if not isinstance(text, str) or text.strip()]
    if len(kept) < FEWEST:
        raise DataError(
            f"{data}: holds {len(kept)} texts, expected at least {FEWEST} to calibrate on; give more of what the model will see"
        )


def _encoder_feeds(bundle: Bundle, variant: str, model: Model, items: Sequence[Any]) -> list[dict[str, np.ndarray]]:
    encoder = Encoder.open(bundle, bundle.variants[variant], Sessions.on("cpu"), model._source())
    feeds: list[dict[str, np.ndarray]] = []

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        feeds.append({name: np.array(array) for name, array in inputs.items()})
        return encoder.run(inputs)

    recorder = replace(encoder, run=run)
    for _ in recorder.each(recorder.windows(items, None, TOKENS), ROWS):
        pass
    return feeds


def _decoder_feeds(model: Model, engine: Engine, texts: Sequence[str]) -> Feeds:
    source = model._source()
    assert source is not None
    ids = [row[:TOKENS] for row in source.encode(list(texts)) if row]
    if engine.encoder is None:
        rows = [row[: engine.config.max_length] for row in ids]
        fewer = max(FEWEST, len(rows) * MOST_TOKENS // max(sum(map(len, rows)), 1))
        return {"decoder": [_whole(engine, rows[i]) for i in places(len(rows), fewer)]}
    ids = [row[: engine.config.source_length] for row in ids]
    answers = model.generate(ids, beam=1, temperature=0.0, max_new_tokens=min(TOKENS, engine.config.max_length or TOKENS) - 1)
    found: Feeds = {"encoder": [], "decoder": []}
    for row, answer in zip(ids, answers, strict=True):
        cross = engine.encode([row])
        found["encoder"].append(interface.source(np.array([row], np.int64)))
        target = [engine.config.decoder_start_id or 0, *answer.tokens]
        found["decoder"] += _steps(engine, target, {**cross.arrays, interface.SOURCE_MASK: cross.mask})
    return found


def _steps(engine: Engine, ids: Sequence[int], more: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """A prefill of all but the last tokens, then these, each over the cache that the runs before left."""
    inputs, past = engine.inputs, _empty_caches(engine, len(ids))
    first = max(len(ids) - STEPS, 1)
    done = 0
    for part in [ids[:first], *([token] for token in ids[first:])]:
        after = done + len(part)
        feed = interface.prefill(np.array([part], np.int64), before=np.array([done], np.int64)) | past | more
        yield feed
        given = feed | {interface.CANDIDATES: np.ones(1, np.int64), interface.SUPPRESSED: np.zeros(0, np.int64)}
        present = engine.decoder.run(engine.present, {name: array for name, array in given.items() if name in inputs})
        past = dict(zip(engine.past, present, strict=True))
        done = after


def _whole(engine: Engine, ids: Sequence[int]) -> Feed:
    """A prefill of all tokens: products and caches see what they see in steps, and the model need not run."""
    return interface.prefill(np.array([ids], np.int64)) | _empty_caches(engine, len(ids))


def _empty_caches(engine: Engine, length: int) -> Feed:
    shapes = buffer_shapes(engine.config.layer_caches, 1, length)
    return {name: np.zeros(shape, engine.cache_type) for name, shape in zip(engine.past, shapes, strict=True)}


def _arrays(bundle: Bundle, data: Path, variant: str) -> Feeds:
    if bundle.generation is not None:
        raise DataError(f"{data}: a bundle for {bundle.task} is calibrated on texts, not on arrays")
    arrays = read_npz(data, DataError, "give a .npz of the model's input arrays")
    (role,) = bundle.variants[variant].graphs
    encoder = Encoder.open(bundle, bundle.variants[variant], Sessions.on("cpu"), None)
    bad = [name for name, array in arrays.items() if array.dtype.kind == "f" and not np.isfinite(array).all()]
    if bad:
        raise DataError(f"{data}: {bad[0]} holds NaN or infinity, expected what the model will see")
    try:
        encoder.run(arrays)  # names, types and sizes
    except DataError as error:
        raise DataError(f"{data}: {one_line(error)}") from None
    return {role: [arrays]}


def kit_feeds(generation: GenerationConfig, tokenizer: Path, chat: ChatTemplate | None, decoder: ir.Model) -> Feeds:
    """Inputs of the decoder of a language model, made of the kit's own texts: each text a run over an empty cache.

    tokenizer: a tokenizer.json. decoder: float32, fused.
    """
    most = min(TOKENS, generation.max_length or TOKENS)
    rows = token_rows(calibration_texts(), TextTokenizer(tokenizer), chat, most, generation.vocab_size)
    return {"decoder": [prefill_feed(decoder, np.array(row)) for row in rows]}


def kit_encoder_feeds(encoding: EncodingConfig, tokenizer: Path, encoder: ir.Model, pairs: bool) -> list[Feed]:
    """Inputs of an encoder of texts, made of the kit's own texts: each a batch of its own; with `pairs` every two neighbours, too.

    Empty where the tokenizer knows none of them, or the graph reads what texts do not give. tokenizer: a tokenizer.json. encoder: fused.
    """
    sizes = {str(value.name): dims(value) for value in encoder.graph.inputs}
    if not set(sizes) <= set(interface.TEXT_INPUTS) or any(isinstance(size, int) for shape in sizes.values() for size in shape or ()):
        return []
    reader = TextTokenizer(tokenizer)
    texts = [sample.text.lower() if encoding.lower else sample.text for sample in calibration_texts() if token_rows([sample], reader)]
    given_texts: list[tuple[str, str | None]] = [(text, None) for text in texts]
    given_texts += zip(texts, texts[1:], strict=False) if pairs else ()
    most = min(TOKENS, encoding.max_length or TOKENS)
    found = []
    for read in reader.read(given_texts):
        rows = np.array([read.ids, read.type_ids], np.int64)
        rows = rows[:, rows[0] < (encoding.vocab_size or np.inf)]
        rows = np.concatenate([rows[:, : most - 1], rows[:, -1:]], 1) if rows.shape[1] > most else rows  # ends as every text does
        given = {
            interface.INPUT_IDS: rows[:1],
            interface.ATTENTION_MASK: np.ones_like(rows[:1]),
            interface.TOKEN_TYPE_IDS: rows[1:] if encoding.token_types else np.zeros_like(rows[:1]),
        }
        found.append({name: given[name] for name in sizes})
    return found


def golden_feeds(path: Path, models: Mapping[str, ir.Model]) -> dict[str, list[Feed]]:
    """Role -> inputs by name. Of a model that generates: each row's source, and its target ids in one run over an empty cache; first random
    ids, then texts, where there are any."""
    read = golden.read(path)
    if "decoder" not in models:
        (role,) = models
        return {role: [golden.inputs(case) for case in read.values()]}
    cases = [case for name, case in read.items() if "logits" in case or name == golden.TEXT]
    found: dict[str, list[Feed]] = {role: [] for role in models}
    rows = [row for case in cases for row in _rows(case)]
    for source, _ in rows:
        if "encoder" in found:
            found["encoder"].append(interface.source(source[None]))
    decoder = remove_choice(models["decoder"])
    crosses = answers(models["encoder"], found["encoder"]) if "encoder" in models else [{} for _ in rows]
    for (_, target), cross, feed in zip(rows, crosses, found.get("encoder", rows), strict=True):
        mask = {interface.SOURCE_MASK: feed[interface.SOURCE_MASK]} if isinstance(feed, dict) else {}
        found["decoder"].append({**prefill_feed(decoder, target), **cross, **mask})
    return found


@dataclass(frozen=True)
class GoldenText:
    """A golden text of a language model. feed: inputs of its decoder for one run over an empty cache. kept: the original's distributions at
    the last positions of that run."""

    feed: Feed
    kept: Kept


def golden_texts(path: Path, decoder: ir.Model) -> list[GoldenText]:
    """The golden texts of a language model, each as far as it is judged."""
    case = golden.read(path)[golden.TEXT]
    kept, found, begun = Kept.read(case), list[GoldenText](), 0
    for (_, target), first, count in zip(_rows(case), case["first"], case["scored"], strict=True):
        places = np.arange(begun, begun + int(count))
        found.append(GoldenText(prefill_feed(decoder, target[: first + count - 1]), kept.at(places)))
        begun += int(count)
    return found


def _rows(case: Feed) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Source ids (empty without an encoder) and target ids of each row, padding left out."""
    targets, lengths = golden.targets(case)
    sources = golden.sources(case) if "source_ids" in case else [[] for _ in targets]
    for source, target, length in zip(sources, targets, lengths, strict=True):
        yield np.array(source, np.int64), target[:length]


def prefill_feed(decoder: ir.Model, ids: np.ndarray) -> Feed:
    """Inputs of a fused decoder for one row of ids [length], over an empty cache."""
    feed = interface.prefill(ids[None].astype(np.int64))
    room = window(decoder) or len(ids)
    for value in decoder.graph.inputs:
        if str(value.name).startswith(interface.PAST) and value.shape is not None:
            sizes = [1, *(d if isinstance(d, int) else room for d in list(value.shape)[1:])]
            feed[str(value.name)] = np.zeros(sizes, np.float32 if value.dtype is None else value.dtype.numpy())
    return feed


def window(decoder: ir.Model) -> int | None:
    """Positions of caches that hold no more than a sliding window; None for those that grow."""
    kernels = [node for node in decoder.graph if attribute(node, "sliding_window_cache", 0)]
    return int(attribute(kernels[0], "local_window_size", 0)) if kernels else None


def calibration_row_count(data: Path) -> int:
    """How many rows of a file a search calibrates on: half of them, as far as that is enough and not too many."""
    if data.suffix == ".npz":
        return MOST
    return min(MOST, max(FEWEST, len(read_data(data)) // 2))


def write_remaining_rows(data: Path, bundle: Bundle, folder: Path) -> Path:
    """Write the rows of `data` that are not calibrated on to a file in `folder`, to measure plans on; no text is in both. DataError."""
    dataset = read_data(data)
    check_dataset(dataset, bundle, data)
    if len(dataset) < 2 * FEWEST:
        raise DataError(
            f"{data}: holds {len(dataset)} texts, expected at least {2 * FEWEST}: plans are calibrated on one half and measured "
            "on the other; give more, or texts of their own with --data"
        )
    seen = {_key(dataset.inputs[i]) for i in calibrated(len(dataset), calibration_row_count(data), bundle)}
    rows = [i for i, given in enumerate(dataset.inputs) if _key(given) not in seen]
    if not rows:
        raise DataError(f"{data}: its texts are all alike, so that none is left to measure plans on; give texts of their own with --data")
    file = folder / "rest.jsonl"
    file.write_text("".join(json.dumps(_row(dataset, i), ensure_ascii=False) + "\n" for i in rows), encoding="utf-8")
    return file


def _key(given: Any) -> str:
    return json.dumps(given, sort_keys=True)


_NAMED = {"questions": "answers", "rankings": "relevance", "choices": "label"}  # what is expected of inputs that are objects


def _row(dataset: Dataset, i: int) -> dict[str, Any]:
    given, expected = dataset.inputs[i], None if dataset.references is None else dataset.references[i]
    if dataset.kind == "pairs":
        return {"source": given, "target": expected}
    if dataset.kind in _NAMED:
        return {**given, _NAMED[dataset.kind]: expected}
    if dataset.kind == "tags":
        return {"tokens": given, "tags": expected}
    if dataset.kind == "entities":
        return {"text": given, "entities": [dict(zip(("label", "start", "end"), one, strict=True)) for one in expected or ()]}
    texts = {"text": given} if isinstance(given, str) else dict(zip(("text", "pair"), given, strict=True))
    return texts | ({} if expected is None else {"label": expected})
