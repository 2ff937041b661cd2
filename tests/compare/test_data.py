import csv
import gzip
import json

import pytest

from onnxport.compare.data import read_data
from onnxport.errors import DataError


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        raw = content if isinstance(content, bytes) else content.encode("utf-8")
        path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        return path

    return write


SQUAD = {
    "data": [{"paragraphs": [{"context": "It rained.", "qas": [{"question": "What?", "answers": [{"text": "It"}, {"text": "rain"}]}]}]}]
}


def squad(question="What?", context="It rained.", answer="It"):
    return json.dumps({"data": [{"paragraphs": [{"context": context, "qas": [{"question": question, "answers": [{"text": answer}]}]}]}]})


@pytest.mark.parametrize(
    "name, content, kind, inputs, references",
    [
        ("a.tsv", "Hello.\tHallo.\nBye.\tTschüss.\n", "pairs", ["Hello.", "Bye."], ["Hallo.", "Tschüss."]),
        ("a.tsv.gz", "Hello.\tHallo.\n", "pairs", ["Hello."], ["Hallo."]),
        ("a.tsv", "\ufeffHello.\tHallo.\r\n", "pairs", ["Hello."], ["Hallo."]),
        ("a.csv", 'text,category\n"a, b",card\n', "labelled", ["a, b"], ["card"]),
        ("a.csv", "id,target,source\n1,Hallo,Hello\n", "pairs", ["Hello"], ["Hallo"]),
        (
            "a.csv",
            'question,context,answers\nWho?,"Two\nlines",Me\n',
            "questions",
            [{"question": "Who?", "context": "Two\nlines"}],
            [["Me"]],
        ),
        ("a.jsonl", '{"source": "Hello", "target": "Hallo"}\n', "pairs", ["Hello"], ["Hallo"]),
        ("a.jsonl", '{"text": "x", "label": 3}\n', "labelled", ["x"], ["3"]),
        ("a.jsonl", '{"text": "x"}\n\n{"text": "y\u2028z"}\n', "texts", ["x", "y\u2028z"], None),
        ("a.jsonl", '{"question": "Q", "context": "C", "answers": "A"}', "questions", [{"question": "Q", "context": "C"}], [["A"]]),
        (
            "a.jsonl",
            '{"question": "Q", "context": "C", "answers": {"text": ["A"]}}',
            "questions",
            [{"question": "Q", "context": "C"}],
            [["A"]],
        ),
        ("a.csv", "text\ny\u2028z\nu\x85v\n", "texts", ["y\u2028z", "u\x85v"], None),
        ("a.csv", "text\r\n" + "x" * 200_000 + "\r\n", "texts", ["x" * 200_000], None),
        ("a.tsv", "a\tb\n\nc\td\n\n", "pairs", ["a", "c"], ["b", "d"]),
        ("a.txt", "one\n\ntwo\u2028still two\n", "texts", ["one", "two\u2028still two"], None),
        ("a.json", json.dumps(SQUAD), "questions", [{"question": "What?", "context": "It rained."}], [["It", "rain"]]),
    ],
)
def test_reads_every_documented_form(write, name, content, kind, inputs, references):
    data = read_data(write(name, content))
    assert (data.kind, data.inputs, data.references) == (kind, inputs, references)


@pytest.mark.parametrize(
    "name, content, told",
    [
        ("a.tsv", "", "no rows"),
        ("a.txt", "\n \n", "no rows"),
        ("a.csv", "text,label\n", "no rows"),
        ("a.json", "", "no rows"),
        ("a.tsv", "a\tb\nalone\n", "line 2: found 1 column; expected 2"),
        ("a.tsv", "a\tb\tc\n", "line 1: found 3 columns; expected 2"),
        ("a.tsv", "a\tb\n\tc\n", "line 2: found an empty source"),
        ("a.tsv", "a\tb\nc\t \n", "line 2: found an empty reference"),
        ("a.tsv", b"good\tline\nbad\t\xff\n", "line 2: byte 0xff is not valid UTF-8"),
        ("a.csv", "text\n", "no rows"),
        ("a.csv", "text,label\nx,1,2\n", "line 2: found 3 columns; expected 2 (text, label)"),
        ("a.csv", "one,two\nx,y\n", "line 1: found one, two; expected source and target"),
        ("a.csv", 'text,label\n"open,1\n', "line 2: not valid CSV"),
        ("a.jsonl", '{"text": "x"}\n{"text": }\n', "line 2: not valid JSON"),
        ("a.jsonl", "[1]\n", "line 1: found a JSON list; expected an object"),
        ("a.jsonl", '{"body": "x"}\n', "line 1: found body; expected source and target"),
        ("a.jsonl", '{"source": "x", "target": "y"}\n{"source": "x"}\n', "line 2: found source; expected source, target"),
        ("a.jsonl", '{"text": 5}\n', "line 1: field 'text' is a int; expected a text"),
        ("a.jsonl", '{"text": "x", "label": [1]}\n', "line 1: field 'label' is a list"),
        ("a.jsonl", '{"question": "Q", "context": "C", "answers": [1]}\n', "line 1: field 'answers' is not text"),
        ("a.json", '{"data":\n[', "line 2: not valid JSON"),
        ("a.json", '{"version": 1}', "not SQuAD's layout"),
        ("a.json", '{"data": [{"paragraphs": [{"context": "c", "qas": [{"answers": []}]}]}]}', "data[0].paragraphs[0].qas[0]"),
        ("a.tsv", "a\tb\n \t \n", "line 2: found an empty source"),
        ("a.tsv", "a\tb\n  \n", "line 2: found 1 column; expected 2"),
        ("a.jsonl", '{"text": "x"}\n{"text": ' + "1" * 5000 + "}\n", "line 2: JSON that cannot be read"),
        ("a.jsonl", '{"text": ' + "[" * 100_000, "line 1: JSON that cannot be read"),
        ("a.jsonl", '{"text": "x"}\n{"text": "\\ud800"}\n', "line 2: field 'text' holds a lone surrogate U+D800"),
        ("a.jsonl", '{"text": "x", "label": "\\udfff"}\n', "line 1: field 'label' holds a lone surrogate U+DFFF"),
        ("a.jsonl", '{"question": "Q", "context": "C", "answers": ["\\ud800"]}\n', "line 1: field 'answers' holds a lone surrogate"),
        ("a.jsonl", '{"a\\nb": 1, "\\ud800": 2}\n', r"line 1: found 'a\nb', '\ud800'; expected source and target"),
        ("a.json", "[" * 100_000, "JSON that cannot be read"),
        ("a.json", squad(context=5), "data[0].paragraphs[0].qas[0]: field 'context' is a int; expected a text"),
        ("a.json", squad(question=None), "data[0].paragraphs[0].qas[0]: field 'question' is a NoneType; expected a text"),
        ("a.json", squad(answer=["It"]), "data[0].paragraphs[0].qas[0]: field 'text' is a list; expected a text"),
        ("a.json", squad(question="\ud800"), "data[0].paragraphs[0].qas[0]: field 'question' holds a lone surrogate"),
        ("a.parquet", "x", "unknown kind of data file (.parquet)"),
        ("noname", "x", "no suffix"),
    ],
)
def test_bad_data_is_refused_in_one_line_that_says_where(write, name, content, told):
    path = write(name, content)
    with pytest.raises(DataError) as caught:
        read_data(path)
    message = str(caught.value)
    assert told in message
    assert str(path) in message
    assert "\n" not in message


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_data(tmp_path / "none.tsv")


def test_a_folder_is_refused(tmp_path):
    (tmp_path / "a.tsv").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        read_data(tmp_path / "a.tsv")


def test_a_cut_off_gzip_is_refused(tmp_path):
    path = tmp_path / "a.tsv.gz"
    path.write_bytes(gzip.compress(b"a\tb\n" * 100)[:-12])
    with pytest.raises(DataError, match="not a whole gzip file"):
        read_data(path)


def test_what_is_not_gzip_is_refused(tmp_path):
    path = tmp_path / "a.tsv.gz"
    path.write_bytes(b"a\tb\n")
    with pytest.raises(DataError, match="not a whole gzip file"):
        read_data(path)


def test_limit_takes_rows_spread_over_the_file(write):
    data = read_data(write("a.txt", "\n".join(f"line {i}" for i in range(10))))
    assert data.limited(3).inputs == ["line 0", "line 3", "line 6"]
    assert data.limited(20) is data


def test_limit_keeps_inputs_and_references_together(write):
    data = read_data(write("a.tsv", "".join(f"s{i}\tr{i}\n" for i in range(10)))).limited(4)
    assert [i[1:] for i in data.inputs] == [r[1:] for r in data.references]


def test_pairs_with_one_source_are_grouped(write):
    data = read_data(write("a.tsv", "Hi.\tHallo.\nBye.\tTschüss.\nHi.\tGuten Tag.\nHi.\tHallo.\n")).grouped()
    assert data.inputs == ["Hi.", "Bye."]
    assert data.references == [["Hallo.", "Guten Tag."], ["Tschüss."]]


def test_every_row_knows_its_line(write):
    data = read_data(write("a.tsv", "Hi.\tHallo.\n\nBye.\tTschüss.\nHi.\tServus.\nNo.\tNein.\n"))
    assert data.lines == [1, 3, 4, 5]
    assert data.grouped().lines == [1, 3, 5]
    assert data.limited(2).lines == [1, 4]


def test_reading_long_fields_leaves_the_modules_limit_alone(write):
    before = csv.field_size_limit()
    read_data(write("a.csv", "text\nx\n"))
    assert csv.field_size_limit() == before
