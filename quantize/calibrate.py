"""Calibration data as what the graphs of a bundle really read: tokens of texts, and decode steps over a cache that was really filled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxport.compare.data import Dataset, read_data
from onnxport.errors import DataError
from onnxport.runtime.arrays import read_npz
from onnxport.runtime.bundle import Bundle
from onnxport.runtime.encode import Encoder
from onnxport.runtime.engine import Engine
from onnxport.runtime.model import Model
from onnxport.runtime.session import Sessions, first_line

Feeds = dict[str, list[dict[str, np.ndarray]]]  # role -> inputs by name
FEWEST, MOST = 8, 128  # texts
TOKENS = 256  # of a text; what comes after tells little more
STEPS = 4  # the last tokens of each text are read one by one
ROWS = 16  # of a batch of an encoder


def feeds(bundle: Bundle, data: str | Path, most: int = MOST, variant: str = "fp32") -> Feeds:
    """Inputs of each graph of a bundle, made from a data file through its fp32 variant.

    Text is what `--data` takes: translations are answered greedily, and the decoder reads those answers; language models read the texts.
    A bundle without a tokenizer takes a `.npz` of its input arrays. DataError: too few texts, or of another task.
    """
    if bundle.generation is not None and not bundle.tokenizers:
        raise DataError(f"{data}: a model that generates is calibrated on texts, and this bundle has no tokenizer; export it with one")
    if Path(data).suffix == ".npz":
        return _arrays(bundle, Path(data), variant)
    if not bundle.tokenizers:
        raise DataError(f"{data}: this bundle has no tokenizer, so it is calibrated on a .npz of its input arrays, not on texts")
    dataset = read_data(data)
    texts = texts_of(dataset, bundle, data).inputs
    model = Model(bundle, variant, Sessions.choose("cpu"))
    chosen = [texts[i] for i in places(len(texts), most)]
    if model.engine is None:
        return {next(iter(bundle.variants[variant].graphs)): _encoder_feeds(bundle, variant, model, chosen)}
    return _decoder_feeds(model, model.engine, chosen)


def places(count: int, most: int) -> list[int]:
    """Which of `count` rows are calibrated on: at most `most`, evenly spaced, for files are often sorted."""
    fewer = min(most, count)
    return [i * count // fewer for i in range(fewer)]


def texts_of(dataset: Dataset, bundle: Bundle, data: str | Path) -> Dataset:
    """The data, if it is of the bundle's task and enough of it. DataError."""
    asks = bundle.task == "question-answering"
    if asks != (dataset.kind == "questions"):
        wanted = "questions with their contexts" if asks else "texts"
        raise DataError(f"{data}: holds {dataset.kind}, and a bundle for {bundle.task} is calibrated on {wanted}")
    kept = [i for i, text in enumerate(dataset.inputs) if not isinstance(text, str) or text.strip()]
    if len(kept) < FEWEST:
        raise DataError(
            f"{data}: holds {len(kept)} texts, expected at least {FEWEST} to calibrate on; give more of what the model will see"
        )
    return dataset


class _Recorder(Encoder):
    """Keeps what the encoder's graph is given."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.seen: list[dict[str, np.ndarray]] = []

    def run(self, inputs: Any) -> dict[str, np.ndarray]:
        """As Encoder."""
        self.seen.append({name: np.array(array) for name, array in inputs.items()})
        return super().run(inputs)


def _encoder_feeds(bundle: Bundle, variant: str, model: Model, items: Sequence[Any]) -> list[dict[str, np.ndarray]]:
    encoder = _Recorder(bundle, bundle.variants[variant], Sessions.choose("cpu"), model._source())
    texts = [(item["question"], item["context"]) if isinstance(item, dict) else item for item in items]
    for _ in encoder.each(encoder.windows(texts, None, TOKENS), ROWS):
        pass
    return encoder.seen


def _decoder_feeds(model: Model, engine: Engine, texts: Sequence[str]) -> Feeds:
    source = model._source()
    assert source is not None
    ids = [row[:TOKENS] for row in source.encode(list(texts)) if row]
    if engine.encoder is None:
        return {"decoder": [feed for row in ids for feed in _steps(engine, row[: engine.config.max_length], {})]}
    ids = [row[: engine.config.max_length] for row in ids]
    answers = model.generate(ids, beam=1, temperature=0.0, max_new_tokens=min(TOKENS, engine.config.max_length or TOKENS) - 1)
    found: Feeds = {"encoder": [], "decoder": []}
    for row, answer in zip(ids, answers, strict=True):
        cross = engine.encode([row])
        found["encoder"].append({"input_ids": np.array([row], np.int64), "source_mask": np.ones((1, len(row)), np.int32)})
        target = [engine.config.decoder_start_id or 0, *answer.tokens]
        found["decoder"] += _steps(engine, target, {**cross.arrays, "source_mask": cross.mask})
    return found


def _steps(engine: Engine, ids: Sequence[int], more: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """A prefill of all but the last tokens, then these, each over the cache that the runs before left."""
    config, inputs = engine.config, engine.inputs
    capacity = config.window or len(ids)
    shape = (1, config.kv_heads, capacity, config.head_size)
    past = {f"past_{name}": np.zeros(shape, engine.cache_type) for name in engine.cache_names}
    first = max(len(ids) - STEPS, 1)
    done = 0
    for part in [ids[:first], *([token] for token in ids[first:])]:
        after = done + len(part)
        feed: dict[str, np.ndarray] = {
            "input_ids": np.array([part], np.int64),
            "position_ids": np.arange(done, after, dtype=np.int64)[None],
            "logits_index": np.array([len(part) - 1], np.int64),
            "seqlens_k": np.array([after - 1], np.int32),
            "total_sequence_length": np.array(after, np.int32),
            "query_seqlens": np.array([len(part)], np.int32),
            **past,
            **more,
        }
        yield feed
        given = feed | {"candidates": np.ones(1, np.int64), "suppressed": np.zeros(0, np.int64)}
        names = [f"present_{name}" for name in engine.cache_names]
        present = engine.decoder.run(names, {name: array for name, array in given.items() if name in inputs})
        past = {f"past_{name}": array for name, array in zip(engine.cache_names, present, strict=True)}
        done = after


def _arrays(bundle: Bundle, data: Path, variant: str) -> Feeds:
    if bundle.generation is not None:
        raise DataError(f"{data}: a bundle for {bundle.task} is calibrated on texts, not on arrays")
    arrays = read_npz(data, DataError, "give a .npz of the model's input arrays")
    (role,) = bundle.variants[variant].graphs
    encoder = Encoder(bundle, bundle.variants[variant], Sessions.choose("cpu"), None)
    bad = [name for name, array in arrays.items() if array.dtype.kind == "f" and not np.isfinite(array).all()]
    if bad:
        raise DataError(f"{data}: {bad[0]} holds NaN or infinity, expected what the model will see")
    try:
        encoder.run(arrays)  # names, types and sizes
    except DataError as error:
        raise DataError(f"{data}: {first_line(error)}") from None
    return {role: [arrays]}
