"""JSON files are read in one way; `architectures` is checked in one way."""

from pathlib import Path

import pytest

from onnxport.errors import CheckpointError
from onnxport.export.config_checks import read_json
from onnxport.export.hugging_face.config_keys import architecture_problems


def test_json_of_the_expected_kind(tmp_path: Path) -> None:
    (path := tmp_path / "a.json").write_text('{"a": [1]}')
    assert read_json(path) == {"a": [1]}
    path.write_text("[1]")
    assert read_json(path, list) == [1]


def test_floats_that_json_has_not(tmp_path: Path) -> None:
    (path := tmp_path / "a.json").write_text(
        '{"a": [0.0, {"__float__": "Infinity"}], "b": {"__float__": "x"}, "c": {"__float__": "NaN", "d": 1}}'
    )
    assert read_json(path) == {"a": [0.0, float("inf")], "b": {"__float__": "x"}, "c": {"__float__": "NaN", "d": 1}}


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (b"{", dict, "a.json is not valid JSON"),
        (b"\xff\xfe", dict, "a.json is not valid JSON"),
        (b"[" * 100_000, dict, "a.json is not valid JSON"),
        (b"1" * 5000, dict, "a.json is not valid JSON"),
        (b"[]", dict, "a.json holds a JSON list, not an object"),
        (b"{}", list, "a.json holds a JSON dict, not a list"),
        (None, dict, "a.json cannot be read: No such file"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, data: bytes | None, kind: type, message: str) -> None:
    if data is not None:
        (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        read_json(tmp_path / "a.json", kind)


def test_architectures() -> None:
    for known in ({}, {"architectures": None}, {"architectures": ["B"]}):
        assert architecture_problems(known, {"A": 1, "B": 2}) == []
    for wrong in ("A", [], ["C"], ["A", "B"], [["A"]]):
        assert architecture_problems({"architectures": wrong}, ["A", "B"]) == [f"architectures is {wrong!r}, expected one of A, B"]
