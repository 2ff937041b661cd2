import json

import numpy as np
import pytest

from onnxport.compare import compare, comparison, notes, read_data
from onnxport.compare.measure import measurement
from onnxport.compare.protocol.bundle_side import BundleSide
from onnxport.compare.protocol.client import Client
from onnxport.compare.workload import workload
from onnxport.errors import BundleError, DataError, OutputError, TextError, UsageError
from onnxport.runtime.bundle.reader import Bundle
from support import tiny_bundles
from support.compare_samples import SIZES, write_bundle
from support.paths import TESTS

SPEC = comparison._spec
SENTENCES = ["it is late", "the sun is very bright today", "a man walks home", "we know nothing about them", "old dogs sleep long hours"]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "test.tsv"
    path.write_text("".join(f"{s} {i}\t{i} {' '.join(s.split()[::-1])}\n" for i in range(4) for s in SENTENCES))
    return path


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "bundle")


@pytest.fixture
def fakes(monkeypatch):
    """Puts fake sides in the place of the bundle's variants; returns their options, by variant."""
    options = {"fp32": {}, "fp16": {"delay": 0.004}, "int8": {"wrong": 5}, "pytorch": {"delay": 0.002}}
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setattr(measurement, "LAUNCHES", 1)
    monkeypatch.setattr(measurement, "_ROUNDS", 5)
    monkeypatch.setitem(measurement._DECIDING, "rounds", 10)
    monkeypatch.setitem(measurement._DECIDING, "least", 8)
    monkeypatch.setattr(measurement, "_LATENCY_ROUNDS", 5)

    def spec(opened, name, device, source, threads):
        given = dict(options[name])
        return {
            "kind": "class",
            "class": f"support.fake_sides:{given.pop('class', 'Echo')}",
            "options": {"size_bytes": SIZES.get(name, 50_000_000), **given},
        }

    monkeypatch.setattr(comparison, "_spec", spec)
    return options


def test_a_bundle_that_is_replaced_meanwhile_is_measured_anew(bundle, data, fakes, tmp_path, monkeypatch):
    real, calls, stages = measurement.measured, [], []

    def measured(*arguments):
        calls.append(1)
        if len(calls) == 1:
            manifest = json.loads((bundle / "bundle.json").read_text())
            (bundle / "bundle.json").write_text(json.dumps(manifest | {"name": "the new one"}))
            raise BundleError("a file is missing")
        return real(*arguments)

    monkeypatch.setattr(measurement, "measured", measured)
    report = compare(bundle, data, ["fp32", "int8"], out=tmp_path / "out", batches=(1,), progress=stages.append)
    assert report.bundle == "the new one" == json.loads((tmp_path / "out" / "report.json").read_text())["bundle"]
    assert len(calls) == 2 and any("was replaced while it was measured" in stage for stage in stages)


def test_a_whole_comparison(bundle, data, fakes, tmp_path):
    stages = []
    gates = ["int8.bleu_drop>0", "fp16.speedup<1", "fp16.agreement==1", "accuracy>=1"]
    report = compare(bundle, data, out=tmp_path / "out", gates=gates, batches=(1, 4), progress=stages.append)
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    assert content == report.as_dict()
    assert content["reference"] == "fp32"
    assert [gate["passed"] for gate in content["gates"]] == [True, True, True, False]
    for name, values in content["variants"].items():
        assert values["size_bytes"] == SIZES[name]
        assert values["size_ratio"] == SIZES[name] / SIZES["fp32"]
        for field in (
            "device",
            "load_ms",
            "first_output_ms",
            "throughput",
            "speedup",
            "peak_rss_bytes",
            "max_abs_diff",
            "agreement",
            "bleu",
            "chrf",
            "exact_match",
        ):
            assert field in values, (name, field)
        assert values["latency_ms"]["p50"] <= values["latency_ms"]["p90"] <= values["latency_ms"]["p99"]
        assert values["throughput"] == values["throughput_by_batch"]["1"]
        assert values["speedup_ci"]["low"] <= values["speedup"] <= values["speedup_ci"]["high"]
        assert values["speed_against"].keys() == content["variants"].keys() - {name}
        assert values["first_output_ms"] > values["load_ms"]
    fp32, int8 = content["variants"]["fp32"], content["variants"]["int8"]
    assert (fp32["bleu"], fp32["speedup"], fp32["agreement"], fp32["bleu_drop"]) == (pytest.approx(100), 1, 1, 0)
    assert 0 < int8["agreement"] < 1
    assert int8["bleu_drop"] == pytest.approx(100 - int8["bleu"])
    assert len(content["examples"]["int8"]) == round((1 - int8["agreement"]) * 20)
    assert content["machine"]["versions"]["fake"] == "1.0"
    assert "tok:13a" in content["method"]["signatures"]["bleu"]
    assert any("Only 20 inputs" in note for note in content["notes"])
    assert stages[-1] == "writing the report"


def test_the_original_becomes_the_reference(bundle, data, fakes):
    report = compare(bundle, data, ["fp16"], source="somewhere", batches=(2,))
    assert report.reference == "pytorch"
    assert list(report.variants) == ["pytorch", "fp16"]
    assert report.variants["fp16"]["size_ratio"] == 15 / 50


def test_a_slow_start_is_not_repeated(bundle, data, fakes, monkeypatch):
    monkeypatch.setattr(measurement, "LAUNCHES", 2)
    monkeypatch.setattr(measurement, "_SLOW_START_MS", 0.0)
    asked = []
    monkeypatch.setattr(measurement, "Client", lambda name, *given, **options: asked.append(name) or Client(name, *given, **options))
    assert compare(bundle, data, ["fp32", "int8"], batches=(1,), limit=2).variants["int8"]["load_ms"] >= 0
    assert asked == ["fp32", "int8"]


def test_every_side_is_started_several_times_and_left_running_once(bundle, data, fakes, monkeypatch):
    monkeypatch.setattr(measurement, "LAUNCHES", 2)
    asked = []
    monkeypatch.setattr(measurement, "Client", lambda name, *given, **options: asked.append(name) or Client(name, *given, **options))
    compare(bundle, data, ["fp32", "int8"], batches=(1,), limit=2)
    assert asked == ["fp32", "int8"] * 2


def test_a_reference_that_was_left_out_is_measured_all_the_same(bundle, data, fakes):
    assert list(compare(bundle, data, ["int8"], batches=(1,), limit=2).variants) == ["fp32", "int8"]


def test_without_data_there_is_agreement_but_no_quality(bundle, fakes):
    report = compare(bundle, precisions=["fp16"], batches=(1,), gates=["bleu_drop<=1"])
    assert report.variants["fp16"]["agreement"] == 1
    assert "bleu" not in report.variants["fp16"]
    assert not report.passed
    assert "nothing is known of the quality" in report.notes[0]


def test_arrays_are_compared_on_golden_inputs(tmp_path, fakes):
    folder = tmp_path / "tensor"
    folder.mkdir()
    np.savez(
        folder / "golden.npz",
        **{"a/in/x": np.ones((3, 2), np.float32), "a/out/y": np.ones((3, 2), np.float32), "b/in/x": np.ones((1, 2), np.float32)},
    )
    report = compare(write_bundle(folder, "tensor", tokenizer=False, golden="golden.npz"), precisions=["int8"], out=tmp_path / "out")
    assert report.method["unit"] == "calls/s"
    assert report.variants["int8"]["throughput_by_batch"].keys() == {"1"}
    assert "Golden inputs" in (tmp_path / "out" / "report.html").read_text()
    assert report.variants["int8"]["max_abs_diff"] > 0
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    assert content["variants"]["int8"]["agreement"] is None
    assert content["variants"]["fp32"]["agreement"] is None
    assert content["recommended"] == "fp32"  # nothing tells whether the other is right
    assert "quality and agreement not measured" in content["verdict"]["int8"]


def test_a_gate_on_what_is_null_fails(tmp_path, fakes):
    np.savez(tmp_path / "golden.npz", **{"a/in/x": np.ones((3, 2), np.float32)})
    report = compare(write_bundle(tmp_path, "tensor", tokenizer=False, golden="golden.npz"), precisions=["int8"], gates=["agreement>=0"])
    assert not report.passed


def test_golden_ids_serve_a_bundle_without_tokenizer(tmp_path):
    ids, mask = np.array([[5, 6, 7], [8, 9, 0]]), np.array([[1, 1, 1], [1, 1, 0]], np.int32)
    np.savez(
        tmp_path / "golden.npz",
        **{"seq0/source_ids": ids, "seq0/source_mask": mask, "seq0/target_ids": ids, "c/input_ids": ids, "c/lengths": np.array([1, 2])},
    )
    opened = Bundle.open(write_bundle(tmp_path, tokenizer=False, golden="golden.npz"))
    assert workload(opened, None, None).inputs == [[5], [8, 9], [5, 6, 7], [8, 9]]


@pytest.mark.parametrize("task", ["embedding", "classification", "question-answering"])
def test_a_bundle_that_cannot_read_texts_is_run_on_its_golden_arrays(tmp_path, fakes, task):
    np.savez(tmp_path / "golden.npz", **{"a/in/input_ids": np.ones((1, 4), np.int64), "a/out/last_hidden_state": np.ones((1, 4, 2))})
    report = compare(write_bundle(tmp_path, task, tokenizer=False, golden="golden.npz"), precisions=["int8"])
    assert report.method["unit"] == "calls/s"
    assert not any("--data" in note for note in report.notes)
    assert "quality on other data is not known" in report.notes[0]


def _whole(path):
    np.savez_compressed(path, **{"seq0/source_ids": np.arange(4000).reshape(40, 100), "seq0/source_mask": np.ones((40, 100), np.int32)})


def _cut(path):
    _whole(path)
    path.write_bytes(path.read_bytes()[:-40])


def _bent(path):
    _whole(path)
    raw = bytearray(path.read_bytes())
    raw[200:260] = bytes(60)
    path.write_bytes(raw)


def _single(path):
    with path.open("wb") as file:
        np.save(file, np.ones(3))


@pytest.mark.parametrize(
    "make",
    [
        _cut,
        _bent,
        _single,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no archive at all"),
        lambda path: np.savez(path, **{"seq0/source_ids": np.ones(3, np.int64)}),
        lambda path: np.savez(path, **{"seq0/source_ids": np.ones((2, 3), np.int64), "seq0/source_mask": np.ones((1, 3), np.int32)}),
        lambda path: np.savez(path, **{"seq0/source_ids": np.array([["a"]])}),
        lambda path: np.savez(path, **{"seq0/source_ids": np.array([[object()]])}),
    ],
)
def test_golden_inputs_that_cannot_be_read_are_refused(tmp_path, make):
    make(tmp_path / "golden.npz")
    opened = Bundle.open(write_bundle(tmp_path, tokenizer=False, golden="golden.npz"))
    with pytest.raises(BundleError, match=r"(not a readable \.npz|inputs that do not fit) .*; export the model again$"):
        workload(opened, None, None)


def test_generation_stays_within_the_models_positions(bundle):
    work = workload(Bundle.open(bundle), None, None, max_new_tokens=500)
    assert work.natural["max_new_tokens"] == 63
    assert work.fixed["min_new_tokens"] == work.fixed["max_new_tokens"] == 32


def test_batches_are_spread_over_the_data(bundle, tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"{i}\n" for i in range(100)))
    work = workload(Bundle.open(bundle), path, None)
    batches = work.batches(4, 5)
    assert [len(batch) for batch in batches] == [4] * 5
    assert len({row for batch in batches for row in batch}) == 20
    assert all(int(batch[0]) < 25 and int(batch[3]) >= 75 for batch in batches)
    assert len(work.batches(300, 5)) == 1
    assert len(work.batches(300, 5)[0]) == 300


def test_a_baseline_is_a_gate(bundle, data, fakes, tmp_path):
    compare(bundle, data, ["fp32", "int8"], batches=(1,), limit=5, out=tmp_path / "old")
    fakes["int8"]["wrong"] = 2
    gates = ["int8.speedup_change>=-0.9", "bleu_change>=-0.2", "int8.bleu_drop_change<=0", "latency_ms_p50_change<=100"]
    report = compare(bundle, data, ["fp32", "int8"], batches=(1,), limit=5, baseline=tmp_path / "old", gates=gates, out=tmp_path / "new")
    assert [gate["passed"] for gate in report.gates] == [True, False, False, True]
    assert "was not measured" in report.gates[2]["message"]
    int8 = report.variants["int8"]
    assert int8["bleu_change"] == int8["change"]["bleu"] < -1
    assert not any("baseline" in note for note in report.notes)
    assert (tmp_path / "new" / "report.xml").exists()
    assert not (tmp_path / "old" / "report.xml").exists()
    other = compare(bundle, data, ["int8"], batches=(1,), limit=4, baseline=tmp_path / "old" / "report.json")
    assert any("number of inputs 5, here 4" in note for note in other.notes)


def test_a_variant_for_which_another_guesses_is_a_side_of_its_own(bundle, data, fakes):
    opened = Bundle.open(bundle)
    spec = SPEC(opened, "fp32+int8", "cpu", None, 1)
    assert (spec["precision"], spec["draft"]) == ("fp32", "int8") and "draft" not in SPEC(opened, "fp32", "cpu", None, 1)
    fakes["fp32+int8"] = {"class": "Guessing"}
    gates = ["fp32+int8.agreement>=1", "fp32+int8.tokens_per_pass>=1.5", "fp32+int8.acceptance>0.5"]
    report = compare(bundle, data, ["fp32", "fp32+int8"], batches=(1,), limit=4, gates=gates)
    assert list(report.variants) == ["fp32", "fp32+int8"] and [gate["passed"] for gate in report.gates] == [True, True, False]
    (note,) = (one for one in report.notes if "a pass" in one)
    assert note == "fp32+int8: 2.00 tokens a pass of the checking variant; 50% of the draft's guesses came true."
    assert "tokens_per_pass" not in report.variants["fp32"]
    with pytest.raises(UsageError, match="no variant 'fp32\\+int3'"):
        compare(bundle, data, ["fp32+int3"])


def test_a_draft_that_guesses_nothing_is_told_with_its_reason():
    silent = {"tokens_per_pass": 1.0, "acceptance": None}
    assert notes._guesses(silent, 1) == "the draft guessed nothing: on this machine guesses promised no gain"
    assert notes._guesses(silent, 4) == "the draft guessed nothing: 4 beams are not guessed for; give --beam 1"


def test_a_side_with_a_draft_tells_what_it_guessed(tmp_path, monkeypatch):
    side = BundleSide(str(tiny_bundles.write_bundle(tmp_path / "tiny", tiny_bundles.TinyModel("causal", 1))), "fp32", draft="fp32")
    side.load()
    monkeypatch.setattr(side.model.engine.pass_costs, "needs_plain", lambda rows: False)
    monkeypatch.setattr(side.model.engine.pass_costs, "seconds", lambda rows, width: 1.0 + 1e-9 * width)
    for answer in side.generate([[5, 9, 7], [8, 8]], batch_size=1, min_new_tokens=20, max_new_tokens=24):
        assert answer["made"] - len(answer["tokens"]) in (0, 1)
        assert answer["guessed"] >= answer["accepted"] > 0 and 0 < answer["passes"] < answer["made"]
    alone = BundleSide(side.path, "fp32")
    alone.load()
    assert set(alone.generate([[5, 9, 7]])[0]) == {"text", "tokens", "score"}


def test_an_unknown_variant_is_wrong_usage(bundle, data):
    with pytest.raises(UsageError, match=r"no variant 'int88'; it holds fp32, fp16, int8; did you mean int8\?"):
        compare(bundle, data, ["int88"])


@pytest.mark.parametrize("gate", ["int4.speedup>=1", "comet>=1", "int8.bleu_dorp<=1", "speedup_change>=0"])
@pytest.mark.parametrize("option", ["gates", "tolerances"])
def test_a_gate_that_names_nothing_is_refused_before_anything_is_measured(bundle, data, gate, option):
    stages = []
    with pytest.raises(UsageError, match="of this comparison; |--baseline") as caught:
        compare(bundle, data, progress=stages.append, **{option: [gate]})
    assert (caught.value.exit_code, stages) == (2, [])


def test_a_tolerance_is_on_quality(bundle, data):
    with pytest.raises(UsageError, match=r"--tolerance speedup>=2: is not about quality"):
        compare(bundle, data, tolerances=["speedup>=2"])


def test_verdicts_follow_what_is_accepted(bundle, data, fakes, tmp_path):
    fakes["fp32"] = {"delay": 0.01}
    fakes["fp16"] = {"delay": 0.01}

    def recommended(**given):
        report = compare(bundle, data, ["fp32", "int8"], batches=(1,), limit=10, **given)
        return report.recommended, report.method["accepted"], report.passed

    assert recommended() == ("fp32", [], True)
    assert recommended(tolerances=["bleu_drop<=100"]) == ("int8", ["bleu_drop<=100"], True)
    assert recommended(gates=["bleu_drop<=100", "speedup>=0.1"]) == ("int8", ["bleu_drop<=100"], True)
    assert recommended(tolerances=["bleu_drop<=100"], gates=["bleu_drop<=0"]) == ("fp32", ["bleu_drop<=100", "bleu_drop<=0"], False)


def test_parts_of_long_stages_are_counted(bundle, data, fakes):
    stages = []
    compare(bundle, data, ["fp32", "int8"], batches=(1, 4), limit=10, progress=stages.append)
    assert [stage for stage in stages if stage.startswith("answering")] == [f"answering inputs ({i} of 10)" for i in (0, 4, 8)]
    assert "timing rounds of batches of 1 (0 of 10)" in stages
    assert "timing rounds of batches of 4 (4 of 5)" in stages
    assert any(stage.startswith("timing rounds of single inputs (1 of ") for stage in stages)


def test_a_bad_gate_is_told_before_anything_is_measured(bundle, data):
    with pytest.raises(UsageError, match="is not a gate"):
        compare(bundle, data, gates=["fast"])


@pytest.mark.parametrize("batches", [(), (0,), (1, -2)])
def test_bad_batch_sizes_are_wrong_usage(bundle, data, batches):
    with pytest.raises(UsageError, match="expected sizes from 1"):
        compare(bundle, data, batches=batches)


def test_data_of_another_task_is_refused(bundle, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x", "label": "y"}\n')
    assert read_data(path).kind == "labelled"
    with pytest.raises(DataError, match="holds labelled texts, but a bundle for translation takes pairs or texts"):
        compare(bundle, path)


def test_texts_for_a_bundle_without_tokenizer_are_refused(tmp_path, data):
    folder = write_bundle(tmp_path / "bare", tokenizer=False)
    with pytest.raises(DataError, match="no tokenizer"):
        compare(folder, data)
    with pytest.raises(BundleError, match="neither a tokenizer nor golden inputs"):
        compare(folder)


def test_an_existing_report_is_refused_before_anything_is_measured(bundle, data, tmp_path):
    (tmp_path / "report.md").write_text("")
    with pytest.raises(OutputError, match=r"report\.md already"):
        compare(bundle, data, out=tmp_path)


def test_a_place_that_cannot_be_written_is_told_before_anything_is_measured(bundle, data, tmp_path):
    (tmp_path / "file").write_text("")
    stages = []
    with pytest.raises(OutputError, match="cannot be written") as caught:
        compare(bundle, data, out=tmp_path / "file" / "out", progress=stages.append)
    assert caught.value.exit_code == 6
    assert stages == []


def test_the_report_says_what_bleu_was_measured_on(bundle, tmp_path, fakes):
    path = tmp_path / "a.tsv"
    path.write_text("a b c d\td c b a\na b c d\tsomething else\ne f g h\th g f e\n")
    report = compare(bundle, path, ["fp32"], out=tmp_path / "out")
    told = "3 rows, 2 sources measured; BLEU against all references of a source"
    assert report.method["bleu"] == told
    assert (report.data["rows"], report.data["count"]) == (3, 2)
    assert report.variants["fp32"]["bleu"] == pytest.approx(100)
    assert told in (tmp_path / "out" / "report.md").read_text()
    assert told in (tmp_path / "out" / "report.html").read_text()


def test_a_refused_text_is_told_by_its_line(bundle, tmp_path, fakes):
    path = tmp_path / "a.txt"
    path.write_text("fine\n\nfine too\nrefuse\n")
    fakes["int8"] = {"class": "Faulty"}
    with pytest.raises(TextError, match=r"^a\.txt: line 4: int8: the text is too long"):
        compare(bundle, path, batches=(8,))


def test_a_side_that_refuses_an_input_ends_the_comparison_and_writes_nothing(bundle, tmp_path, fakes):
    path = tmp_path / "a.txt"
    path.write_text("refuse\n")
    fakes["int8"] = {"class": "Faulty"}
    with pytest.raises(TextError, match="too long"):
        compare(bundle, path, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
