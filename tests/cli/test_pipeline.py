"""The `pipeline` command: a file that is wrong is refused whole, one that is right does what its commands do."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

import onnxport.build
import onnxport.compare
from onnxport.cli import pipeline
from onnxport.errors import GateError
from onnxport.runtime.bundle.reader import Bundle
from support.commands import assert_refused, invoke
from support.paths import ROOT

WHOLE = """
source = "model"
bundle = "out/b"

[export]
precision = ["int8", "fp32"]
threads = 2
allow-pickle = true
keep-going = false

[[quantize]]
precision = "fp16"

[[quantize]]
precision = "int8"
target = "cuda"

[compare]
data = "-data.tsv"
source = true
batch = [1, 4]
gate = ["int8.bleu_drop<=0.5", "agreement>=0.9"]
tolerance = "bleu_drop<=1"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a source and data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "-data.tsv").write_text("a\tb\n")
    return tmp_path


def given(text: str, *arguments: Any) -> Any:
    Path("p.toml").write_text(text)
    return invoke("pipeline", "p.toml", *arguments)


def test_all_that_is_wrong_in_a_file_is_told_at_once(folder: Path) -> None:
    text = (
        'sorce = "x"\nbundle = ""\n[export]\nprecison = ["fp32"]\nthreads = "two"\nallow-pickle = 1\nout = "x"\n'
        '[[quantize]]\n[[quantize]]\nprecision = 8\n[compare]\nbatch = [1, 0]\ngate = [""]\ndevice = "gpu"\njson = true\n'
    )
    words = (
        "sorce is no key; did you mean source?", "bundle: expected", "source is missing",
        "export.precison is no key; did you mean precision?", "export.threads: expected a whole number, found 'two'",
        "export.allow-pickle: expected true or false, found 1", "export.out is no key",
        "quantize[0].precision is missing", "quantize[1].precision: expected a text", "compare.batch: expected whole numbers from 1",
        "compare.gate: expected a text", "what others call gpu is cuda here", "compare.json is no key",
    )  # fmt: skip
    assert_refused(given(text), 2, *words)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a = [", "not valid TOML"),
        ("", "nothing to do"),
        ('bundle = "b"\ncompare = 1', "compare: expected a table"),
        (None, "nowhere.toml"),
    ],
)
def test_files_that_are_no_pipeline_are_refused(folder: Path, text: str | None, word: str) -> None:
    assert_refused(invoke("pipeline", "nowhere.toml") if text is None else given(text), 2, word)


def test_what_would_be_told_late_is_told_before_any_work(bundle: Bundle, folder: Path) -> None:
    text = (
        f'source = "nowhere"\nbundle = "{bundle.path}"\n[export]\ncalibrate = "nothing.tsv"\n'
        '[[quantize]]\nprecision = "int4-gptq"\nplan = "no.json"\n'
        '[compare]\ndata = "gone.tsv"\nbaseline = "old"\nwith = "other"\ngate = "int9.speed>=1"\ntolerance = "speedup>=1"\n'
    )
    words = (
        "source: nowhere does not exist",
        "bundle:",
        "--force",
        "export.calibrate: nothing.tsv",
        "quantize.plan: no.json",
        "compare.data: gone.tsv",
    )
    assert_refused(given(text), 2, *words, "compare.baseline: old", "compare.with: other", "int9.speed", "is not about quality")


def test_what_is_refused_for_its_content_keeps_its_exit_code(bundle: Bundle, folder: Path) -> None:
    assert_refused(given(f'bundle = "{bundle.path}"\n[compare]\ndata = "gone.tsv"'), 4, "compare.data: gone.tsv")
    assert_refused(given(f'bundle = "{bundle.path}"\n[[quantize]]\nprecision = "int8"'), 6, "--force")
    assert_refused(given('bundle = "nowhere"\n[compare]'), 4, "nowhere")


def test_gates_name_variants_that_are_yet_to_be_made(folder: Path) -> None:
    text = 'source = "model"\nbundle = "b"\n{}[compare]\ngate = ["{}.speedup>=1"]\n'
    made = '[export]\nprecision = "fp32"\n[[quantize]]\nprecision = "int4"\n'
    assert given(text.format(made, "int4"), "--dry-run").exit_code == 0
    assert_refused(given(text.format(made, "int8"), "--dry-run"), 2, "int8.speedup")
    assert given(text.format("", "int4"), "--dry-run").exit_code == 0  # what a quantized source carries is not known yet
    made = made.replace("int4", "fp32")
    assert_refused(given(text.format(made, "fp32"), "--dry-run"), 6, "has a variant fp32 already")


def test_its_commands_are_handed_what_it_hands_on(bundle: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    class Measured:
        def as_dict(self) -> dict[str, Any]:
            return {"gates": []}

        def raise_for_gates(self) -> None:
            raise GateError("1 of 2 gates failed")

    def recorded(name: str, result: Any) -> Any:
        def call(*arguments: Any, progress: Any, **options: Any) -> Any:
            calls.append((name, tuple(map(str, arguments)), options))
            return result

        return call

    for name, result, module in (
        ("build", bundle, onnxport.build),
        ("add_variant", bundle, onnxport.build),
        ("compare", Measured(), onnxport.compare),
    ):
        monkeypatch.setattr(pipeline, name, recorded(name, result))
        monkeypatch.setattr(module, name, recorded(name, result), raising=False)
    whole = given(WHOLE, "--json", "-q")
    assert whole.exit_code == 3 and "1 of 2 gates failed" in whole.stderr
    assert json.loads(whole.stdout)["bundle"]["name"] == bundle.name and json.loads(whole.stdout)["report"] == {"gates": []}
    by_file, calls = calls, []
    lines = given(WHOLE, "--dry-run").stdout.splitlines()
    codes = [invoke(*shlex.split(line)[1:], "--json", "-q").exit_code for line in lines]
    assert codes == [0, 0, 0, 3]
    assert [(name, *arguments) for name, arguments, _ in calls] == [(name, *arguments) for name, arguments, _ in by_file]
    for (_, _, options), (_, _, same) in zip(calls, by_file, strict=True):
        assert {name: value for name, value in same.items() if value != options[name]} == {}
    assert by_file[0][2]["precision"] == ("int8", "fp32") and by_file[0][2]["allow_pickle"] and by_file[3][2]["source"] == "model"


def test_a_failed_variant_ends_it_as_a_script(bundle: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    monkeypatch.setattr(pipeline, "build", lambda *_, **__: replace(bundle, failed={"int8": "too far"}))
    result = given(WHOLE.replace("agreement", "fp32.agreement"), "--json", "-q")
    assert result.exit_code == 3 and "variant int8 failed: too far" in result.stderr
    assert json.loads(result.stdout)["report"] is None


def test_a_variant_is_added_to_a_bundle_that_is_there(plain_bundle: Bundle, bundle: Bundle, folder: Path) -> None:
    shutil.copytree(plain_bundle.path, folder / "b")
    result = given('bundle = "b"\n[[quantize]]\nprecision = "int8"\n', "--json", "-q")
    assert result.exit_code == 0, result.output
    made = Bundle.open(folder / "b")
    assert all(made.files[name] == bundle.files[name] for name in bundle.variants["int8"].files)
    assert set(json.loads(result.stdout)["bundle"]["variants"]) == {"fp32", "int8-weight", "int8"}


def test_the_key_follows_what_is_read(folder: Path) -> None:
    first = given(WHOLE, "--key").stdout
    assert len(first.strip()) == 64
    assert given(WHOLE.replace("out/b", "elsewhere"), "--key", "--force").stdout == first
    assert given(WHOLE.replace("0.5", "0.6"), "--key").stdout != first
    (folder / "-data.tsv").write_text("a\tc\n")
    second = given(WHOLE, "--key").stdout
    assert second != first
    (folder / "model" / "config.json").write_text('{"a": 1}')
    assert given(WHOLE, "--key").stdout not in (first, second)
    assert_refused(given(WHOLE.replace('"model"', '"module:build"'), "--key"), 2, "module:build")


def test_the_example_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    result = invoke("pipeline", "examples/pipeline/en-de.toml", "--dry-run", "--force")
    assert result.exit_code == 0, result.output
    assert [line.split()[1] for line in result.stdout.splitlines()] == ["export", "compare"]
