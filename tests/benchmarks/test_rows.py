import json

import pytest
import sides
import workloads
from run import write
from table import row_text

from onnxport.compare.data import Dataset
from onnxport.compare.timing import Timed


@pytest.fixture
def bench(tmp_path):
    return workloads.Bench({}, tmp_path, tmp_path, threads=2, rounds=3, data=None, limit=None)


@pytest.fixture
def row(bench):
    timed = {
        "onnxport int8": Timed([1.0, 1.0, 2.0], [64, 64, 64]),
        "onnxport fp32": Timed([2.0, 2.0, 2.0], [64, 64, 64]),
        "ctranslate2 int8": Timed([2.0, 2.0, 2.0], [64, 64, 64]),
    }
    return workloads.make_row(bench, "fixed", "batch 2, greedy", "tokens/s", timed)


def test_ours_is_compared_with_peers_of_its_precision(row):
    assert row["sides"]["ctranslate2 int8"]["ratio"]["ratio"] == 2
    assert row["sides"]["ctranslate2 int8"]["ratio"]["low"] < 2
    assert "ratio" not in row["sides"]["onnxport int8"]


def test_the_floor_is_in_the_units_of_the_row(row):
    floor = {"step_bytes": 60e6, "bytes_per_s": 6e9, "step_s": 0.01}
    found = workloads.add_floor(row, {"onnxport int8": floor}, units_per_step=2)["sides"]["onnxport int8"]
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
            return [(9.0, 1), (abs(batch_size - 32) + 1.0, 1)]

    assert workloads.best_batching("optimum int8", Side(), ["a"], {}) == {"batch_size": 32}


def test_every_peer_has_its_requirements_and_its_adapter():
    for system in sides.SYSTEMS.keys() - {sides.OURS}:
        pins = (sides.HERE / "peers" / f"{system}.txt").read_text().splitlines()
        assert all("==" in line for line in pins if not line.startswith("#"))
        assert "class Peer" in (sides.HERE / "peers" / f"{system}.py").read_text()
