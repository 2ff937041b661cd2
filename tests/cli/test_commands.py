"""The commands as their users meet them: results, exit codes, one-line refusals."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from click.shell_completion import ShellComplete

from onnxport.cli.commands import cli
from onnxport.quantize.precisions import PRECISIONS
from onnxport.runtime.bundle.reader import Bundle
from support.commands import COMMAND, assert_refused, invoke


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.path, tmp_path / "copy"))


# results


def test_every_command_has_help_with_examples() -> None:
    for name, command in cli.commands.items():
        result = invoke(name, "--help")
        assert result.exit_code == 0
        assert "Examples:" in result.output, name
        assert command.help, name
        for flag in ("--quiet", "--verbose"):
            assert flag in result.output, name


def test_help_names_every_precision_that_can_be_made() -> None:
    for name in ("export", "quantize"):
        told = "".join(invoke(name, "--help").output.split())  # lines may end within a name
        assert ",".join(PRECISIONS) in told, name


def test_run_answers_texts_in_order(bundle: Bundle) -> None:
    one = invoke("run", bundle.path, "a b c", "one two")
    assert one.exit_code == 0
    two = [invoke("run", bundle.path, text).stdout.strip() for text in ("a b c", "one two")]
    assert one.stdout.splitlines() == two


def test_run_json_is_one_object(bundle: Bundle) -> None:
    result = invoke("run", bundle.path, "--json", "--max-new-tokens", 3, "a b c", "d")
    answers = json.loads(result.stdout)["results"]
    assert len(answers) == 2
    assert set(answers[0]) == {"text", "tokens", "score", "finish_reason"}
    assert len(answers[0]["tokens"]) <= 3


def test_run_stream_gives_the_text_of_the_whole_answer(bundle: Bundle) -> None:
    whole = invoke("run", bundle.path, "a b c").stdout
    assert invoke("run", bundle.path, "--stream", "a b c").stdout == whole
    objects = [json.loads(line) for line in invoke("run", bundle.path, "--stream", "--json", "a b c").stdout.splitlines()]
    assert "".join(item.get("text", "") for item in objects) == whole.rstrip("\n") == objects[-1]["result"]["text"]


def test_inspect_and_verify(bundle: Bundle) -> None:
    manifest = json.loads(invoke("inspect", bundle.path, "--json").stdout)
    assert list(manifest["variants"]) == ["fp32", "fp16", "int8"]
    assert manifest["provenance"]["route"] == "canonical"
    text = invoke("inspect", bundle.path).stdout
    for word in ("fp32*", "fp16", "int8", "group_query_attention 2"):
        assert word in text
    assert invoke("verify", bundle.path).exit_code == 0


def test_doctor_tells_versions_and_providers() -> None:
    findings = json.loads(invoke("doctor", "--json").stdout)
    assert "CPUExecutionProvider" in findings["providers"]
    assert findings["versions"]["onnxruntime"]


def test_quantize_makes_the_variant_that_export_makes(plain_bundle: Bundle, bundle: Bundle, tmp_path: Path) -> None:
    out = Path(shutil.copytree(plain_bundle.path, tmp_path / "b"))
    assert_refused(invoke("quantize", out, "--precision", "fp32"), 6, "--force")
    result = invoke("quantize", out, "--precision", "int8", "--json", "-q")
    assert result.exit_code == 0, result.output
    made, exported = Bundle.open(out, verify=True), bundle
    for name in exported.variants["int8"].files:
        assert made.files[name] == exported.files[name], name


@pytest.mark.timeout(300)  # it starts a process for each variant several times
def test_compare_writes_reports_and_gates_decide(bundle: Bundle, tmp_path: Path) -> None:
    data = tmp_path / "pairs.tsv"
    data.write_text("a b c\tone two\nd e\tthree\nf\tfour four\n")
    out = tmp_path / "report"
    passed = invoke("compare", bundle.path, "--data", data, "--out", out, "--batch", "1", "--gate", "int8.size_ratio<=0.9", "-q")
    assert passed.exit_code == 0, passed.output
    report = json.loads((out / "report.json").read_text())
    assert set(report["variants"]) == {"fp32", "fp16", "int8"}
    failed = invoke("compare", bundle.path, "--data", data, "--out", out, "--force", "--batch", "1", "--gate", "int8.bleu>=1000", "-q")
    assert failed.exit_code == 3
    assert "int8.bleu>=1000" in failed.stderr


# wrong usage


def test_unknown_precision_is_wrong_usage(model_folder: Path, tmp_path: Path) -> None:
    assert_refused(invoke("export", model_folder, "--out", tmp_path / "x", "--precision", "fp8"), 2, "fp8", "fp32")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--precision", "int9"], "int9"),
        (["--gate", "int8.speed>=1"], "speed"),
        (["--tolerance", "speedup>=1"], "quality"),
        (["--gate", "speedup_change>=0"], "--baseline"),
        (["--with", "BUNDLE", "--precision", "other/int8"], "other/int8"),
    ],
)
def test_wrong_usage_of_compare_comes_before_an_existing_report(bundle: Bundle, tmp_path: Path, arguments: list[str], word: str) -> None:
    (tmp_path / "report.json").write_text("{}")
    arguments = [str(bundle.path) if one == "BUNDLE" else one for one in arguments]
    assert_refused(invoke("compare", bundle.path, "--out", tmp_path, *arguments), 2, word)
    assert_refused(invoke("compare", bundle.path, "--out", tmp_path), 6, "report.json")


def test_unknown_variant_is_wrong_usage(bundle: Bundle) -> None:
    assert_refused(invoke("run", bundle.path, "--precision", "int4", "a"), 2, "int4", "int8")


@pytest.mark.parametrize(
    ("arguments", "word"), [(["export", "x"], "--out"), (["frobnicate"], "frobnicate"), (["run", "x", "--beam", "0"], "--beam")]
)
def test_wrong_usage_is_one_line(arguments: list[str], word: str) -> None:
    result = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert word in result.stderr
    assert "--help" in result.stderr


# refused input


def test_missing_bundle_is_refused(tmp_path: Path) -> None:
    assert_refused(invoke("run", tmp_path / "nowhere", "a"), 4, "nowhere")


def test_missing_source_is_refused(tmp_path: Path) -> None:
    assert_refused(invoke("export", tmp_path / "nowhere", "--out", tmp_path / "x", "-q"), 4, "nowhere")


def test_changed_byte_is_found(copy: Path) -> None:
    target = copy / "int8" / "weights.bin"
    content = bytearray(target.read_bytes())
    content[len(content) // 2] ^= 1
    target.write_bytes(content)
    assert_refused(invoke("verify", copy, "-q"), 4, "int8/weights.bin")


def test_missing_file_is_refused(copy: Path) -> None:
    (copy / "fp32" / "decoder.onnx").unlink()
    assert_refused(invoke("run", copy, "a"), 4, "fp32/decoder.onnx")


def test_newer_format_is_refused(copy: Path) -> None:
    manifest = json.loads((copy / "bundle.json").read_text())
    (copy / "bundle.json").write_text(json.dumps(manifest | {"format": 99}))
    assert_refused(invoke("inspect", copy), 4, "99", "newer")


def test_path_that_leaves_the_bundle_is_refused(copy: Path) -> None:
    text = (copy / "bundle.json").read_text().replace("tokenizer.json", "../tokenizer.json")
    (copy / "bundle.json").write_text(text)
    assert_refused(invoke("run", copy, "a"), 4, "../tokenizer.json")


def test_too_long_text_is_refused_with_its_length(bundle: Bundle) -> None:
    assert_refused(invoke("run", bundle.path, " ".join("a" * 40)), 4, "41", "24")


def test_npz_that_is_none_is_refused(model_folder: Path, bundle: Bundle, tmp_path: Path) -> None:
    bad = tmp_path / "bad.npz"
    bad.write_bytes(b"PK not really")
    assert_refused(invoke("run", bundle.path, "--npz", bad, "--out", tmp_path / "out.npz"), 4, "bad.npz")


def test_cuda_without_one_is_told(bundle: Bundle) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine offers CUDA")
    assert_refused(invoke("run", bundle.path, "--device", "cuda", "a"), 5, "CUDAExecutionProvider")


# arrays


def test_arrays_of_a_plain_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plainmodel.py").write_text(
        "import torch\nfrom onnxport.export import Module\n\n\n"
        "def build():\n    torch.manual_seed(0)\n"
        "    return Module(torch.nn.Linear(4, 3), inputs={'input': torch.rand(1, 4)}, dynamic={'input': {0: 'batch'}}, outputs=['y'])\n"
    )
    monkeypatch.chdir(tmp_path)
    assert invoke("export", "plainmodel:build", "--out", "b", "--precision", "fp32", "-q").exit_code == 0
    np.savez("in.npz", input=np.ones((5, 4), np.float32))
    result = invoke("run", "b", "--npz", "in.npz", "--out", "out.npz")
    assert result.exit_code == 0, result.output
    assert np.load("out.npz")["y"].shape == (5, 3)
    assert_refused(invoke("run", "b", "--npz", "in.npz", "--out", "out.npz"), 6, "--force")
    assert_refused(invoke("run", "b", "some text"), 2, "--npz")
    assert_refused(
        invoke("run", "b", "--npz", "in.npz", "--out", "out.npz", "--beam", 2, "--chat"), 2, "--beam, --chat: --npz takes arrays"
    )
    assert_refused(invoke("run", "b", "--npz", "in.npz", "--out", "x.npz", "some text"), 2, "TEXT")
    outputs = json.loads(invoke("run", "b", "--npz", "in.npz", "--out", "x.npz", "--json").stdout)["outputs"]
    assert outputs == {"y": {"shape": [5, 3], "dtype": "float32"}}


def test_out_without_npz_is_wrong_usage(bundle: Bundle, tmp_path: Path) -> None:
    assert_refused(invoke("run", bundle.path, "--out", tmp_path / "x.txt", "a"), 2, "--npz")


def test_markup_in_a_name_is_only_text(tmp_path: Path) -> None:
    result = invoke("verify", tmp_path / "x[/b]")
    assert result.exit_code == 4
    assert "x[/b]" in result.stderr


def test_quiet_and_verbose_stand_before_the_command_too(bundle: Bundle, tmp_path: Path) -> None:
    for arguments in (["-q", "verify"], ["verify", "-q"], ["--quiet", "-v", "verify"]):
        result = invoke(*arguments, bundle.path)
        assert result.exit_code == 0 and result.stderr == "", arguments
    assert "verifying" in invoke("verify", bundle.path).stderr
    assert "Traceback" in invoke("-v", "verify", tmp_path / "none").stderr
    assert "Traceback" in invoke("--verbose", "verify", "-q", tmp_path / "none").stderr
    assert "Traceback" not in invoke("-q", "verify", tmp_path / "none").stderr


# completion in a shell


@pytest.mark.parametrize(
    ("words", "begun", "expected"),
    [
        (["export", "--precision"], "int8-", {"int8-reduced", "int8-weight", "int8-static"}),
        (["export", "--precision"], "fp32,bf", {"fp32,bf16"}),
        (["quantize", "BUNDLE", "--precision"], "int4-g", {"int4-gptq"}),
        (["run", "BUNDLE", "--precision"], "", {"fp32", "fp16", "int8"}),
        (["compare", "BUNDLE", "--precision"], "fp32,i", {"fp32,int8"}),
        (["run", "nowhere", "--precision"], "", set()),
        (["serve"], "--dev", {"--device"}),
    ],
)
def test_shells_complete_values(bundle: Bundle, words: list[str], begun: str, expected: set[str]) -> None:
    typed = [str(bundle.path) if word == "BUNDLE" else word for word in words]
    found = ShellComplete(cli, {}, "onnxport", "_ONNXPORT_COMPLETE").get_completions(typed, begun)
    assert {item.value for item in found} == expected
