"""The inputs of golden answers as what graphs read: enough to calibrate on where there is no data."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxport.quantize.choice import remove_choice
from onnxport.quantize.fusion.core import attribute
from onnxport.quantize.store import write

Feed = dict[str, np.ndarray]


def golden_cases(path: Path) -> dict[str, Feed]:
    """golden.npz by case and name."""
    cases: dict[str, Feed] = {}
    with np.load(path, allow_pickle=False) as arrays:
        for key in arrays.files:
            case, _, name = key.partition("/")
            cases.setdefault(case, {})[name] = arrays[key]
    return cases


def golden_feeds(path: Path, models: Mapping[str, ir.Model]) -> dict[str, list[Feed]]:
    """Role -> inputs by name. Of a model that generates: each row's source, and its target ids in one run over an empty cache."""
    cases = list(golden_cases(path).values())
    if "decoder" not in models:
        (role,) = models
        return {role: [{name[3:]: array for name, array in case.items() if name.startswith("in/")} for case in cases]}
    found: dict[str, list[Feed]] = {role: [] for role in models}
    rows = [row for case in cases if "logits" in case for row in _rows(case)]
    for source, _ in rows:
        if "encoder" in found:
            found["encoder"].append({"input_ids": source[None], "source_mask": np.ones((1, len(source)), np.int32)})
    decoder = remove_choice(models["decoder"])
    crosses = _run(models["encoder"], found["encoder"]) if "encoder" in models else [{} for _ in rows]
    for (_, target), cross, feed in zip(rows, crosses, found.get("encoder", rows), strict=True):
        mask = {"source_mask": feed["source_mask"]} if isinstance(feed, dict) else {}
        found["decoder"].append({**_prefill(decoder, target), **cross, **mask})
    return found


def _rows(case: Feed) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Source ids (empty without an encoder) and target ids of each row, padding left out."""
    targets = case["target_ids"] if "target_ids" in case else case["input_ids"]
    lengths = case.get("target_lengths", case.get("lengths", np.full(len(targets), targets.shape[1]))).reshape(-1)
    sources = case.get("source_ids")
    for i, target in enumerate(targets):
        source = np.zeros(0, np.int64) if sources is None else sources[i][case["source_mask"][i] > 0]
        yield source, target[: lengths[i]]


def _prefill(decoder: ir.Model, ids: np.ndarray) -> Feed:
    count = len(ids)
    feed: Feed = {
        "input_ids": ids[None].astype(np.int64),
        "position_ids": np.arange(count, dtype=np.int64)[None],
        "logits_index": np.array([count - 1], np.int64),
        "seqlens_k": np.array([count - 1], np.int32),
        "total_sequence_length": np.array(count, np.int32),
        "query_seqlens": np.array([count], np.int32),
    }
    room = window(decoder) or count
    for value in decoder.graph.inputs:
        if str(value.name).startswith("past_") and value.shape is not None:
            sizes = [1, *(d if isinstance(d, int) else room for d in list(value.shape)[1:])]
            feed[str(value.name)] = np.zeros(sizes, np.float32)
    return feed


def window(decoder: ir.Model) -> int | None:
    """Positions of caches that hold no more than a sliding window; None for those that grow."""
    kernels = [node for node in decoder.graph if attribute(node, "sliding_window_cache", 0)]
    return int(attribute(kernels[0], "local_window_size", 0)) if kernels else None


def _run(model: ir.Model, feeds: list[Feed]) -> list[Feed]:
    from onnxport.runtime.session import Sessions

    with tempfile.TemporaryDirectory() as folder:
        (file,) = write({"model": model}, Path(folder)).values()
        session = Sessions.choose("cpu").open(Path(folder) / file)
        names, inputs = [o.name for o in session.get_outputs()], {i.name for i in session.get_inputs()}
        return [dict(zip(names, session.run(names, {n: a for n, a in feed.items() if n in inputs}), strict=True)) for feed in feeds]
