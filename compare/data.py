"""Readers for the data files of `--data` and `--calibrate`: tab-separated, CSV, JSON lines, plain text, CoNLL's and SQuAD's JSON.

`read_data` gives a `Dataset`; every fault is a `DataError` of one line: the file, the line, what was found and what was expected.
Files may be gzipped (`.tsv.gz`). Text is UTF-8, with or without a byte-order mark.
"""

import csv
import gzip
import io
import json
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxport.errors import DataError
from onnxport.files import read_most, read_regular

Row = tuple[Any, Any, int]  # input, reference, line of the file

MOST_OF_DATA = 1 << 31  # bytes of a file, unpacked
_LONGEST_FIELD = 2**31 - 1  # of CSV; the module's own limit is 128 KiB
_FORMS: tuple[tuple[str, tuple[str, ...]], ...] = (  # the first form whose fields are all there
    ("pairs", ("source", "target")),
    ("pairs", ("source", "reference")),
    ("questions", ("question", "context", "answers")),
    ("rankings", ("query", "documents", "relevance")),
    ("choices", ("text", "candidates", "label")),
    ("tags", ("tokens", "tags")),
    ("tags", ("tokens", "ner_tags")),
    ("entities", ("text", "entities")),
    ("labelled", ("text", "pair", "label")),
    ("labelled", ("text", "label")),
    ("labelled", ("text", "category")),
    ("texts", ("text",)),
)
_EXPECTED = (
    "source and target; text, perhaps pair, and label; question, context and answers; text and entities; tokens and tags; "
    "query, documents and relevance; text, candidates and label; or text alone"
)


@dataclass(frozen=True)
class Dataset:
    """Inputs and what is expected of them, in the file's order.

    kind: "pairs" (str -> str), "labelled" (str, or two of them -> str), "questions" ({"question", "context"} -> list of accepted answers),
    "entities" (str -> list of [label, start, end]), "tags" (list of words -> list of tags such as B-PER), "rankings" ({"query",
    "documents"} -> relevance of each document, 0 of what is not), "choices" ({"text", "candidates"} -> the right one) or "texts" (str).
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

    def read(self) -> list[Any]:
        """What a model reads: a text or a pair of texts for each input, of a ranking for each document."""
        found: list[Any] = []
        for given in self.inputs:
            if self.kind == "rankings":
                found += [(given["query"], document) for document in given["documents"]]
            elif isinstance(given, dict):
                found.append((given["question"], given["context"]) if self.kind == "questions" else given["text"])
            else:
                found.append(" ".join(given) if self.kind == "tags" else given)
        return found

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
    suffix = (suffixes[-2:-1] if zipped else suffixes[-1:]) or [""]
    reader = READERS.get(suffix[0])
    if reader is None:
        shown = "".join(suffixes[-2:] if zipped else suffixes[-1:]) or "no suffix"
        raise DataError(f"{path}: unknown kind of data file ({shown}); expected {', '.join(READERS)}, or one of them with .gz")
    kind, rows = reader(path, _read(path, zipped))
    if not rows:
        raise DataError(f"{path}: the file holds no rows; expected at least one")
    references = None if kind == "texts" else [row[1] for row in rows]
    return Dataset(path.name, kind, [row[0] for row in rows], references, [row[2] for row in rows])


def _read(path: Path, zipped: bool) -> str:
    try:
        raw = read_regular(path, MOST_OF_DATA)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path given as data") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if zipped:
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(raw)) as unpacked:
                raw = bytes(read_most(unpacked, MOST_OF_DATA + 1))
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: not a whole gzip file ({error}); compress it again") from error
        if len(raw) > MOST_OF_DATA:
            raise DataError(f"{path}: it unpacks to more than {MOST_OF_DATA} bytes; give fewer rows")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}: line {line}: byte 0x{raw[error.start]:02x} is not valid UTF-8; save the file as UTF-8") from None


def _read_tsv(path: Path, text: str) -> tuple[str, list[Row]]:
    rows: list[Row] = []
    for number, line in _lines(text):
        columns = line.split("\t")
        if len(columns) != 2:
            count = f"{len(columns)} column{'s' if len(columns) != 1 else ''}"
            raise DataError(f"{path}: line {number}: found {count}; expected 2 separated by a tab (source, reference)")
        place = f"{path}: line {number}"
        rows.append((_text(place, "source", columns[0]), _text(place, "reference", columns[1]), number))
    return "pairs", rows


def _read_txt(path: Path, text: str) -> tuple[str, list[Row]]:
    return "texts", [(line, None, number) for number, line in _lines(text) if line.strip()]


def _read_conll(path: Path, text: str) -> tuple[str, list[Row]]:
    """A word and, in the last column, its tag a line; an empty line between sentences. Lines that begin with -DOCSTART- are left out."""
    rows: list[Row] = []
    words: list[str] = []
    tags: list[str] = []
    first = 1
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        columns = line.split()
        if columns and columns[0] != "-DOCSTART-":
            if len(columns) < 2:
                raise DataError(f"{path}: line {number}: found {line!r:.60}; expected a word and its tag, separated by white space")
            first = first if words else number
            words.append(_string(f"{path}: line {number}", "word", columns[0]))
            tags.append(columns[-1])
        elif words:
            rows.append((words, tags, first))
            words, tags = [], []
    return "tags", rows


def _read_csv(path: Path, text: str) -> tuple[str, list[Row]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)  # str.splitlines would end a row at U+2028 too
    limit = csv.field_size_limit(_LONGEST_FIELD)
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
    finally:
        csv.field_size_limit(limit)
    return kind or "texts", rows


def _read_jsonl(path: Path, text: str) -> tuple[str, list[Row]]:
    rows: list[Row] = []
    form: tuple[str, tuple[str, ...]] | None = None
    for number, line in _lines(text):
        if not line.strip():
            continue
        fields = _parsed(path, number, line, "one object a line")
        if not isinstance(fields, dict):
            raise DataError(f"{path}: line {number}: found a JSON {type(fields).__name__}; expected an object with {_EXPECTED}")
        form = form or _form(path, number, fields)
        missing = [name for name in form[1] if name not in fields]
        if missing:
            raise DataError(f"{path}: line {number}: found {_listed(fields)}; expected {', '.join(form[1])} as in the first line")
        rows.append(_row(path, number, *form, fields))
    return (form[0] if form else "texts"), rows


def _read_squad(path: Path, text: str) -> tuple[str, list[Row]]:
    if not text.strip():
        return "questions", []
    content = _parsed(path, 1, text, "SQuAD's layout")
    rows: list[Row] = []
    where = "data"
    try:
        for a, article in enumerate(content["data"]):
            for p, paragraph in enumerate(article["paragraphs"]):
                for q, qa in enumerate(paragraph["qas"]):
                    where = f"data[{a}].paragraphs[{p}].qas[{q}]"
                    answers = [_string(f"{path}: {where}", "text", answer["text"]) for answer in qa["answers"]]
                    fields = {"question": qa["question"], "context": paragraph["context"]}
                    rows.append(({name: _text(f"{path}: {where}", name, value) for name, value in fields.items()}, answers, 0))
    except (KeyError, TypeError) as error:
        expected = "data[].paragraphs[].{context, qas[].{question, answers[].text}}"
        raise DataError(f"{path}: not SQuAD's layout after {where} ({type(error).__name__}: {error}); expected {expected}") from None
    return "questions", rows


def _form(path: Path, line: int, names: Any) -> tuple[str, tuple[str, ...]]:
    """The first of _FORMS whose fields are all among `names`."""
    for form in _FORMS:
        if all(name in names for name in form[1]):
            return form
    raise DataError(f"{path}: line {line}: found {_listed(names)}; expected {_EXPECTED}")


def _row(path: Path, line: int, kind: str, names: tuple[str, ...], fields: dict[str, Any]) -> Row:
    """The row of one object or line of CSV, whose form is `kind` with the fields `names`."""
    given, expected = _ROWS.get(kind, _plain_row)(f"{path}: line {line}", names, fields)
    return given, expected, line


def _plain_row(place: str, names: tuple[str, ...], fields: dict[str, Any]) -> tuple[Any, Any]:
    values = [_text(place, name, fields[name]) for name in names]
    return values[0], values[1] if len(values) > 1 else None


def _question_row(place: str, names: tuple[str, ...], fields: dict[str, Any]) -> tuple[Any, Any]:
    answers = fields["answers"]
    if isinstance(answers, dict):  # as the datasets library stores SQuAD
        answers = answers.get("text")
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, list) or not all(isinstance(a, str) for a in answers):
        raise DataError(f"{place}: field 'answers' is not text; expected a text or a list of texts")
    return {name: _text(place, name, fields[name]) for name in names[:2]}, [_string(place, "answers", a) for a in answers]


def _labelled_row(place: str, names: tuple[str, ...], fields: dict[str, Any]) -> tuple[Any, Any]:
    *texts, name = names
    label = fields[name]
    if not isinstance(label, str | int) or isinstance(label, bool):
        raise DataError(f"{place}: field {name!r} is a {type(label).__name__}; expected a text or an integer")
    inputs = [_text(place, text, fields[text]) for text in texts]
    return inputs[0] if len(inputs) == 1 else tuple(inputs), _string(place, name, str(label))


def _tagged_row(place: str, names: tuple[str, ...], fields: dict[str, Any]) -> tuple[Any, Any]:
    words, tags = (_listed_texts(place, name, fields[name]) for name in names)
    if len(words) != len(tags):
        raise DataError(f"{place}: {names[0]} has {len(words)} entries and {names[1]} {len(tags)}; expected a tag for each word")
    return words, tags


def _entity_row(place: str, names: tuple[str, ...], fields: dict[str, Any]) -> tuple[Any, Any]:
    text, stated = _text(place, "text", fields["text"]), fields["entities"]
    expected = 'expected a list of {"label", "start", "end"}, characters of the text'
    if not isinstance(stated, list):
        raise DataError(f"{place}: field 'entities' is a {type(stated).__name__}; {expected}")
    found = []
    for one in stated:
        fits = isinstance(one, dict) and isinstance(one.get("label"), str)
        start, end = (one.get("start"), one.get("end")) if fits else (None, None)
        if type(start) is not int or type(end) is not int or not 0 <= start < end <= len(text):
            raise DataError(f"{place}: field 'entities' holds {one!r:.60}; {expected}")
        found.append([one["label"], start, end])
    return text, found


def _ranking_row(place: str, names: tuple[str, ...], fields: dict[str, Any]) -> tuple[Any, Any]:
    documents, relevance = _listed_texts(place, "documents", fields["documents"]), fields["relevance"]
    fits = isinstance(relevance, list) and len(relevance) == len(documents)
    if not fits or not all(isinstance(one, int | float) and 0 <= one < math.inf for one in relevance):
        raise DataError(f"{place}: field 'relevance' is {relevance!r:.60}; expected a number from 0 for each of {len(documents)} documents")
    return {"query": _text(place, "query", fields["query"]), "documents": documents}, [float(one) for one in relevance]


def _choice_row(place: str, names: tuple[str, ...], fields: dict[str, Any]) -> tuple[Any, Any]:
    candidates, label = _listed_texts(place, "candidates", fields["candidates"]), fields["label"]
    if type(label) is int and 0 <= label < len(candidates):
        label = candidates[label]
    if label not in candidates or len(set(candidates)) < len(candidates):
        raise DataError(f"{place}: field 'label' is {label!r:.60}; expected one of the candidates, each once, or its place from 0")
    return {"text": _text(place, "text", fields["text"]), "candidates": candidates}, label


def _listed_texts(place: str, name: str, value: Any) -> list[str]:
    """A list of texts, with one at least."""
    if not isinstance(value, list) or not value:
        raise DataError(f"{place}: field {name!r} is {value!r:.40}; expected a list of texts")
    return [_text(place, name, one) for one in value]


# kind of `Dataset` → (place for messages, fields of the form, all fields) → input and what is expected of it
_ROWS: dict[str, Callable[[str, tuple[str, ...], dict[str, Any]], tuple[Any, Any]]] = {
    "questions": _question_row,
    "labelled": _labelled_row,
    "tags": _tagged_row,
    "entities": _entity_row,
    "rankings": _ranking_row,
    "choices": _choice_row,
}


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and the lines that are not empty. Only \\n and \\r\\n end a line: a text may hold U+2028."""
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.removesuffix("\r")
        if line:
            yield number, line


def _text(place: str, name: str, value: Any) -> str:
    """`value`, a str that holds more than white space."""
    if not _string(place, name, value).strip():
        raise DataError(f"{place}: found an empty {name}; expected text")
    return str(value)


def _string(place: str, name: str, value: Any) -> str:
    """`value`, a str that UTF-8 can hold. place: file and line, for the message."""
    if not isinstance(value, str):
        raise DataError(f"{place}: field {name!r} is a {type(value).__name__}; expected a text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        raise DataError(f"{place}: field {name!r} holds a lone surrogate U+{code:04X}; expected valid Unicode") from None
    return value


def _parsed(path: Path, line: int, text: str, expected: str) -> Any:
    """The value of the JSON text that begins at `line` of the file."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{error.msg} at column {error.colno}"
        raise DataError(f"{path}: line {line + error.lineno - 1}: not valid JSON ({where}); expected {expected}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; nesting without end
        raise DataError(f"{path}: line {line}: JSON that cannot be read ({error}); expected {expected}") from None


def _listed(names: Any) -> str:
    """Names of fields for a message of one line, whatever characters they hold."""
    return ", ".join(name if name.isprintable() else ascii(name) for name in names) or "no fields"


# Suffix -> reader: (path for messages, text) -> (kind of `Dataset`, rows).
READERS: dict[str, Callable[[Path, str], tuple[str, list[Row]]]] = {
    ".tsv": _read_tsv,
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".conll": _read_conll,
    ".txt": _read_txt,
    ".json": _read_squad,
}
