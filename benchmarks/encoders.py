"""Encoders: one batch of full rows, and real sentences of all lengths, each side with the batching that suits it best."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from rows import Bench, Row, best_batching, make_row

from onnxport.compare.measure.timing import Timed
from onnxport.compare.metrics import agreement
from onnxport.compare.protocol.client import Client

BATCH, LENGTH = 8, 128
REFERENCE = "transformers fp32"


def arrays() -> dict[str, np.ndarray]:
    """A full batch of ids that every model has; the same one each time."""
    ids = np.random.default_rng(8).integers(1000, 20_000, (BATCH, LENGTH))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def check(bench: Bench) -> Iterator[Row]:
    """Not a speed: the mean cosine of a side's vectors and of its hidden states with transformers' own."""
    texts = bench.texts().limited(32).inputs
    states = {name: side.call("run", arrays())[0]["last_hidden_state"].reshape(BATCH * LENGTH, -1) for name, side in bench.clients.items()}
    vectors = {name: side.call("encode", texts, batch_size=8)[0] for name, side in bench.clients.items()}
    if REFERENCE not in states:
        raise SystemExit(f"check compares with {REFERENCE}: name it with --side too")
    for case, found in ((f"{BATCH} x {LENGTH}, hidden states", states), (f"{len(texts)} texts, vectors", vectors)):
        rates = {name: {"rate": agreement(values, found[REFERENCE])["cosine"]} for name, values in found.items()}
        yield {"workload": "check", "case": case, "threads": bench.threads, "unit": "cosine", "sides": rates}


def encoder(bench: Bench) -> Iterator[Row]:
    """Items a second: a batch of 8 rows of 128 tokens through `run`; the sentences of --data through `encode`."""
    inputs = arrays()

    def run(side: Client, number: int) -> tuple[float, int]:
        return side.time("run", inputs)[0][0], BATCH

    yield make_row(bench, "encoder", f"{BATCH} x {LENGTH}", "items/s", bench.alternate(run, bench.rounds))
    texts = bench.texts().limited(bench.limit).inputs
    best = {name: best_batching(name, side, "encode", texts[:128], {}) for name, side in bench.clients.items()}

    def encode(side: Client, number: int) -> tuple[float, int]:
        return side.time("encode", texts, **best[side.name])[0]

    timed: dict[str, Timed] = bench.alternate(encode, max(1, bench.rounds // 3), warm_up=0)
    row = make_row(bench, "encoder", f"{len(texts)} sentences", "items/s", timed)
    for name, way in best.items():
        found: dict[str, Any] = row["sides"][name]
        found["batching"] = way
    yield row
