"""Rows of a data file for two uses: those that a search calibrates on, and those that it measures plans on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from onnxport.compare.data import Dataset, read_data
from onnxport.errors import DataError
from onnxport.quantize import calibrate
from onnxport.runtime.bundle import Bundle

FEW = 200  # rows below which a search says that they are few


def calibrated_on(data: Path) -> int:
    """How many rows of a file a search calibrates on: half of them, as far as that is enough and not too many."""
    if data.suffix == ".npz":
        return calibrate.MOST
    return min(calibrate.MOST, max(calibrate.FEWEST, len(read_data(data)) // 2))


def rest_of(data: Path, bundle: Bundle, folder: Path) -> Path:
    """A file in `folder` with the rows that `calibrate.feeds` leaves out when it may take half; no text is in both. DataError."""
    dataset = calibrate.texts_of(read_data(data), bundle, data)
    if len(dataset) < 2 * calibrate.FEWEST:
        raise DataError(
            f"{data}: holds {len(dataset)} texts, expected at least {2 * calibrate.FEWEST}: plans are calibrated on one half and measured "
            "on the other; give more, or texts of their own with --data"
        )
    seen = {_key(dataset.inputs[i]) for i in calibrate.places(len(dataset), calibrated_on(data))}
    rows = [i for i, given in enumerate(dataset.inputs) if _key(given) not in seen]
    if not rows:
        raise DataError(f"{data}: its texts are all alike, so that none is left to measure plans on; give texts of their own with --data")
    file = folder / "rest.jsonl"
    file.write_text("".join(json.dumps(_row(dataset, i), ensure_ascii=False) + "\n" for i in rows), encoding="utf-8")
    return file


def _key(given: Any) -> str:
    return json.dumps(given, sort_keys=True)


def _row(dataset: Dataset, i: int) -> dict[str, Any]:
    given, expected = dataset.inputs[i], None if dataset.references is None else dataset.references[i]
    if dataset.kind == "pairs":
        return {"source": given, "target": expected}
    if dataset.kind == "questions":
        return {**given, "answers": expected}
    texts = {"text": given} if isinstance(given, str) else dict(zip(("text", "pair"), given, strict=True))
    return texts | ({} if expected is None else {"label": expected})
