"""Every task with real, tiny bundles: what is measured of each, and how it is told."""

import json
import shutil

import numpy as np
import pytest

from onnxport.compare import compare
from onnxport.compare.measure import measurement
from onnxport.compare.protocol.bundle_side import BundleSide
from onnxport.compare.workload import workload
from onnxport.errors import DataError, TextError, UsageError
from onnxport.runtime import load
from onnxport.runtime.bundle.reader import Bundle
from onnxport.runtime.bundle.writer import extended_bundle
from support import tiny_bundles as tiny
from support import tiny_encoder

TEXTS = ["the cat sat", "a dog, by the door", "who knows what it is?", "no", "all of it went by so fast that no one saw it", "yes it is so"]
LABELS = ["calm", "glad", "sad"]
WIDTHS = {"classification": 3, "question-answering": 2, "embedding": 16}


def added(bundle, name, file):
    """The variant `name`: the default's, with `file` in place of its graph."""
    with extended_bundle(bundle) as staging:
        plain = staging.manifest["variants"]["fp32"]
        role = next(iter(plain["graphs"])) if len(plain["graphs"]) == 1 else "decoder"
        (staging.path / name).mkdir()
        shutil.copyfile(file, staging.path / name / "graph.onnx")
        graphs = plain["graphs"] | {role: f"{name}/graph.onnx"}
        staging.manifest["variants"][name] = plain | {"files": sorted(graphs.values()), "graphs": graphs}
    return bundle


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """task -> a bundle with the variants fp32 and int8; int8's table is a little off."""
    found = {}

    def get(task):
        if task not in found:
            folder = tmp_path_factory.mktemp(task)
            if task == "text-generation":
                bundle = tiny.write_bundle(folder / "b", tiny.TinyModel("causal", seed=1))
                other = tiny.TinyModel("causal", seed=1)
                other.w["head"] = other.w["head"] * np.float32(1.1)
                tiny.decoder(other, folder / "graph.onnx")
                found[task] = added(bundle, "int8", folder / "graph.onnx")
            else:
                rows = tiny_encoder.table(WIDTHS[task])
                encoding = {"labels": LABELS} if task == "classification" else {}
                bundle = tiny_encoder.write(folder / "b", task, rows, **encoding)
                noise = np.random.default_rng(1).normal(size=rows.shape).astype(np.float32) * 0.3
                other = tiny_encoder.write(folder / "other", task, rows + noise, **encoding)
                found[task] = added(bundle, "int8", other / "encoder.onnx")
        return found[task]

    return get


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, value in (("LAUNCHES", 1), ("_ROUNDS", 3), ("_LATENCY_ROUNDS", 3), ("_BUDGET_S", 0.1)):
        monkeypatch.setattr(measurement, name, value)


def run(bundle, data, **options):
    return compare(bundle, data, batches=(2,), threads=1, **options)


def test_labels(made, tmp_path):
    with load(made("classification"), threads=1) as model:
        ours = [one.label for one in model.classify(TEXTS)]
    data = tmp_path / "a.csv"
    data.write_text("text,label\n" + "".join(f'"{text}",{label}\n' for text, label in zip(TEXTS[:5], ours, strict=False)) + "yes,nothing\n")
    gates = ["accuracy_drop<=1", "accuracy_drop_ci.low<=0", "agreement>=0", "fp32.accuracy>=0.8", "fp32.accuracy<=0.9"]
    report = run(made("classification"), data, gates=gates)
    assert report.passed, report.gates
    fp32, int8 = report.variants["fp32"], report.variants["int8"]
    assert fp32["accuracy"] == pytest.approx(5 / 6)
    assert 0 < fp32["macro_f1"] < 1
    assert int8.keys() >= {"accuracy_drop", "accuracy_drop_ci", "macro_f1_drop_ci", "agreement", "energy"}
    assert int8["accuracy_drop_ci"]["n"] == 6
    assert report.method["unit"] == "items/s"
    assert "accuracy" in report.verdict["int8"]


def test_labels_that_the_model_does_not_know_are_refused(made, tmp_path):
    data = tmp_path / "a.csv"
    data.write_text("text,label\n" + "".join(f'"{text}",{i}\n' for i, text in enumerate(TEXTS)))
    with pytest.raises(DataError, match="none of its labels"):
        run(made("classification"), data, gates=["accuracy_drop<=1"])


def test_pairs_with_labels(made, tmp_path):
    data = tmp_path / "a.jsonl"
    data.write_text("".join(json.dumps({"text": text, "pair": "a dog", "label": "glad"}) + "\n" for text in TEXTS))
    report = run(made("classification"), data, precisions=["fp32"])
    with load(made("classification"), threads=1) as model:
        wanted = [one.label == "glad" for one in model.classify([(text, "a dog") for text in TEXTS])]
        assert wanted != [one.label == "glad" for one in model.classify(TEXTS)]
    assert report.variants["fp32"]["accuracy"] == pytest.approx(np.mean(wanted))


def test_answers(made, tmp_path):
    context = "my cat sat on this mat, and her dog lay by that door."
    asked = [{"question": question, "context": context} for question in ("who sat?", "what lay by it?", "where?")]
    side = BundleSide(str(made("question-answering")), "fp32", threads=1)
    side.load()
    (answer,) = {one["answer"] for one in side.answer(asked)}  # a table knows nothing of questions
    data = tmp_path / "a.jsonl"
    accepted = ([answer.upper()], ["none of it", f"the {answer}!"], ["zzz"])
    data.write_text("".join(json.dumps(a | {"answers": g}) + "\n" for a, g in zip(asked, accepted, strict=True)))
    report = run(made("question-answering"), data)
    assert report.variants["fp32"]["exact_match"] == report.variants["fp32"]["f1"] == pytest.approx(2 / 3)
    assert report.variants["int8"].keys() >= {"exact_match_drop_ci", "f1_drop", "agreement"}
    (tmp_path / "a.txt").write_text("a\n")
    with pytest.raises(DataError, match="holds texts, but a bundle for question-answering takes questions"):
        run(made("question-answering"), tmp_path / "a.txt")


def test_questions_without_an_answer_may_have_none(made, tmp_path):
    data = tmp_path / "a.jsonl"
    rows = [{"question": "who?", "context": "the cat sat", "answers": answers} for answers in (["the cat"], [])]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    opened = Bundle.open(made("question-answering"))
    assert workload(opened, data, None).natural == {"no_answer": True}
    assert workload(opened, data, 1).natural == {}


@pytest.mark.parametrize("task, kind", [("question-answering", "questions"), ("classification", "sentences")])
def test_without_data_there_are_built_in_texts(made, task, kind):
    report = run(made(task), None, precisions=["int8"])
    assert report.data["name"] == f"built-in {kind}"
    assert 0 <= report.variants["int8"]["agreement"] <= 1
    assert "nothing is known of the quality" in report.notes[0]


def test_a_regression_has_values_not_labels(tmp_path):
    bundle = tiny_encoder.write(tmp_path / "b", "classification", tiny_encoder.table(1), problem="regression", labels=["score"])
    (tmp_path / "a.csv").write_text("text,label\na,1\n")
    with pytest.raises(DataError, match="takes rankings$"):
        workload(Bundle.open(bundle), tmp_path / "a.csv", None)


def test_retrieval(made, tmp_path):
    paragraphs = [{"context": text, "qas": [{"question": text, "answers": []}, {"question": "zzz", "answers": []}]} for text in TEXTS]
    data = tmp_path / "squad.json"
    data.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    report = run(made("embedding"), data)
    fp32, int8 = report.variants["fp32"], report.variants["int8"]
    assert fp32["recall_at_1"] == pytest.approx((6 + 1) / 12)  # "zzz" is nearest to one of the six
    assert fp32["recall_at_10"] == fp32["cosine"] == 1
    assert 0.8 < int8["cosine"] < 1
    assert int8["cosine_drop"] == pytest.approx(1 - int8["cosine"])
    assert int8.keys() >= {"recall_at_1_drop_ci", "cosine_drop_ci"}
    work = workload(Bundle.open(made("embedding")), data, 2)
    assert work.inputs == [TEXTS[0], TEXTS[3]]
    assert (work.extra_request.inputs, work.passage_of) == (TEXTS, [0, 3])  # all of the data's passages, whatever the limit


def test_pairs_that_are_encoded_are_not_told_of_as_translated(made, tmp_path):
    (tmp_path / "a.tsv").write_text("a cat\tein Hund\nb\tc\n")
    report = run(made("embedding"), tmp_path / "a.tsv", precisions=["fp32"])
    assert "bleu" not in report.method and "signatures" not in report.method


def test_texts_alone_are_encoded_and_labels_not_needed(made, tmp_path):
    (tmp_path / "a.csv").write_text('text,label\n"a, b",x\nc,y\n')
    report = run(made("embedding"), tmp_path / "a.csv", gates=["cosine_drop_ci.high<=0.5", "recall_at_1>=0"])
    assert [gate["passed"] for gate in report.gates] == [True, False]


def test_perplexity(made, tmp_path):
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in rng.integers(4, tiny.VOCABULARY, size)) for size in (120, 5, 1, 30)]
    data = tmp_path / "a.txt"
    data.write_text("\n".join(texts))
    report = run(made("text-generation"), data, max_new_tokens=4, gates=["perplexity_drop>=-1000"])
    assert report.passed
    with load(made("text-generation"), threads=1) as model:
        assert report.variants["fp32"]["perplexity"] == pytest.approx(model.perplexity(texts, window=48, stride=24), rel=1e-6)
        assert report.variants["fp32"]["perplexity"] != pytest.approx(model.perplexity(texts, window=48, stride=12), rel=1e-3)
    assert report.variants["int8"]["perplexity_drop"] > 0  # sharper, and as wrong
    assert report.variants["int8"]["perplexity_drop_ci"]["n"] == report.data["count"] == 4
    assert report.variants["int8"]["throughput"] > 0
    assert "windows of 48 tokens every 24" in report.method["perplexity"]
    prompts = workload(Bundle.open(made("text-generation")), data, None).inputs
    assert [len(one.split()) for one in prompts] == [16, 5, 1, 16]  # half the positions, room for special tokens
    assert texts[0].startswith(prompts[0])


def test_a_text_that_cannot_be_scored_is_told_by_its_line(made, tmp_path, monkeypatch):
    data = tmp_path / "a.txt"
    data.write_text("w5 w6\n\nw7 bad\n")

    def refuse(client, method, inputs, **options):
        if method == "likelihoods" and "w7 bad" in inputs:
            raise TextError("side: cannot be scored")
        return plain(client, method, inputs, **options)

    plain = measurement.Client.call
    monkeypatch.setattr(measurement.Client, "call", refuse)
    with pytest.raises(TextError, match=r"^a\.txt: line 3: side: cannot be scored"):
        run(made("text-generation"), data, precisions=["fp32"], max_new_tokens=2)


def test_two_bundles_side_by_side(made, tmp_path):
    data = tmp_path / "a.txt"
    data.write_text("\n".join(TEXTS))
    one = made("embedding")
    report = run(one, data, others=[one, one], precisions=["tiny-3/int8", "fp32"], gates=["tiny-2/fp32.cosine>=0.9999"])
    assert list(report.variants) == ["fp32", "tiny-2/fp32", "tiny-3/fp32", "tiny-3/int8"]
    assert report.reference == "fp32"
    assert report.passed
    assert report.variants["tiny-3/int8"]["cosine"] < 1
    with pytest.raises(UsageError, match="the bundles have no variant 'int4'; they hold fp32, int8, tiny-2/fp32, tiny-2/int8"):
        compare(one, others=[one], precisions=["int4"])


def test_bundles_of_two_tasks_do_not_compare(made):
    with pytest.raises(UsageError, match=r"is for question-answering, .* for classification; compare bundles of one task"):
        compare(made("classification"), others=[made("question-answering")])
