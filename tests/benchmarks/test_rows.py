import dataclasses
import json

import causal
import click
import pytest
import rows
import sides
import workloads
from run import write
from table import row_text

from onnxport.compare.data import Dataset
from onnxport.compare.measure.timing import Timed


@pytest.fixture
def bench(tmp_path):
    return rows.Bench({}, tmp_path, tmp_path, threads=2, rounds=3, data=None, limit=None)


@pytest.fixture
def row(bench):
    timed = {
        "onnxport int8": Timed([1.0, 1.0, 2.0], [64, 64, 64]),
        "onnxport fp32": Timed([2.0, 2.0, 2.0], [64, 64, 64]),
        "ctranslate2 int8": Timed([2.0, 2.0, 2.0], [64, 64, 64]),
    }
    return rows.make_row(bench, "fixed", "batch 2, greedy", "tokens/s", timed)


def test_ours_is_compared_with_peers_of_its_precision(row):
    found = row["sides"]["ctranslate2 int8"]["ratios"]
    assert list(found) == ["int8"]
    assert found["int8"]["ratio"] == 2
    assert found["int8"]["low"] < 2
    assert "ratios" not in row["sides"]["onnxport int8"]


def test_a_peer_in_blocks_is_compared_with_each_of_ours_that_is_like_it(bench):
    seconds = {"onnxport int4": 1.0, "onnxport int4-128": 0.5, "onnxport fp32": 4.0, "genai int4-32": 2.0, "llama_cpp f32": 2.0}
    timed = {name: Timed([one] * 3, [64] * 3) for name, one in seconds.items()}
    found = rows.make_row(bench, "llama", "batch 1, greedy", "tokens/s", timed)["sides"]
    assert {name: ratio["ratio"] for name, ratio in found["genai int4-32"]["ratios"].items()} == {"int4": 2}
    assert found["llama_cpp f32"]["ratios"]["fp32"]["ratio"] == 0.5
    both = rows.make_row(bench, "llama", "", "tokens/s", timed | {"ctranslate2 int8": Timed([1.0] * 3, [64] * 3)})
    assert "int4 1.00 (1.00-1.00); int4-128 2.00 (2.00-2.00)" in row_text(both)


def test_the_floor_is_in_the_units_of_the_row(row):
    floor = {"step_bytes": 60e6, "bytes_per_s": 6e9, "step_s": 0.01}
    found = rows.add_floor(row, {"onnxport int8": floor}, units_per_step=2)["sides"]["onnxport int8"]
    assert found["floor"] == pytest.approx(200)
    assert found["share_of_floor"] == pytest.approx(0.32)
    text = row_text(row)
    assert "32% of the floor (200, 60.0 MB a step at 6.0 GB/s)" in text
    assert "ours 2.00 (" in text


def test_the_floor_of_texts_takes_full_batches_for_granted(row):
    row["sides"]["onnxport int8"] |= {"tokens": 1000, "batching": {"batch_size": 10}}
    floor = {"step_bytes": 60e6, "bytes_per_s": 6e9, "step_s": 0.01}
    found = workloads.add_floor_of_texts(row, {"onnxport int8": floor}, 50)["sides"]["onnxport int8"]
    assert found["floor"] == pytest.approx(50)  # 100 steps of 10 ms for 50 texts


def test_results_are_written_in_three_forms(row, tmp_path):
    pytest.importorskip("matplotlib")
    write({"rows": [row]}, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["rows"][0]["case"] == "batch 2, greedy"
    assert "fixed: batch 2, greedy, 2 threads, tokens/s" in (tmp_path / "results.txt").read_text()
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")


def test_long_texts_are_joined_neighbours_with_their_first_references():
    data = Dataset("x", "pairs", ["a b", "c d", "e f", "g h", "i"], [["A"], ["B", "Z"], ["C"], ["D"], ["E"]], [1, 2, 3, 4, 5])
    found = workloads.longer(data, least_words=4)
    assert found.inputs == ["a b c d", "e f g h"]
    assert found.references == [["A B"], ["C D"]]


def test_source_ids_end_and_repeat():
    rows = workloads.source_ids(4)
    assert [len(row) for row in rows] == [25] * 4
    assert all(row[-1] == 0 and min(row[:-1]) >= 2 for row in rows)
    assert rows == workloads.source_ids(4)


def test_the_fastest_way_is_taken():
    class Side:
        def time(self, method, inputs, calls, batch_size, **options):
            assert method == "encode"
            return [(9.0, 1), (abs(batch_size - 32) + 1.0, 1)]

    assert rows.best_batching("optimum int8", Side(), "encode", ["a"], {}) == {"batch_size": 32}


def test_every_peer_has_its_requirements_and_its_adapter():
    for system in {name for systems in sides.SYSTEMS.values() for name in systems} - {sides.OURS}:
        pins = (sides.HERE / "peers" / f"{system}.txt").read_text().splitlines()
        assert all("==" in line for line in pins if not line.startswith("#"))
        assert "class Peer" in (sides.HERE / "peers" / f"{system}.py").read_text()


def test_sides_are_those_of_the_models_type(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    kind = sides.kind_of(tmp_path)
    assert {"genai int4-32", "llama_cpp q4_0", "onnxport int8-weight"} <= set(sides.select(kind, ()))
    assert sides.select(kind, ("onnxport mine", "genai fp32")) == ["onnxport mine", "genai fp32"]
    with pytest.raises(click.ClickException, match="'onnxruntime int8' is no side for llama"):
        sides.select(kind, ("onnxruntime int8",))
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(click.ClickException, match="'mamba', expected marian, gpt2, llama, bert"):
        sides.kind_of(tmp_path)


def test_answers_are_compared_token_by_token(bench):
    class Side:
        def __init__(self, parts):
            self.parts = parts

        def call(self, method, inputs, **options):
            tokens = [[*range(self.parts), *[7] * (causal.NEW_TOKENS - self.parts)] for _ in inputs]
            return [{"text": None, "tokens": row} for row in tokens], 1.0

    like = {"transformers fp32": Side(5), "onnxport fp32": Side(5), "onnxport int4": Side(3)}
    first = next(causal.check(dataclasses.replace(bench, clients=like)))["sides"]
    assert [first[name]["rate"] for name in like] == [1, 1, 0]
    assert first["onnxport int4"]["equal_tokens"] == [3]
    like["onnxport int4"] = Side(causal.NEW_TOKENS + 1)
    with pytest.raises(SystemExit, match=r"onnxport int4: answers of \[129\] tokens, expected exactly 128"):
        next(causal.check(dataclasses.replace(bench, clients=like)))
