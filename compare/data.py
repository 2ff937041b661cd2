"""Readers for the data files of `--data` and `--calibrate`.

Every reader gives a `Dataset`; every fault is a `DataError` of one line: the file, the line, what was found and what was expected.
Files may be gzipped (`.tsv.gz`). Text is UTF-8, with or without a byte-order mark.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxport.errors import DataError

Row = tuple[Any, Any]  # input, reference


@dataclass(frozen=True)
class Dataset:
    """Inputs and what is expected of them, in the file's order.

    kind: "pairs" (str -> str), "labelled" (str -> str), "questions" ({"question", "context"} -> list of accepted answers) or "texts" (str).
    references: as many as inputs, or None for "texts".
    """

    name: str
    kind: str
    inputs: list[Any]
    references: list[Any] | None

    def __len__(self) -> int:
        return len(self.inputs)

    def limited(self, limit: int | None) -> "Dataset":
        """At most `limit` rows, evenly spaced over the file: files sorted by length are common, and their head is not a sample."""
        if limit is None or limit >= len(self.inputs):
            return self
        rows = [i * len(self.inputs) // limit for i in range(limit)]
        references = None if self.references is None else [self.references[i] for i in rows]
        return Dataset(self.name, self.kind, [self.inputs[i] for i in rows], references)

    def grouped(self) -> "Dataset":
        """Pairs with equal sources as one row, each reference a list: a sentence with several translations is scored against all."""
        if self.kind != "pairs" or self.references is None:
            return self
        groups: dict[str, list[str]] = {}
        for source, reference in zip(self.inputs, self.references, strict=True):
            group = groups.setdefault(source, [])
            if reference not in group:
                group.append(reference)
        return Dataset(self.name, self.kind, list(groups), list(groups.values()))


def read_data(path: str | Path) -> Dataset:
    """Reads `.tsv`, `.csv`, `.jsonl`, `.txt` or SQuAD's `.json`, each also with `.gz`. Raises DataError."""
    path = Path(path)
    suffixes = [s.lower() for s in path.suffixes]
    zipped = bool(suffixes) and suffixes[-1] == ".gz"
    kind = (suffixes[-2:-1] if zipped else suffixes[-1:]) or [""]
    reader = _READERS.get(kind[0])
    if reader is None:
        found = "".join(suffixes[-2:] if zipped else suffixes[-1:]) or "no suffix"
        raise DataError(f"{path}: unknown kind of data file ({found}); expected {', '.join(_READERS)}, or one of them with .gz")
    kind_of_rows, rows = reader(path, _read(path, zipped))
    if not rows:
        raise DataError(f"{path}: the file holds no rows; expected at least one")
    references = None if kind_of_rows == "texts" else [row[1] for row in rows]
    return Dataset(path.name, kind_of_rows, [row[0] for row in rows], references)


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


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and the lines that are not blank. Only \\n and \\r\\n end a line: a text may hold U+2028."""
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.removesuffix("\r")
        if line.strip():
            yield number, line


def _filled(path: Path, line: int, name: str, value: str) -> str:
    if not value.strip():
        raise DataError(f"{path}: line {line}: found an empty {name}; expected text")
    return value


def _read_tsv(path: Path, text: str) -> tuple[str, list[Row]]:
    rows: list[Row] = []
    for number, line in _lines(text):
        columns = line.split("\t")
        if len(columns) != 2:
            found = f"{len(columns)} column{'s' if len(columns) != 1 else ''}"
            raise DataError(f"{path}: line {number}: found {found}; expected 2 separated by a tab (source, reference)")
        rows.append((_filled(path, number, "source", columns[0]), _filled(path, number, "reference", columns[1])))
    return "pairs", rows


def _read_txt(path: Path, text: str) -> tuple[str, list[Row]]:
    return "texts", [(line, None) for _, line in _lines(text)]


_FORMS: tuple[tuple[str, tuple[str, ...]], ...] = (  # the first form whose fields are all there
    ("pairs", ("source", "target")),
    ("pairs", ("source", "reference")),
    ("questions", ("question", "context", "answers")),
    ("labelled", ("text", "label")),
    ("labelled", ("text", "category")),
    ("texts", ("text",)),
)
_EXPECTED = "source and target; text and label; question, context and answers; or text alone"


def _form(path: Path, line: int, names: Any) -> tuple[str, tuple[str, ...]]:
    for form in _FORMS:
        if all(name in names for name in form[1]):
            return form
    raise DataError(f"{path}: line {line}: found {', '.join(map(str, names)) or 'no fields'}; expected {_EXPECTED}")


def _read_csv(path: Path, text: str) -> tuple[str, list[Row]]:
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    rows: list[Row] = []
    header: list[str] = []
    kind = ""
    names: tuple[str, ...] = ()
    try:
        for values in reader:
            if not any(value.strip() for value in values):
                continue
            if not header:
                header = [value.strip() for value in values]
                kind, names = _form(path, reader.line_num, header)
                continue
            if len(values) != len(header):
                expected = f"{len(header)} ({', '.join(header)})"
                raise DataError(f"{path}: line {reader.line_num}: found {len(values)} columns; expected {expected}")
            fields = dict(zip(header, values, strict=True))
            if kind == "questions":
                fields["answers"] = [fields["answers"]]  # type: ignore[assignment]
            rows.append(_row(path, reader.line_num, kind, names, fields))
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: not valid CSV ({error}); quote fields that hold commas or quotes") from None
    return kind or "texts", rows


def _read_jsonl(path: Path, text: str) -> tuple[str, list[Row]]:
    rows: list[Row] = []
    form: tuple[str, tuple[str, ...]] | None = None
    for number, line in _lines(text):
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            where = f"{error.msg} at column {error.colno}"
            raise DataError(f"{path}: line {number}: not valid JSON ({where}); expected one object a line") from None
        if not isinstance(fields, dict):
            raise DataError(f"{path}: line {number}: found a JSON {type(fields).__name__}; expected an object with {_EXPECTED}")
        form = form or _form(path, number, fields)
        missing = [name for name in form[1] if name not in fields]
        if missing:
            found = ", ".join(fields) or "no fields"
            raise DataError(f"{path}: line {number}: found {found}; expected {', '.join(form[1])} as in the first line")
        rows.append(_row(path, number, *form, fields))
    return (form[0] if form else "texts"), rows


def _row(path: Path, line: int, kind: str, names: tuple[str, ...], fields: dict[str, Any]) -> Row:
    if kind == "questions":
        answers = fields["answers"]
        if isinstance(answers, dict):  # as the datasets library stores SQuAD
            answers = answers.get("text")
        answers = [answers] if isinstance(answers, str) else answers
        if not isinstance(answers, list) or not all(isinstance(a, str) for a in answers):
            raise DataError(f"{path}: line {line}: field 'answers' is not text; expected a text or a list of texts")
        texts = {name: _text(path, line, name, fields[name]) for name in names[:2]}
        return texts, answers
    if kind == "labelled":
        label = fields[names[1]]
        if not isinstance(label, str | int) or isinstance(label, bool):
            raise DataError(f"{path}: line {line}: field {names[1]!r} is a {type(label).__name__}; expected a text or an integer")
        return _text(path, line, names[0], fields[names[0]]), str(label)
    values = [_text(path, line, name, fields[name]) for name in names]
    return values[0], values[1] if len(values) > 1 else None


def _text(path: Path, line: int, name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise DataError(f"{path}: line {line}: field {name!r} is a {type(value).__name__}; expected a text")
    return _filled(path, line, name, value)


def _read_squad(path: Path, text: str) -> tuple[str, list[Row]]:
    if not text.strip():
        return "questions", []
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: line {error.lineno}: not valid JSON ({error.msg}); expected SQuAD's layout") from None
    rows: list[Row] = []
    where = "data"
    try:
        for a, article in enumerate(content["data"]):
            for p, paragraph in enumerate(article["paragraphs"]):
                for q, qa in enumerate(paragraph["qas"]):
                    where = f"data[{a}].paragraphs[{p}].qas[{q}]"
                    answers = [answer["text"] for answer in qa["answers"]]
                    rows.append(({"question": qa["question"], "context": paragraph["context"]}, answers))
    except (KeyError, TypeError) as error:
        expected = "data[].paragraphs[].{context, qas[].{question, answers[].text}}"
        raise DataError(f"{path}: not SQuAD's layout after {where} ({type(error).__name__}: {error}); expected {expected}") from None
    return "questions", rows


_READERS: dict[str, Callable[[Path, str], tuple[str, list[Row]]]] = {
    ".tsv": _read_tsv,
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".txt": _read_txt,
    ".json": _read_squad,
}
