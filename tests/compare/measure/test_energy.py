from pathlib import Path

import pytest

from onnxport.compare.measure import energy
from onnxport.compare.measure.timing import alternate


def zone(folder: Path, place: str, name: str, microjoules: int, most: int = 1_000_000) -> Path:
    made = folder / place
    made.mkdir(parents=True)
    for file, content in (("name", name), ("energy_uj", microjoules), ("max_energy_range_uj", most)):
        (made / file).write_text(f"{content}\n")
    return made


def test_packages_and_memory_are_counted_and_nothing_twice(tmp_path):
    package = zone(tmp_path, "intel-rapl:0", "package-0", 100)
    zone(tmp_path, "intel-rapl:0:0", "core", 50)
    memory = zone(tmp_path, "intel-rapl:0:1", "dram", 10)
    zone(tmp_path, "intel-rapl:1", "psys", 900)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 100)
    meter = energy.rapl(tmp_path)
    assert meter.source == "RAPL package-0, dram"
    for place in tmp_path.iterdir():
        (place / "energy_uj").write_text("999999")
    (package / "energy_uj").write_text("300100")
    (memory / "energy_uj").write_text("200010")
    assert meter.joules() == pytest.approx(0.5)


def test_a_counter_begins_anew(tmp_path):
    place = zone(tmp_path, "intel-rapl:0", "package-0", 900_000)
    meter = energy.rapl(tmp_path)
    for now, total in ((950_000, 0.05), (100_000, 0.2), (100_000, 0.2), (90_000, 1.19)):
        (place / "energy_uj").write_text(str(now))
        assert meter.joules() == pytest.approx(total)


def test_the_reason_is_told_where_nothing_counts(tmp_path):
    assert "holds no RAPL counters" in energy.rapl(tmp_path)
    place = zone(tmp_path, "intel-rapl:0", "package-0", 1)
    (place / "energy_uj").write_text("nothing")
    assert "cannot be read" in energy.rapl(tmp_path)
    found = energy.described(energy.rapl(tmp_path / "none"), None)
    assert found["joules_per_unit"] is None
    assert found["reason"].startswith("not measurable here: ")


def test_counters_of_root_are_told(tmp_path, monkeypatch):
    zone(tmp_path, "intel-rapl:0", "package-0", 1)
    read = Path.read_text

    def refused(path, *given, **options):
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read(path, *given, **options)

    monkeypatch.setattr(Path, "read_text", refused)
    assert "by root only" in energy.rapl(tmp_path)


def test_joules_are_of_the_side_that_ran(tmp_path):
    place = zone(tmp_path, "intel-rapl:0", "package-0", 0, most=10**9)
    meter = energy.rapl(tmp_path)

    def run(side, number):
        now = int((place / "energy_uj").read_text())
        (place / "energy_uj").write_text(str(now + side * 1_000_000))
        return 1e-3, 4

    timed = alternate({"a": 2, "b": 6, "c": 1}, run, rounds=5, meters={"a": meter, "b": meter})
    assert timed["a"].joules_per_unit == pytest.approx(0.5)
    assert timed["b"].joules_per_unit == pytest.approx(1.5)
    assert timed["c"].joules_per_unit is None
    assert energy.described(meter, timed["b"].joules_per_unit) == {"joules_per_unit": pytest.approx(1.5), "source": "RAPL package-0"}


def test_a_gpu_without_its_library_is_told(monkeypatch):
    monkeypatch.setattr(energy, "_NVML", "libno-such-library.so.9")
    assert energy.nvml() == "libno-such-library.so.9 is not installed"
