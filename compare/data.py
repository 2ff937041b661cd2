"""Readers for the data files of `--data` and `--calibrate`.

Every reader gives a `Dataset`; every fault is a `DataError` of one line: the file, the line, what was found and what was expected.
Files may be gzipped (`.tsv.gz`). Text is UTF-8, with or without a byte-order mark.
"""

import gzip
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxport.compare.rows import READERS
from onnxport.errors import DataError


@dataclass(frozen=True)
class Dataset:
    """Inputs and what is expected of them, in the file's order.

    kind: "pairs" (str -> str), "labelled" (str, or two of them -> str), "questions" ({"question", "context"} -> list of accepted answers)
    or "texts" (str).
    references: as many as inputs, or None for "texts".  lines: where in the file each input stands, from 1 (0 where there are no lines).
    """

    name: str
    kind: str
    inputs: list[Any]
    references: list[Any] | None
    lines: list[int]

    def __len__(self) -> int:
        return len(self.inputs)

    def limited(self, limit: int | None) -> "Dataset":
        """At most `limit` rows, evenly spaced over the file: files sorted by length are common, and their head is not a sample."""
        if limit is None or limit >= len(self.inputs):
            return self
        rows = [i * len(self.inputs) // limit for i in range(limit)]
        references = None if self.references is None else [self.references[i] for i in rows]
        return replace(self, inputs=[self.inputs[i] for i in rows], references=references, lines=[self.lines[i] for i in rows])

    def grouped(self) -> "Dataset":
        """Pairs with equal sources as one row, each reference a list: a sentence with several translations is scored against all."""
        if self.kind != "pairs" or self.references is None:
            return self
        groups: dict[str, list[str]] = {}
        first: dict[str, int] = {}
        for source, reference, line in zip(self.inputs, self.references, self.lines, strict=True):
            first.setdefault(source, line)
            group = groups.setdefault(source, [])
            if reference not in group:
                group.append(reference)
        return replace(self, inputs=list(groups), references=list(groups.values()), lines=list(first.values()))


def read_data(path: str | Path) -> Dataset:
    """Reads `.tsv`, `.csv`, `.jsonl`, `.txt` or SQuAD's `.json`, each also with `.gz`. Raises DataError."""
    path = Path(path)
    suffixes = [s.lower() for s in path.suffixes]
    zipped = bool(suffixes) and suffixes[-1] == ".gz"
    kind = (suffixes[-2:-1] if zipped else suffixes[-1:]) or [""]
    reader = READERS.get(kind[0])
    if reader is None:
        found = "".join(suffixes[-2:] if zipped else suffixes[-1:]) or "no suffix"
        raise DataError(f"{path}: unknown kind of data file ({found}); expected {', '.join(READERS)}, or one of them with .gz")
    kind_of_rows, rows = reader(path, _read(path, zipped))
    if not rows:
        raise DataError(f"{path}: the file holds no rows; expected at least one")
    references = None if kind_of_rows == "texts" else [row[1] for row in rows]
    return Dataset(path.name, kind_of_rows, [row[0] for row in rows], references, [row[2] for row in rows])


def _read(path: Path, zipped: bool) -> str:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path given as data") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if zipped:
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: not a whole gzip file ({error}); compress it again") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}: line {line}: byte 0x{raw[error.start]:02x} is not valid UTF-8; save the file as UTF-8") from None
